"""Claims of merges where nothing meets: adapters that share no layer, as two B-LoRAs do."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from b4m.adapters.adapter import Adapter
from b4m.bases.base import Base
from b4m.bases.sampling import attached
from b4m.methods import METHODS, sampler
from b4m.settings import resolve
from tests import runs
from tests.methods.draws import adapters_of

LEARNED = {
    "ziplora": [{"axis": "columns"}, {"axis": "rows"}, {"init": "lstsq"}],
    "duolora": [{"init": "prior"}, {"init": "ones"}, {"init": "lstsq"}],
    "ssr": [{}],
}
CLOSED = [name for name, row in METHODS.items() if row.result == "file" and not row.learned]


def disjoint(base: Base) -> tuple[Adapter, Adapter]:
    """Content on B-LoRA's content block alone, style on its style block."""
    halves = []
    for kind, one in zip(("content", "style"), adapters_of(base), strict=True):
        group = base.family.block_groups[f"blora-{kind}"]
        layers = {name: one.layers[name] for name in base.family.select(one.layers, group)}
        halves.append(replace(one, layers=layers))
    return halves[0], halves[1]


@pytest.mark.parametrize(
    ("method", "settings"), [(name, one) for name, ways in LEARNED.items() for one in ways]
)
def test_a_learned_merge_of_adapters_without_a_common_layer_keeps_both(
    method: str, settings: dict[str, object], base: Base, prepared: Path, tmp_path: Path
) -> None:
    content, style = disjoint(base)
    few = {"bank": 2} if method == "ssr" else {"bank": 2, "steps": 2}
    merged = runs.merge(method, content, style, base, prepared, tmp_path, **few, **settings)
    assert merged.layers.keys() == content.layers.keys() | style.layers.keys()
    for name, pair in merged.layers.items():
        source = content.layers.get(name) or style.layers[name]
        assert pair.rank == source.rank
        assert 0 < pair.norm() < float("inf")


@pytest.mark.parametrize("method", CLOSED)
def test_a_closed_merge_of_adapters_without_a_common_layer_is_both(method: str, base: Base) -> None:
    content, style = disjoint(base)
    whole = {"density": 1.0} if method in ("ties", "dare") else {}
    merged = runs.merge(method, content, style, **whole)
    assert merged.layers.keys() == content.layers.keys() | style.layers.keys()
    for name, pair in merged.layers.items():
        source = content.layers.get(name) or style.layers[name]
        torch.testing.assert_close(pair.dense(), source.dense())


def test_klora_takes_each_layer_from_the_adapter_that_has_it(base: Base) -> None:
    content, style = disjoint(base)
    settings = resolve(sampler("klora").settings, {}, method="klora")
    attachment, choose = sampler("klora").sampler(content, style, base, settings)
    with attached(base, attachment) as adapted:
        for step in (0, settings.steps - 1):
            choose(step, adapted)
            for name, delta in attachment.deltas.items():
                assert delta.selected == ("content" if name in content.layers else "style")
