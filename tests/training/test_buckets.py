"""Aspect-ratio buckets: sizes, cuts, SDXL's size conditioning, and one size per batch."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from b4m.bases.base import Base
from b4m.data.cache import Cache
from b4m.data.manifest import ManifestRow, write_manifest
from b4m.errors import B4MError
from b4m.training.buckets import Order, bucket_sizes, cut, read_bucketed_set, size_for
from b4m.training.training_set import Augmentation
from tests import runs


def test_sizes_for_sdxl_are_multiples_with_at_most_its_area() -> None:
    sizes = bucket_sizes(1024, 64)
    assert {(1024, 1024), (832, 1216), (1216, 832)} <= set(sizes)
    for width, height in sizes:
        assert width % 64 == height % 64 == 0
        assert width * height <= 1024**2
        assert 512 <= min(width, height) <= max(width, height) <= 2048
        assert width * (height + 64) > 1024**2 or height == 2048, "no larger one of this width"


@pytest.mark.parametrize(
    ("image", "size"),
    [((300, 300), (1024, 1024)), ((1500, 1000), (1216, 832)), ((100, 900), (512, 2048))],
)
def test_an_image_goes_to_the_nearest_ratio(image: tuple[int, int], size: tuple[int, int]) -> None:
    assert size_for(image, bucket_sizes(1024, 64)) == size


def test_a_cut_keeps_the_middle_and_says_where_it_was() -> None:
    ramp = np.tile(np.linspace(0, 255, 200, dtype=np.uint8), (60, 1))
    image = Image.fromarray(np.stack([ramp] * 3, axis=-1))
    part, frame = cut(image, (64, 32))
    # scaled to cover: height 60 -> 32, width 200 -> 107; 43 columns stand over
    assert part.size == (64, 32)
    assert (frame.original, frame.corner, frame.size) == ((200, 60), (21, 0), (64, 32))
    whole = image.resize((107, 32), Image.Resampling.LANCZOS)
    assert part.tobytes() == whole.crop((21, 0, 85, 32)).tobytes()


def test_every_batch_has_one_size_and_every_image_comes_once_an_epoch() -> None:
    order = Order((5, 2, 9), 4, seed=1)
    sizes = [range(5), range(5, 7), range(7, 16)]
    batches = [order.batch(position) for position in range(2 * (2 + 1 + 3))]
    for batch in batches:
        assert len(batch) == 4
        assert any(set(batch) <= set(size) for size in sizes)
    for epoch in (batches[:6], batches[6:]):
        assert {index for batch in epoch for index in batch} == set(range(16))
    assert batches[:6] != batches[6:]
    assert Order((5, 2, 9), 4, seed=1).batch(3) == batches[3], "a function of the position"


@pytest.fixture
def images(tmp_path: Path) -> list[ManifestRow]:
    rng = np.random.default_rng(0)
    rows = []
    for number, (width, height) in enumerate([(48, 48), (80, 30), (40, 40), (30, 90)]):
        pixels = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        rows.append(
            ManifestRow(f"{number}.png", "style", "s", f"p {number}", "", "", "train", "", "")
        )
    return rows


def test_latents_and_sizes_are_those_of_each_cut(
    base: Base, images: list[ManifestRow], tmp_path: Path
) -> None:
    cache = Cache(tmp_path / "cache", base)
    found = read_bucketed_set(tmp_path, images, base, cache, Augmentation(flip=True))
    assert [len(part) for part in found.parts] == [1, 2, 1]
    sizes = bucket_sizes(base.pixels, 4)
    first = 0
    for part in found.parts:
        for row in range(first, first + len(part)):
            shown = found.draw([row], torch.Generator().manual_seed(0))
            number = int(shown.captions[0].split()[-1])
            with Image.open(tmp_path / f"{number}.png") as opened:
                image = opened.convert("RGB")
            size = size_for(image.size, sizes)
            sides, frame = [cut(one, size)[0] for one in (image, ImageOps.mirror(image))], None
            _, frame = cut(image, size)
            mean, _ = base.encode_images(sides)
            torch.testing.assert_close(part.mean_VNCHW[:, row - first], mean, atol=1e-5, rtol=1e-4)
            told = shown.text.tensors["time_ids"][0].tolist()
            height, width = image.size[1], image.size[0]
            assert told == [height, width, frame.corner[1], frame.corner[0], size[1], size[0]]
        first += len(part)


def test_the_denoiser_is_told_the_sizes(
    base: Base, images: list[ManifestRow], tmp_path: Path
) -> None:
    found = read_bucketed_set(
        tmp_path, images, base, Cache(tmp_path / "cache", base), Augmentation()
    )
    shown = found.draw([0], torch.Generator().manual_seed(0))
    seen = {}

    def watch(module: object, args: object, kwargs: dict[str, dict[str, torch.Tensor]]) -> None:
        seen.update(kwargs["added_cond_kwargs"])

    handle = base.model.register_forward_pre_hook(watch, with_kwargs=True)
    with torch.no_grad():
        base.predict(base.model, shown.x0_BCHW, torch.tensor([5]), shown.text)
    handle.remove()
    assert torch.equal(seen["time_ids"], shown.text.tensors["time_ids"])


def test_buckets_and_their_step_change_what_is_learned(
    base: Base, images: list[ManifestRow], tmp_path: Path
) -> None:
    rows = [replace(row, caption=f"{row.caption} w@z", trigger="w@z") for row in images]
    write_manifest(tmp_path, rows)
    fast = {"rank": 2, "steps": 2, "batch_size": 2, "accumulation": 1, "lr": 1e-2}
    learned = {
        runs.train("lora", "style", tmp_path, "s", base, tmp_path / "work", **fast, **settings)
        .layers["mid_block.attentions.0.transformer_blocks.0.attn1.to_q"]
        .up.numpy()
        .tobytes()
        for settings in ({}, {"buckets": True}, {"buckets": True, "bucket_step": 8})
    }
    assert len(learned) == 3


def test_a_step_that_is_no_multiple_of_a_latents_place_is_refused(
    base: Base, images: list[ManifestRow], tmp_path: Path
) -> None:
    with pytest.raises(B4MError, match="bucket_step=6 must be a multiple of 4 and at most 32"):
        read_bucketed_set(tmp_path, images, base, Cache(tmp_path, base), Augmentation(), step=6)
