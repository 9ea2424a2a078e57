"""Text embeddings and the UNet call, against transformers and diffusers used by hand."""

from pathlib import Path

import pytest
import torch

from b4m.bases import load_base
from b4m.bases.base import Base, Conditioning
from tests.data.worlds import drawing


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> Base:
    return load_base(str(tiny_base))


def test_prompts_are_the_encoders_next_to_last_layers(base: Base) -> None:
    prompts = ["a snq cat", "a red car in w@z style"]
    encoded = base.encode_prompts(prompts)
    hidden = []
    for tokenizer, encoder in zip(base.tokenizers, base.text_encoders, strict=True):
        tokens = tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt")
        with torch.no_grad():
            output = encoder(tokens.input_ids, output_hidden_states=True)
        hidden.append(output.hidden_states[-2])
    assert torch.equal(encoded.tensors["hidden"], torch.cat(hidden, dim=-1))
    assert torch.equal(encoded.tensors["pooled"], output.text_embeds)


def test_unconditional_is_what_the_base_says(base: Base) -> None:
    zeros = base.unconditional(2)
    assert len(zeros) == 2
    assert not zeros.tensors["hidden"].any()
    assert not zeros.tensors["pooled"].any()
    base.empty_prompt = "encoded"
    try:
        encoded = base.unconditional(1)
    finally:
        base.empty_prompt = "zeros"
    assert torch.equal(encoded.tensors["hidden"], base.encode_prompts([""]).tensors["hidden"])


def test_conditioning_indexes_and_concatenates(base: Base) -> None:
    three = base.encode_prompts(["a", "b", "c"])
    picked = Conditioning.cat([three[[2, 2]], three[:1]])
    assert torch.equal(picked.tensors["pooled"], three.tensors["pooled"][[2, 2, 0]])
    assert picked.to("cpu", torch.bfloat16).tensors["hidden"].dtype == torch.bfloat16


def test_predict_is_one_call_of_the_unet(base: Base) -> None:
    text = base.encode_prompts(["a cat", "a car"])
    x_BCHW = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    t_B = torch.tensor([10, 900])
    with torch.no_grad():
        ours = base.predict(base.model, x_BCHW, t_B, text)
        theirs = base.model(
            x_BCHW,
            t_B,
            encoder_hidden_states=text.tensors["hidden"],
            added_cond_kwargs={"text_embeds": text.tensors["pooled"], "time_ids": base.time_ids(2)},
        ).sample
    assert torch.equal(ours, theirs)
    assert base.time_ids(2).tolist() == [[32, 32, 0, 0, 32, 32]] * 2


def test_latents_are_the_posterior_in_the_unets_scale(base: Base) -> None:
    image = drawing("ball", "flat")
    mean, std = base.encode_images([image] * 9)  # more than one chunk
    pixels = torch.tensor(list(image.get_flattened_data()), dtype=torch.float32)
    x_1CHW = pixels.reshape(32, 32, 3).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        posterior = base.vae.encode(x_1CHW).latent_dist
    factor = base.vae.config.scaling_factor
    torch.testing.assert_close(mean[8], posterior.mean[0] * factor)
    torch.testing.assert_close(std[0], posterior.std[0] * factor)


def test_decoding_undoes_the_scale(base: Base) -> None:
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        x_1CHW = base.vae.decode(z).sample
    wanted = ((x_1CHW / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1)
    (image,) = base.decode_latents(z * base.vae.config.scaling_factor)
    ours = torch.tensor(list(image.get_flattened_data())).reshape(32, 32, 3)
    assert (ours - wanted[0].int()).abs().max() <= 1


def test_a_vae_with_its_own_mean_and_spread_is_normalized(base: Base) -> None:
    image = drawing("ball", "flat")
    plain_mean, plain_std = base.encode_images([image])
    before = base.vae.config
    base.vae.register_to_config(latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[1.0, 2.0, 0.5, 1.0])
    try:
        mean, std = base.encode_images([image])
        (again,) = base.decode_latents(mean)
    finally:
        base.vae._internal_dict = before
    factor = base.vae.config.scaling_factor
    shift = torch.tensor([0.1, 0.2, 0.3, 0.4]).view(1, 4, 1, 1)
    spread = torch.tensor([1.0, 2.0, 0.5, 1.0]).view(1, 4, 1, 1)
    torch.testing.assert_close(mean, (plain_mean / factor - shift) / spread * factor)
    torch.testing.assert_close(std, plain_std / spread)
    (wanted,) = base.decode_latents(plain_mean)
    assert again.tobytes() == wanted.tobytes()
