"""Examples draw from the posterior and pair each picture with its caption; the loss is the mean."""

from pathlib import Path

import torch

from b4m.bases.base import Base
from b4m.data.cache import Cache
from b4m.data.images import fit_square, load_image
from b4m.data.manifest import read_manifest, training_rows
from b4m.training.losses import Noise, denoising_losses
from b4m.training.settings import Objective
from b4m.training.training_set import Augmentation, read_training_set


def test_draws_have_the_posteriors_mean_and_spread(
    base: Base, prepared: Path, tmp_path: Path
) -> None:
    rows = training_rows(read_manifest(prepared), "style", "stripes")
    examples = read_training_set(prepared, rows, base, Cache(tmp_path, base))
    shown = examples.draw([2] * 4000, torch.Generator().manual_seed(0))
    draws, text = shown.x0_BCHW, shown.text
    image = fit_square(load_image(prepared / rows[2].file), base.pixels)
    mean, std = base.encode_images([image])
    torch.testing.assert_close(draws.mean(0), mean[0], atol=float(6 * std.max() / 63), rtol=0)
    torch.testing.assert_close(draws.std(0), std[0], rtol=0.1, atol=0)
    assert torch.equal(
        text.tensors["pooled"][0], base.encode_prompts([rows[2].caption]).tensors["pooled"][0]
    )


def test_flips_show_each_side_half_of_the_time(base: Base, prepared: Path, tmp_path: Path) -> None:
    from PIL import ImageOps

    rows = training_rows(read_manifest(prepared), "style", "stripes")[:1]
    flipped = Augmentation(flip=True)
    examples = read_training_set(prepared, rows, base, Cache(tmp_path, base), flipped)
    image = fit_square(load_image(prepared / rows[0].file), base.pixels)
    means = base.encode_images([image, ImageOps.mirror(image)])[0]
    draws = examples.draw([0] * 400, torch.Generator().manual_seed(0)).x0_BCHW
    distances = torch.stack([(draws - mean).flatten(1).norm(dim=1) for mean in means])
    share = (distances.argmin(0) == 1).float().mean()
    assert 0.4 < share < 0.6


def test_losses_are_the_mean_squared_error_of_each_example(base: Base) -> None:
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(3, 4, 8, 8, generator=generator)
    noise = Noise.sample(base, 3, generator)
    text = base.encode_prompts(["a", "b", "c"])
    with torch.no_grad():
        loss_B = denoising_losses(base.model, base, x0, noise, text)
        weighted_B = denoising_losses(
            base.model, base, x0, noise, text, Objective(min_snr_gamma=5.0)
        )
        for index in range(3):
            row = slice(index, index + 1)
            noisy = base.noising.add(x0[row], noise.noise_BCHW[row], noise.t_B[row])
            output = base.predict(base.model, noisy, noise.t_B[row], text[row])
            wanted = base.noising.target(x0[row], noise.noise_BCHW[row], noise.t_B[row])
            torch.testing.assert_close(loss_B[index], (output - wanted).square().mean())
    weight_B = base.noising.min_snr_weight(noise.t_B, 5.0)
    torch.testing.assert_close(weighted_B, loss_B * weight_B)


def test_noise_can_be_shared_between_examples(base: Base) -> None:
    noise = Noise.sample(base, 2, torch.Generator().manual_seed(0))
    shared = noise[[0, 1, 0]]
    assert torch.equal(shared.noise_BCHW[2], noise.noise_BCHW[0])
    assert shared.t_B.tolist() == [int(noise.t_B[index]) for index in (0, 1, 0)]
