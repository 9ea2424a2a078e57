"""Encoders run once per picture and caption; the cache gives back what they made."""

from pathlib import Path

import pytest
import torch

from b4m.bases import load_base
from b4m.bases.base import Base
from b4m.data.cache import Cache
from b4m.errors import B4MError
from tests.data.worlds import drawing


def test_cached_values_are_the_encoders_own(tiny_base: Path, tmp_path: Path) -> None:
    base = load_base(str(tiny_base))
    images = [drawing("ball", "flat", number) for number in range(3)]
    for _ in range(2):
        mean_NCHW, std_NCHW = Cache(tmp_path, base).latents(images)
        text = Cache(tmp_path, base).texts(["a snq cat", "a red car"])
    for index, image in enumerate(images):
        mean_1CHW, std_1CHW = base.encode_images([image])
        assert torch.equal(mean_NCHW[index], mean_1CHW[0])
        assert torch.equal(std_NCHW[index], std_1CHW[0])
    single = base.encode_prompts(["a red car"])
    assert torch.equal(text.tensors["hidden"][1], single.tensors["hidden"][0])
    assert torch.equal(text.tensors["pooled"][1], single.tensors["pooled"][0])


def test_encoders_run_once_per_picture(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load_base(str(tiny_base))
    calls = []
    encode = base.vae.encode
    monkeypatch.setattr(base.vae, "encode", lambda x: calls.append(len(x)) or encode(x))
    first, second = drawing("ball", "flat"), drawing("tower", "flat")
    cache = Cache(tmp_path, base)
    cache.latents([first, second, first])
    cache.latents([second])
    assert calls == [1, 1]


def test_another_base_and_other_encoders_do_not_share_entries(
    tiny_base: Path, tmp_path: Path
) -> None:
    base = load_base(str(tiny_base))
    Cache(tmp_path, base).texts(["a cat"])
    base.hash = "another"
    Cache(tmp_path, base).texts(["a cat"])
    with torch.no_grad():
        next(base.text_encoders[0].parameters()).mul_(2)
    Cache(tmp_path, base).texts(["a cat"])
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3


def test_no_partial_file_stays(tiny_base: Path, tmp_path: Path) -> None:
    Cache(tmp_path, load_base(str(tiny_base))).texts(["a cat"])
    assert not list(tmp_path.rglob("*.partial"))


def test_a_damaged_entry_of_the_cache_is_named(base: Base, tmp_path: Path) -> None:
    cache = Cache(tmp_path, base)
    cache.texts(["a snq mug"])
    (entry,) = tmp_path.rglob("*.safetensors")
    entry.write_bytes(entry.read_bytes()[:-4])
    with pytest.raises(B4MError, match=rf"{entry.name} in the cache is damaged .*; delete it"):
        cache.texts(["a snq mug"])
