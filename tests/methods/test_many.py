"""Claims of merges of more than two adapters."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import b4m
from b4m.adapters.adapter import Adapter
from b4m.adapters.lowrank import LowRank
from b4m.adapters.metadata import Metadata
from b4m.bases.base import Base
from b4m.errors import B4MError
from b4m.files import read_adapter, write_adapter
from b4m.methods import merge_rule, names
from tests.methods.draws import adapters_of, draw_adapter, draw_as_we_do, draw_pair

CLOSED = ("direct", "svd", "ties", "dare", "nplora", "tsv")
SHAPES = {"a": (20, 30), "b": (24, 24), "c": (32, 12)}
WEIGHTS = (1.0, 0.6, -0.4)


def three(*ranks: int) -> list[Adapter]:
    return [draw_adapter(SHAPES, rank, seed) for seed, rank in enumerate(ranks or (3, 5, 2), 1)]


def dense_sum(adapters: list[Adapter], name: str) -> Tensor:
    total = torch.zeros(SHAPES[name])
    for adapter, weight in zip(adapters, WEIGHTS, strict=True):
        if name in adapter.layers:
            total += weight * adapter.layers[name].dense()
    return total


def test_the_direct_merge_of_three_of_unequal_ranks_is_their_weighted_sum() -> None:
    adapters = three()
    merged = b4m.merge(*adapters, weights=WEIGHTS)
    for name, pair in merged.layers.items():
        torch.testing.assert_close(pair.dense(), dense_sum(adapters, name))
        assert pair.rank == 10


def test_the_svd_merge_of_three_is_the_best_of_its_rank() -> None:
    adapters = three()
    for rank in (0, 4):
        merged = b4m.merge(*adapters, method="svd", weights=WEIGHTS, rank=rank)
        for name, pair in merged.layers.items():
            left, sigma, right = torch.linalg.svd(dense_sum(adapters, name), full_matrices=False)
            k = rank or 5
            best = left[:, :k] @ sigma[:k].diag() @ right[:k]
            torch.testing.assert_close(pair.dense(), best, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "kind", "density"),
    [("ties", "ties", 0.4), ("dare", "dare_linear", 0.6), ("dare", "linear", 1.0)],
)
def test_entrywise_merges_of_three_on_factors_are_pefts(
    method: str, kind: str, density: float
) -> None:
    from peft import LoraConfig, get_peft_model

    adapters = three(4, 4, 4)
    linears = nn.ModuleDict({n: nn.Linear(i, o) for n, (o, i) in SHAPES.items()})
    config = LoraConfig(r=4, lora_alpha=4, target_modules=list(linears))
    model = get_peft_model(linears, config, adapter_name="0")
    for number in "12":
        model.add_adapter(number, config)
    layers = {name: model.base_model.model[name] for name in SHAPES}
    with torch.no_grad():
        for number, adapter in zip("012", adapters, strict=True):
            for name, layer in layers.items():
                layer.lora_A[number].weight.copy_(adapter.layers[name].down)
                layer.lora_B[number].weight.copy_(adapter.layers[name].up)
    draw_as_we_do(model.base_model, layers)
    model.base_model.add_weighted_adapter(
        list("012"), list(WEIGHTS), "m", combination_type=kind, density=density
    )
    merged = b4m.merge(*adapters, method=method, weights=WEIGHTS, density=density, space="factors")
    for name, layer in layers.items():
        theirs = layer.get_delta_weight("m")
        torch.testing.assert_close(merged.layers[name].dense(), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", CLOSED)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_zero_adapter_changes_nothing(method: str, place: int) -> None:
    first, second, third = three()
    adapters = [first, second]
    adapters.insert(place, third.scale(0.0))
    whole = {"density": 1.0} if method == "dare" else {}
    merged = b4m.merge(*adapters, method=method, rank=5, **whole)
    wanted = b4m.merge(first, second, method=method, rank=5, **whole)
    for name, pair in merged.layers.items():
        torch.testing.assert_close(pair.dense(), wanted.layers[name].dense(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", CLOSED)
def test_layers_that_some_adapters_lack_are_merged_of_those_that_have_them(method: str) -> None:
    first, second, third = three()
    first = replace(first, layers={"a": first.layers["a"], "b": first.layers["b"]})
    third = replace(third, layers={"b": third.layers["b"]})
    whole = {"density": 1.0} if method == "dare" else {}
    merged = b4m.merge(first, second, third, method=method, **whole)
    both = b4m.merge(first, second, method=method, **whole)
    torch.testing.assert_close(
        merged.layers["a"].dense(), both.layers["a"].dense(), rtol=1e-4, atol=1e-5
    )
    if method != "ties":  # which trims what is alone, too
        alone = second.layers["c"].dense()
        torch.testing.assert_close(merged.layers["c"].dense(), alone, rtol=1e-4, atol=1e-5)


def refactored(adapter: Adapter, seed: int) -> Adapter:
    """The same dW with other factors, (U G^-1)(G D)."""

    def change(pair: LowRank) -> LowRank:
        generator = torch.Generator().manual_seed(seed + pair.out_features)
        mix = torch.randn(pair.rank, pair.rank, generator=generator, dtype=torch.float64)
        mix += torch.diag(torch.logspace(-1, 1, pair.rank, dtype=torch.float64))
        return LowRank(pair.up @ torch.linalg.inv(mix), mix @ pair.down)

    return adapter.mapped(lambda pair: change(pair.to(torch.float64)))


@pytest.mark.parametrize("method", CLOSED)
@pytest.mark.parametrize("settings", [{}, {"rank": 3, "auto_strength": True}])
def test_a_merge_of_three_depends_on_the_adapters_and_not_on_their_factorisation(
    method: str, settings: dict[str, object]
) -> None:
    adapters = [adapter.mapped(lambda pair: pair.to(torch.float64)) for adapter in three()]
    plain = b4m.merge(*adapters, method=method, weights=WEIGHTS, **settings)
    others = [refactored(adapter, k) for k, adapter in enumerate(adapters)]
    other = b4m.merge(*others, method=method, weights=WEIGHTS, **settings)
    for name, pair in plain.layers.items():
        assert (pair - other.layers[name]).norm() / pair.norm() < 1e-5


def test_the_order_of_adapters_matters_to_nplora_alone() -> None:
    adapters = three()
    for method in ("direct", "svd", "ties", "tsv", "nplora"):
        plain = b4m.merge(*adapters, method=method)
        turned = b4m.merge(*adapters[::-1], method=method)
        same = all(
            (pair - turned.layers[name]).norm() < 1e-4 * pair.norm()
            for name, pair in plain.layers.items()
        )
        assert same == (method != "nplora"), method


@pytest.mark.parametrize("method", CLOSED)
def test_a_weight_of_a_part_reaches_its_layers_alone(method: str) -> None:
    text = {"text_encoder.x": draw_pair(8, 8, 2, 5)}
    adapters = [replace(adapter, text_layers=text) for adapter in three()]
    kept = {"density": 1.0} if method in ("ties", "dare") else {}
    plain = b4m.merge(*adapters, method=method, **kept)
    silent = b4m.merge(
        *adapters, method=method, weights=["1", "text_encoder=0", "text_encoder=0"], **kept
    )
    for name, pair in plain.layers.items():
        torch.testing.assert_close(silent.layers[name].dense(), pair.dense())
    own = text["text_encoder.x"].dense()
    left = silent.text_layers["text_encoder.x"].dense()
    if method == "ties":
        left = 3 * left  # the mean of those who agree
    if method == "nplora":
        left = left * 1.5  # softly kept off what the others would read
    torch.testing.assert_close(left, own, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", sorted({*names("file")} - {*CLOSED, "ssr"}))
def test_a_method_of_two_refuses_three_in_one_sentence(method: str) -> None:
    with pytest.raises(B4MError, match=f"{method} merges two adapters, .* not 3; .* ssr, tsv"):
        b4m.merge("a", "b", "c", method=method)
    with pytest.raises(B4MError, match="two adapters or more, not 1"):
        b4m.merge("a", method=method)


def test_metadata_of_three_name_all_and_keep_each_trigger() -> None:
    own = [
        Metadata(stage="content", concept="fox", content="fox", triggers={"content": "snq"}),
        Metadata(stage="style", concept="ink", style="ink", triggers={"style": "w@z"}),
        Metadata(stage="style", concept="wool", style="wool", triggers={"style": "yrn"}),
    ]
    adapters = [replace(one, metadata=said) for one, said in zip(three(), own, strict=True)]
    said = b4m.merge(*adapters, weights="1, 1, 0.5 a=2").metadata
    assert (said.concept, said.content, said.style) == ("fox+ink+wool", "fox", "ink")
    assert said.triggers == {"content": "snq", "style": "w@z yrn"}
    assert said.config["settings"]["weights"] == ["1", "1", "0.5 a=2"]


def test_ssr_of_three_on_a_base_is_refused_without_names_and_else_passes_a_zero_one_by(
    base: Base, prepared: Path, tmp_path: Path
) -> None:
    content, style = adapters_of(base)
    with pytest.raises(B4MError, match="adapter 3 does not say that it is of one content or one"):
        b4m.merge(
            content, style, replace(content, metadata=Metadata()),
            method="ssr", base=base, data=prepared,
        )  # fmt: skip
    other = draw_adapter(
        {name: pair.shape for name, pair in style.layers.items()}, 2, 9, style.metadata, 0.3
    )
    settings: dict[str, object] = {"bank": 2}

    def merged(*adapters: Adapter) -> Adapter:
        return b4m.merge(*adapters, method="ssr", base=base, data=prepared, **settings)

    both, three, with_zero = (
        merged(content, style),
        merged(content, style, other),
        merged(content, style, other.scale(0.0)),
    )
    for name, pair in both.layers.items():
        torch.testing.assert_close(with_zero.layers[name].dense(), pair.dense())
        assert three.layers[name].rank == 9
        assert (three.layers[name] - pair).norm() > 1e-2 * pair.norm()
    settings["anchor"] = 1e9
    total = content + style + other
    for name, pair in merged(content, style, other).layers.items():
        assert (pair - total.layers[name]).norm() < 1e-4 * pair.norm()


def test_files_of_three_tools_merge(files: list[Path]) -> None:
    merged = b4m.merge(*files, weights=[1, 0.5, "0.25 to_q=0"])
    parts = [read_adapter(file) for file in files]
    for name, pair in merged.layers.items():
        weights = (1.0, 0.5, 0.0 if name.endswith("to_q") else 0.25)
        wanted = sum(w * part.layers[name].dense() for w, part in zip(weights, parts, strict=True))
        torch.testing.assert_close(pair.dense(), wanted)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    block = "up_blocks.0.attentions.1.transformer_blocks.0.attn1"
    shapes = {f"{block}.to_q": (8, 6), f"{block}.to_v": (8, 6)}
    return [
        write_adapter(tmp_path / f"{form}.safetensors", draw_adapter(shapes, 2 + k, k), form)
        for k, form in enumerate(("kohya", "diffusers", "comfyui"))
    ]


def test_every_rule_of_any_number_is_tried_here() -> None:
    several = [name for name in names("file") if not merge_rule(name).of_two]
    assert sorted(several) == sorted([*CLOSED, "ssr"])
