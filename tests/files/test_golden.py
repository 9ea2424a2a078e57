"""Files of earlier versions are read as they were meant; `tests/golden` holds some.

They were written by 0.1.0 on mini-SDXL and cut to two layers each.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from b4m.adapters.deltas import PLP
from b4m.adapters.metadata import Metadata
from b4m.files import describe, read_adapter, write_adapter

GOLDEN = Path(__file__).parent.parent / "golden"
LAYERS = (
    "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k",
    "up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_out.0",
)
BASE = "cb1872032620283c3222cbb4c39e470d956a0da7e7719ec73a95e02217f0d112"
HALF = Metadata(
    method="b4m",
    stage="content",
    concept="octopus",
    content="octopus",
    rank=8,
    triggers={"content": "snq"},
    class_words={"content": "sea animal"},
    base_id="data/models/mini-sdxl",
    base_hash=BASE,
    data_hash="1d978632c2ff652184636e8aee6f46c8c83f69f20ff191615cc2ad1329f157ff",
    code_version="0.1.0",
    split=0.5,
    role="content-down",
)
MERGED = Metadata(
    method="direct",
    stage="merged",
    concept="octopus+painted-19",
    content="octopus",
    style="painted-19",
    rank=16,
    triggers={"content": "snq", "style": "w@z"},
    class_words={"content": "sea animal", "style": "starry swirl"},
    base_id="data/models/mini-sdxl",
    base_hash=BASE,
    data_hash="99d4b84dc2456e93d097295a571328a52cc685c2260176f38472a3fe8fe30b96"
    "+d2eaf1535cd374d03d0b4f9f00f038ee42f8625541e9000e868f3f1342d2f1ba",
    code_version="0.1.0",
)
FILES = {"content-b4m": HALF, "m-direct": MERGED}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_before_has_the_same_tensors(name: str) -> None:
    file = GOLDEN / f"{name}.safetensors"
    raw = load_file(file)
    adapter = read_adapter(file)
    assert set(adapter.layers) == set(LAYERS)
    assert not adapter.text_layers
    assert len(raw) == 2 * len(LAYERS)
    for layer, pair in adapter.layers.items():
        for part in ("down", "up"):
            stored = raw[f"unet.{layer}.lora.{part}.weight"]
            assert torch.equal(getattr(pair, part), stored)


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_before_says_the_same_of_itself(name: str) -> None:
    metadata = read_adapter(GOLDEN / f"{name}.safetensors").metadata
    settings = metadata.config["settings"]
    assert (settings["recipe"], settings["weight_decay"]) == ("mini", 0.01)
    expected = FILES[name].to_header() | {"b4m.config": metadata.to_header()["b4m.config"]}
    assert metadata.to_header() == expected
    assert describe(GOLDEN / f"{name}.safetensors")["metadata"]["b4m.method"] == metadata.method


def test_a_file_of_before_is_written_again_with_the_same_bytes_of_its_tensors(
    tmp_path: Path,
) -> None:
    for name in FILES:
        file = GOLDEN / f"{name}.safetensors"
        again = write_adapter(tmp_path / file.name, read_adapter(file))
        before, after = load_file(file), load_file(again)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_half_of_before_stands_on_the_basis_of_today() -> None:
    """Only then can it be joined with a half that is trained now."""
    adapter = read_adapter(GOLDEN / "content-b4m.safetensors")
    for layer, pair in adapter.layers.items():
        half = PLP.cut(pair, adapter.metadata.split)
        start = PLP.start(
            pair.out_features,
            pair.in_features,
            pair.rank,
            torch.Generator(),
            layer=layer,
            basis_seed=adapter.metadata.basis_seed,
            split=adapter.metadata.split,
        )
        assert torch.equal(half.down_frozen, start.down_frozen)
        assert torch.equal(half.up_frozen, start.up_frozen)
