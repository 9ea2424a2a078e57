"""Bases load frozen, are told apart by their UNet's weights, and refuse what is no SDXL."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from b4m.bases import load_base
from b4m.errors import B4MError


def test_a_base_knows_its_sizes_and_is_frozen(tiny_base: Path) -> None:
    base = load_base(str(tiny_base), device="cpu")
    assert (base.pixels, base.latent_shape) == (32, (4, 8, 8))
    assert base.prediction_type == "v_prediction"
    assert base.dtype == torch.float32, "auto is fp32 on a CPU"
    assert base.parameters == sum(p.numel() for p in base.model.parameters())
    for module in (base.model, base.vae, *base.text_encoders):
        assert not module.training
        assert not any(p.requires_grad for p in module.parameters())


def test_the_vae_stays_in_float32(tiny_base: Path) -> None:
    base = load_base(str(tiny_base), device="cpu", dtype="bf16")
    assert {p.dtype for p in base.vae.parameters()} == {torch.float32}
    assert {p.dtype for p in base.model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in base.text_encoders[0].parameters()} == {torch.bfloat16}


def test_the_hash_follows_the_weights_and_not_the_place(tiny_base: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_base, tmp_path / "copy")
    first = load_base(str(tiny_base)).hash
    assert load_base(str(copy)).hash == first
    weights = next((copy / "unet").glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-2] ^= 1
    weights.write_bytes(bytes(content))
    assert load_base(str(copy)).hash != first


def test_a_cache_of_the_hub_is_hashed_without_reading_its_large_files(
    tiny_base: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(tiny_base, tmp_path / "snapshot")
    weights = next((copy / "unet").glob("*.safetensors"))
    blob = tmp_path / "blobs" / ("0" * 64)
    blob.parent.mkdir()
    shutil.move(weights, blob)
    weights.symlink_to(blob)
    first = load_base(str(copy)).hash
    shutil.move(blob, blob.with_name("1" * 64))
    weights.unlink()
    weights.symlink_to(blob.with_name("1" * 64))
    assert load_base(str(copy)).hash != first


@pytest.mark.parametrize(
    "name", ["data/models/nothing-here", "./nothing", "nobody/nothing-of-that-name"]
)
def test_a_missing_base_is_one_sentence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(B4MError, match=f"base {name}: no such folder or file"):
        load_base(name)


def test_other_models_are_refused(tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(B4MError, match="no model_index.json"):
        load_base(str(tmp_path / "empty"))
    copy = shutil.copytree(tiny_base, tmp_path / "copy")
    index = json.loads((copy / "model_index.json").read_text())
    index["text_encoder"] = index["tokenizer"] = [None, None]
    (copy / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(B4MError, match="is not an SDXL base"):
        load_base(str(copy))
    unet_alone = tmp_path / "unet.safetensors"
    shutil.copyfile(next((tiny_base / "unet").glob("*.safetensors")), unet_alone)
    with pytest.raises(B4MError, match="does not load as a single-file SDXL checkpoint"):
        load_base(str(unet_alone))


def test_unknown_precision_is_answered_with_the_known(tiny_base: Path) -> None:
    with pytest.raises(B4MError, match="choose auto, fp32, bf16, fp16"):
        load_base(str(tiny_base), dtype="fp8")
