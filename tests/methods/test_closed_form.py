"""Claims of the merges without training: direct, svd, ties, dare, nplora, tsv."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from b4m.adapters.adapter import Adapter
from b4m.adapters.lowrank import LowRank
from b4m.adapters.metadata import Metadata
from b4m.adapters.truncation import side_by_side
from b4m.bases.base import Base
from b4m.errors import B4MError
from b4m.files import read_adapter, write_adapter
from tests import runs
from tests.methods.draws import (
    adapters_of,
    dense_weights,
    draw_adapter,
    draw_as_we_do,
    draw_pair,
    look,
)

CLOSED = ("direct", "svd", "ties", "dare", "nplora", "tsv")
THINNING = ("ties", "dare")
SHAPES = {"a": (20, 30), "b": (24, 24), "c": (32, 12)}


def pair_of_adapters(content_rank: int = 4, style_rank: int = 4) -> tuple[Adapter, Adapter]:
    return draw_adapter(SHAPES, content_rank, 1), draw_adapter(SHAPES, style_rank, 2)


def peft_merge(
    content: Adapter, style: Adapter, kind: str, weights: list[float], density: float, rank: int
) -> dict[str, Tensor]:
    """The dense dW that PEFT's add_weighted_adapter makes of two adapters with alpha = rank."""
    from peft import LoraConfig, get_peft_model

    linears = nn.ModuleDict(
        {
            name: nn.Linear(pair.in_features, pair.out_features)
            for name, pair in content.layers.items()
        }
    )
    config = LoraConfig(r=4, lora_alpha=4, target_modules=list(linears))
    model = get_peft_model(linears, config, adapter_name="content")
    model.add_adapter("style", config)
    layers = {name: model.base_model.model[name] for name in linears}
    with torch.no_grad():
        for which, adapter in (("content", content), ("style", style)):
            for name, layer in layers.items():
                layer.lora_A[which].weight.copy_(adapter.layers[name].down)
                layer.lora_B[which].weight.copy_(adapter.layers[name].up)
    draw_as_we_do(model.base_model, layers)
    model.base_model.add_weighted_adapter(
        ["content", "style"], weights, "m", combination_type=kind, density=density, svd_rank=rank
    )
    return {name: layer.get_delta_weight("m") for name, layer in layers.items()}


@pytest.mark.parametrize(
    ("method", "kind", "density", "rank"),
    [
        ("direct", "cat", None, None),
        ("svd", "svd", None, 3),
        ("svd", "svd", None, None),
        ("ties", "ties", 0.3, None),
        ("ties", "ties", 0.5, None),
        ("dare", "dare_linear", 0.6, None),
        ("dare", "linear", 1.0, None),
    ],
)
@pytest.mark.parametrize("weights", [[1.0, 1.0], [0.7, 1.6], [1.0, -0.5]])
def test_dense_result_is_pefts(
    method: str, kind: str, density: float | None, rank: int | None, weights: list[float]
) -> None:
    content, style = pair_of_adapters()
    settings = {"weights": weights}
    settings |= {"density": density, "space": "factors"} if density else {}
    settings |= {"rank": rank} if rank else {}
    ours = runs.merge(method, content, style, **settings)
    theirs = peft_merge(content, style, kind, weights, density or 0.5, rank or 4)
    for name, pair in ours.layers.items():
        torch.testing.assert_close(pair.dense(), theirs[name], rtol=1e-5, atol=1e-5)


def test_direct_merge_is_the_weighted_sum_without_pefts_cross_terms() -> None:
    content, style = pair_of_adapters(3, 5)
    result = runs.merge("direct", content, style, weights=(2.0, -0.5))
    for name, pair in result.layers.items():
        wanted = 2.0 * content.layers[name].dense() - 0.5 * style.layers[name].dense()
        torch.testing.assert_close(pair.dense(), wanted)
        assert pair.rank == 8


def test_svd_keeps_the_dense_singular_values_and_reports_the_lost_energy() -> None:
    content, style = pair_of_adapters(3, 5)
    result = runs.merge("svd", content, style, rank=2)
    energy = lost = 0.0
    worst = 0.0
    for name, pair in result.layers.items():
        dense = content.layers[name].dense() + style.layers[name].dense()
        left, sigma, right = torch.linalg.svd(dense.double())
        torch.testing.assert_close(pair.singular_values().double(), sigma[:2], rtol=1e-5, atol=1e-5)
        best = left[:, :2] @ sigma[:2].diag() @ right[:2]
        torch.testing.assert_close(pair.dense().double(), best, rtol=1e-5, atol=1e-5)
        squares = sigma.square()
        energy, lost = energy + float(squares.sum()), lost + float(squares[2:].sum())
        worst = max(worst, float(squares[2:].sum() / squares.sum()))
    said = result.metadata.config["energy_lost"]
    assert said["total"] == pytest.approx(lost / energy, rel=1e-4)
    assert said["worst_layer"] == pytest.approx(worst, rel=1e-4)
    assert result.metadata.rank == 2


@pytest.mark.parametrize("method", CLOSED)
def test_every_merge_can_be_truncated_and_says_what_it_lost(method: str) -> None:
    content, style = pair_of_adapters()
    dense = {"density": 0.9} if method in THINNING else {}
    whole = runs.merge(method, content, style, rank=0, **dense)
    cut = runs.merge(method, content, style, rank=2, **dense)
    assert {pair.rank for pair in cut.layers.values()} == {2}
    assert 0.0 < cut.metadata.config["energy_lost"]["total"] < 1.0
    if method != "svd":
        assert "energy_lost" not in whole.metadata.config


@pytest.mark.parametrize("method", CLOSED)
def test_rank_never_exceeds_the_sum_of_ranks(method: str) -> None:
    content, style = pair_of_adapters(3, 5)
    for pair in runs.merge(method, content, style).layers.values():
        assert pair.rank <= 8


@pytest.mark.parametrize("method", CLOSED)
def test_a_layer_of_one_side_alone_is_kept_and_text_layers_too(method: str) -> None:
    content, style = pair_of_adapters(3, 5)
    only_content = {name: pair for name, pair in content.layers.items() if name != "b"}
    only_style = {name: pair for name, pair in style.layers.items() if name != "a"}
    text = {"text_encoder.layer": draw_pair(8, 8, 2, 5)}
    whole = {"density": 1.0} if method in THINNING else {}
    both = Adapter(only_content), Adapter(only_style, text_layers=text)
    result = runs.merge(method, *both, **whole)
    torch.testing.assert_close(result.layers["a"].dense(), content.layers["a"].dense())
    torch.testing.assert_close(result.layers["b"].dense(), style.layers["b"].dense())
    kept = result.text_layers["text_encoder.layer"].dense()
    torch.testing.assert_close(kept, text["text_encoder.layer"].dense())


def test_hard_projection_is_orthogonal_to_the_styles_row_space_and_leaves_style_alone() -> None:
    content, style = pair_of_adapters(3, 5)
    result = runs.merge("nplora", content, style, projection="hard")
    for name, pair in result.layers.items():
        of_style = style.layers[name]
        projected = pair.dense() - of_style.dense()
        assert (projected @ of_style.down.T).abs().max() < 1e-5
        reads = torch.linalg.qr(of_style.down.T).Q[:, 0]
        torch.testing.assert_close(pair.apply(reads), of_style.apply(reads), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mu", [0.0, 0.5, 3.0])
def test_soft_projection_is_the_papers_formula_and_minimises_its_objective(mu: float) -> None:
    content, style = pair_of_adapters(3, 5)
    result = runs.merge("nplora", content, style, mu=mu)
    for name, pair in result.layers.items():
        c, s = content.layers[name].dense(), style.layers[name].dense()
        basis = torch.linalg.qr(style.layers[name].down.T).Q
        projector = basis @ basis.T
        wanted = s + c @ (torch.eye(len(projector)) - mu / (1 + mu) * projector)
        torch.testing.assert_close(pair.dense(), wanted, rtol=1e-5, atol=1e-5)
        x = (pair.dense() - s).requires_grad_()
        ((x - c).square().sum() + mu * (x @ projector).square().sum()).backward()
        assert x.grad is not None
        assert x.grad.abs().max() < 1e-4


def test_dare_draws_are_repeatable_and_keep_the_expectation() -> None:
    content, style = pair_of_adapters()
    first, again, other = (runs.merge("dare", content, style, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first.layers["a"].up, again.layers["a"].up)
    assert not torch.equal(first.layers["a"].up, other.layers["a"].up)
    whole = runs.merge("dare", content, style, density=1.0).layers["a"].dense()
    draws = [
        runs.merge("dare", content, style, density=0.8, seed=seed).layers["a"].dense()
        for seed in range(300)
    ]
    mean, spread = torch.stack(draws).mean(0), torch.stack(draws).std(0)
    assert ((mean - whole).abs() < 5 * spread / 300**0.5 + 1e-6).all()


@pytest.mark.parametrize("method", CLOSED)
def test_exported_file_gives_the_output_of_dense_weights(
    method: str, base: Base, tmp_path: Path
) -> None:
    content, style = adapters_of(base)
    result = runs.merge(method, content, style)
    file = write_adapter(tmp_path / "merged.safetensors", result)
    with dense_weights(base, {name: pair.dense() for name, pair in result.layers.items()}):
        live = look(base, None)
    difference = (look(base, read_adapter(file)) - live).abs().max()
    assert difference <= 1e-5
    assert (live - look(base, None)).abs().max() > 1e-2


def test_metadata_names_both_concepts_and_all_settings() -> None:
    content = Adapter(
        {"a": draw_pair(4, 4, 2, 0)},
        Metadata(content="teapot", triggers={"content": "snq"}, base_hash="f00", base_id="b"),
    )
    style = Adapter(
        {"a": draw_pair(4, 4, 2, 1)},
        Metadata(style="ink", triggers={"any": "w@z"}, class_words={"style": "ink"}),
    )
    said = runs.merge("direct", content, style, weights=(1, 0.5)).metadata
    assert (said.method, said.stage, said.concept) == ("direct", "merged", "teapot+ink")
    assert said.triggers == {"content": "snq", "style": "w@z"}
    assert (said.base_hash, said.rank) == ("f00", 4)
    assert said.config["settings"]["weights"] == ["1", "0.5"]


@pytest.mark.parametrize(
    ("method", "settings", "words"),
    [
        ("ties", {"density": 0.0}, "density=0.0 must be more than 0"),
        ("dare", {"density": 1.5}, "density=1.5 must be 1 or less"),
        ("nplora", {"mu": -1.0}, "mu=-1.0 must be 0 or more"),
    ],
)
def test_settings_out_of_range_are_refused(
    method: str, settings: dict[str, float], words: str
) -> None:
    content, style = pair_of_adapters()
    with pytest.raises(B4MError, match=words):
        runs.merge(method, content, style, **settings)


@pytest.mark.parametrize("method", CLOSED)
def test_adapters_of_two_bases_are_refused(method: str) -> None:
    content, style = pair_of_adapters()
    wrong = Adapter({**style.layers, "b": draw_pair(24, 25, 2, 9)})
    with pytest.raises(B4MError, match="b is 24 x 24 in the content adapter and 24 x 25"):
        runs.merge(method, content, wrong)
    one, two = (Metadata(base_hash=digest, base_id="some") for digest in ("aa", "bb"))
    with pytest.raises(B4MError, match="base"):
        runs.merge(method, Adapter(content.layers, one), Adapter(style.layers, two))


def test_zero_adapters_merge_to_zero() -> None:
    zero = Adapter({"a": LowRank(torch.zeros(4, 2), torch.zeros(2, 5))})
    for method in CLOSED:
        result = runs.merge(method, zero, zero, rank=1)
        assert result.layers["a"].dense().abs().max() == 0.0


def test_layers_side_by_side_keep_their_order_and_the_number_of_threads() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        seen = side_by_side(
            lambda name: (name, torch.get_num_threads()), [str(n) for n in range(40)]
        )
        assert [name for name, _ in seen] == [str(n) for n in range(40)]
        assert {threads for _, threads in seen} == {1}, "a layer's matrices are for one thread"
        assert torch.get_num_threads() == 3
        with pytest.raises(ZeroDivisionError):
            side_by_side(lambda name: 1 // int(name), ["1", "0", "1", "1", "1", "1"])
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
