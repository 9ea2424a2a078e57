"""Claims of ZipLoRA: identities, the exported file, refusals, the two axes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from b4m.adapters.adapter import Adapter
from b4m.adapters.lowrank import LowRank
from b4m.adapters.metadata import Metadata
from b4m.bases.base import Base
from b4m.errors import B4MError
from b4m.files import read_adapter, write_adapter
from b4m.merging.context import MergeContext
from b4m.merging.layerwise import paired
from b4m.merging.mask_learning import MaskedMerge, learn
from b4m.methods.ziplora import Settings, ZipLoss
from tests import runs
from tests.methods.draws import adapters_of, bank_of, look


def merged(
    base: Base, data: Path | None, workdir: Path, *both: Adapter, **settings: object
) -> Adapter:
    return runs.merge("ziplora", *(both or adapters_of(base)), base, data, workdir, **settings)


@pytest.mark.parametrize("axis", ["columns", "rows", "rank"])
def test_ones_are_the_direct_merge_and_one_zero_mask_is_the_other_adapter(
    axis: str, base: Base
) -> None:
    content, style = adapters_of(base)
    direct = runs.merge("direct", content, style)
    wanted = {None: direct, "content": style, "style": content}
    for zeroed, adapter in wanted.items():
        merge = MaskedMerge(base, paired(content.layers, style.layers), axis)
        with torch.no_grad():
            for name, mask in merge.parameters().items():
                if name.endswith(f".{zeroed}"):
                    mask.zero_()
        live, exported = look(base, None), Adapter(merge.layers())
        merge.close()
        reference = look(base, adapter)
        assert (live - reference).abs().max() <= 1e-5
        assert (look(base, exported) - reference).abs().max() <= 1e-5


@pytest.mark.parametrize("axis", ["columns", "rows"])
def test_exported_file_gives_the_output_of_the_live_merge(
    axis: str, base: Base, tmp_path: Path
) -> None:
    content, style = adapters_of(base, 3, 4)
    bank = bank_of(base, 2)
    merge = MaskedMerge(base, paired(content.layers, style.layers), axis)
    loss = ZipLoss(merge, bank, 0.01)
    learn(merge, bank, loss, MergeContext(Settings(steps=5), workdir=tmp_path), "ziplora")
    live = look(base, None)
    file = write_adapter(tmp_path / "merged.safetensors", Adapter(merge.layers()))
    merge.close()
    read = read_adapter(file)
    assert {pair.rank for pair in read.layers.values()} == {7}
    assert (look(base, read) - live).abs().max() <= 1e-5


def test_the_merge_learns_from_the_data_and_is_repeatable(
    base: Base, prepared: Path, tmp_path: Path
) -> None:
    settings = {"steps": 4, "bank": 3, "lr": 0.05}
    first, second = (
        merged(base, prepared, tmp_path / str(place), **settings) for place in range(2)
    )
    direct = merged(base, prepared, tmp_path, steps=0)
    for name, pair in first.layers.items():
        assert torch.equal(pair.down, second.layers[name].down)
        assert not torch.equal(pair.down, direct.layers[name].down)
    assert first.metadata.concept == "teapot+stripes"
    assert first.metadata.config["settings"]["lr"] == 0.05


def test_least_squares_alone_is_a_method(base: Base, prepared: Path, tmp_path: Path) -> None:
    start = merged(base, prepared, tmp_path, steps=0, bank=3, init="lstsq")
    ones = merged(base, prepared, tmp_path, steps=0, bank=3, init="ones")
    name = next(iter(start.layers))
    assert not torch.equal(start.layers[name].down, ones.layers[name].down)
    assert start.layers[name].rank == ones.layers[name].rank


def test_weights_scale_the_adapters_that_are_taught(
    base: Base, prepared: Path, tmp_path: Path
) -> None:
    settings = {"steps": 0, "weights": (0.5, 2.0), "init": "ones"}
    result = merged(base, prepared, tmp_path, **settings)
    content, style = adapters_of(base)
    name = next(iter(result.layers))
    wanted = 0.5 * content.layers[name].dense() + 2.0 * style.layers[name].dense()
    torch.testing.assert_close(result.layers[name].dense(), wanted)


def test_layers_of_one_side_and_text_layers_survive(
    base: Base, prepared: Path, tmp_path: Path
) -> None:
    content, style = adapters_of(base)
    lonely, *rest = content.layers
    text = {"text_encoder.text_model.encoder.layers.0.self_attn.q_proj": LowRank(
        torch.ones(32, 1), torch.ones(1, 32))}  # fmt: skip
    one = Adapter(content.layers, content.metadata, text)
    two = Adapter({name: style.layers[name] for name in rest}, style.metadata)
    result = merged(base, prepared, tmp_path, one, two, steps=2, bank=2)
    assert set(result.layers) == set(content.layers)
    assert result.layers[lonely].rank == content.layers[lonely].rank
    assert torch.equal(next(iter(result.text_layers.values())).up, torch.ones(32, 1))


def test_truncation_reports_the_lost_energy(base: Base, prepared: Path, tmp_path: Path) -> None:
    result = merged(base, prepared, tmp_path, steps=0, rank=2)
    assert {pair.rank for pair in result.layers.values()} == {2}
    assert 0.0 < result.metadata.config["energy_lost"]["total"] < 1.0


def test_what_cannot_work_is_refused(base: Base, prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(B4MError, match="lstsq"):
        merged(base, prepared, tmp_path, init="prior")
    with pytest.raises(B4MError, match="prepared folder"):
        merged(base, None, tmp_path, steps=1)
    with pytest.raises(B4MError, match="bank=0"):
        merged(base, prepared, tmp_path, bank=0)
    content, style = adapters_of(base)
    nameless = Adapter(content.layers)
    result = merged(base, prepared, tmp_path, nameless, style, steps=0)
    assert result.metadata.style == "stripes"
    other = Adapter(content.layers, Metadata(content="teacup"))
    with pytest.raises(B4MError, match="teacup"):
        merged(base, prepared, tmp_path, other, style, steps=1)


@pytest.mark.parametrize("method", ["ziplora", "duolora"])
def test_gradient_checkpointing_changes_memory_alone(
    method: str, base: Base, prepared: Path, tmp_path: Path
) -> None:
    content, style = adapters_of(base, 3, 4)
    content = replace(content, metadata=Metadata(concept="teapot", stage="content"))
    style = replace(style, metadata=Metadata(concept="stripes", stage="style"))
    results = []
    for wanted in (False, True):
        calls: list[bool] = []
        handle = base.model.mid_block.register_forward_hook(
            lambda module, *_: calls.append(module.gradient_checkpointing)  # noqa: B023
        )
        settings = {"steps": 3, "bank": 3, "gradient_checkpointing": wanted}
        work = tmp_path / str(wanted)
        results.append(runs.merge(method, content, style, base, prepared, work, **settings))
        handle.remove()
        assert any(calls) == wanted
        assert not base.model.mid_block.gradient_checkpointing
    for name, pair in results[0].layers.items():
        assert torch.allclose(pair.up, results[1].layers[name].up, atol=1e-6)
        assert torch.allclose(pair.down, results[1].layers[name].down, atol=1e-6)
