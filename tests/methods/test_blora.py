"""B-LoRA trains one attention group per kind and puts the two side by side."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from b4m.adapters.adapter import Adapter
from b4m.adapters.lowrank import LowRank
from b4m.bases.base import Base
from b4m.errors import B4MError
from b4m.methods import blora
from tests import runs

FAST = {"rank": 2, "steps": 2, "batch_size": 1, "accumulation": 1}
GROUPS = {"content": "up_blocks.0.attentions.0.", "style": "up_blocks.0.attentions.1."}


def everywhere(base: Base, seed: int) -> Adapter:
    """Random pairs on every linear."""
    generator = torch.Generator().manual_seed(seed)
    return Adapter(
        {
            name: LowRank(
                torch.randn(linear.out_features, 3, generator=generator),
                torch.randn(3, linear.in_features, generator=generator),
            )
            for name, linear in base.linears().items()
        }
    )


@pytest.mark.parametrize(("kind", "concept"), [("content", "teapot"), ("style", "stripes")])
def test_training_touches_only_the_group_of_its_kind(
    base: Base, prepared: Path, tmp_path: Path, kind: str, concept: str
) -> None:
    adapter = runs.train("blora", kind, prepared, concept, base, tmp_path, **FAST)
    of_group = {n for n in base.linears() if n.startswith(GROUPS[kind])}
    assert set(adapter.layers) == of_group
    narrowed = runs.train("blora", kind, prepared, concept, base, tmp_path, **FAST, blocks="attn2")
    assert set(narrowed.layers) == {name for name in of_group if ".attn2." in name}


def test_the_merge_takes_each_group_from_its_file_and_nothing_else(base: Base) -> None:
    content, style = everywhere(base, 0), everywhere(base, 1)
    merged = runs.merge("blora", content, style, weights=(0.5, 2.0))
    assert {name[: len(GROUPS["content"])] for name in merged.layers} == set(GROUPS.values())
    for name, pair in merged.layers.items():
        source, weight = (content, 0.5) if name.startswith(GROUPS["content"]) else (style, 2.0)
        torch.testing.assert_close(pair.dense(), weight * source.layers[name].dense())
    assert merged.metadata.method == "blora"
    assert merged.metadata.rank == 3


def test_a_file_without_its_group_is_refused(base: Base) -> None:
    content = everywhere(base, 0)
    style = Adapter({n: p for n, p in content.layers.items() if n.startswith(GROUPS["content"])})
    with pytest.raises(B4MError, match="style adapter has no layer in up_blocks.0.attentions.1"):
        runs.merge("blora", content, style)


def test_other_kinds_are_refused(base: Base, prepared: Path, tmp_path: Path) -> None:
    run = runs.open_run("blora", "content", prepared, "teapot", base, tmp_path, **FAST)
    with pytest.raises(B4MError, match="content or style, not 'joint'"):
        blora.train(replace(run, kind="joint"))
