"""Break trains one half with the other's frozen blocks untouched; make joins and trains both."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from b4m.adapters.adapter import Adapter
from b4m.adapters.attach import AdaptedModel
from b4m.adapters.deltas import PLP
from b4m.adapters.lowrank import LowRank
from b4m.adapters.routed import GradientRouted
from b4m.bases.base import Base
from b4m.data.manifest import partner_rows, read_manifest, write_manifest
from b4m.errors import B4MError
from b4m.files import read_adapter, write_adapter
from b4m.merging.context import MergeContext
from b4m.methods import break_for_make
from b4m.methods.break_for_make import (
    BreakSettings,
    MakeSettings,
    joined,
    main_factor,
)
from b4m.training.losses import Noise, denoising_losses
from tests import runs

FAST = {
    "rank": 4,
    "steps": 6,
    "batch_size": 2,
    "accumulation": 1,
    "lr": 1e-2,
    "lr_other": 1e-3,
    "weight_decay": 0.5,
}
SETTINGS = BreakSettings(**FAST)


class Stop(Exception):
    """Ends a run where a test wants it."""


class StopAtReport:
    """A tracker that ends the run at its first report, after 10 steps."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        raise Stop

    def image(self, name: str, image: object, step: int) -> None:
        raise Stop


def start_of(base: Base, name: str, settings: BreakSettings) -> PLP:
    """The frozen blocks that a layer must have; the learnable ones are another draw."""
    linear = base.linears()[name]
    return PLP.start(
        linear.out_features,
        linear.in_features,
        settings.rank,
        torch.Generator().manual_seed(123),
        layer=name,
        basis_seed=settings.basis_seed,
        split=settings.split,
        scale=settings.basis_scale,
    )


@pytest.fixture(scope="module")
def halves(
    base: Base, prepared: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Adapter]:
    """A content and a style half on one basis."""
    work = tmp_path_factory.mktemp("work")
    names = {"content": "teapot", "style": "stripes"}
    return {
        kind: runs.train("b4m", kind, prepared, name, base, work, **FAST)
        for kind, name in names.items()
    }


def context(base: Base, data: Path, work: Path, **settings: object) -> MergeContext[MakeSettings]:
    chosen = MakeSettings(**{"steps": 4, "accumulation": 1, **settings})
    return MergeContext(chosen, base, data, work)


@pytest.mark.parametrize("kind", ["content", "style"])
def test_frozen_blocks_keep_their_bits_under_weight_decay(
    base: Base, halves: dict[str, Adapter], kind: str
) -> None:
    assert set(halves[kind].layers) == set(base.linears())
    for name, pair in halves[kind].layers.items():
        begun, ended = start_of(base, name, SETTINGS), PLP.cut(pair, SETTINGS.split)
        assert torch.equal(ended.up_frozen, begun.up_frozen)
        assert torch.equal(ended.down_frozen, begun.down_frozen)
        assert ended.up_learnable.abs().sum() > 0, "partners train the other block too"


@pytest.mark.parametrize("kind", ["content", "style"])
def test_optimizer_state_exists_for_learnable_blocks_only(
    base: Base, prepared: Path, tmp_path: Path, kind: str
) -> None:
    settings = {**FAST, "steps": 20, "checkpoint_every": 5}
    concept = {"content": "teapot", "style": "stripes"}[kind]
    with pytest.raises(Stop):
        runs.train("b4m", kind, prepared, concept, base, tmp_path, StopAtReport(), **settings)
    (path,) = tmp_path.glob("checkpoint-*.pt")
    checkpoint = torch.load(path, weights_only=True)
    linears = base.linears().values()
    share = sum(4 * (m.out_features + m.in_features) // 2 for m in linears)  # half of each factor
    assert sum(value.numel() for value in checkpoint["parameters"].values()) == share
    for moment in ("exp_avg", "exp_avg_sq"):
        states = [state for one in checkpoint["optimizers"] for state in one["state"].values()]
        assert sum(state[moment].numel() for state in states) == share


@pytest.mark.parametrize("main", ["down", "up"])
def test_one_backward_gives_each_block_its_own_examples_gradient(base: Base, main: str) -> None:
    generator = torch.Generator().manual_seed(0)
    plps = {name: start_of(base, name, SETTINGS) for name in base.linears()}
    for plp in plps.values():
        nn.init.normal_(plp.up_learnable, std=0.1, generator=generator)
    x0 = torch.randn(3, 4, 8, 8, generator=generator)
    noise = Noise.sample(base, 3, generator)
    text = base.encode_prompts(["a snq cat", "a car in w@z style", "a cat in w@z style"])

    def losses(deltas: Mapping[str, nn.Module]) -> Tensor:
        model = AdaptedModel(base.model, deltas)
        try:
            return denoising_losses(model, base, x0, noise, text)
        finally:
            model.remove()

    routed_B = losses({name: GradientRouted(plp, main, 1) for name, plp in plps.items()})
    (routed_B[0] + routed_B[1:].mean()).backward()
    plain_B = losses(plps)
    torch.testing.assert_close(routed_B, plain_B, rtol=1e-5, atol=1e-6)
    downs = [plp.down_learnable for plp in plps.values()]
    ups = [plp.up_learnable for plp in plps.values()]
    of_main, of_other = (downs, ups) if main == "down" else (ups, downs)
    wanted_main = torch.autograd.grad(plain_B[0], of_main, retain_graph=True)
    wanted_other = torch.autograd.grad(plain_B[1:].mean(), of_other)
    for parameters, wanted in ((of_main, wanted_main), (of_other, wanted_other)):
        for parameter, gradient in zip(parameters, wanted, strict=True):
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(
    ("kind", "role", "factor"),
    [
        ("content", "content-down", "down"),
        ("style", "content-down", "up"),
        ("content", "content-up", "up"),
        ("style", "content-up", "down"),
    ],
)
def test_partners_alone_do_not_move_the_main_block(
    base: Base, prepared: Path, tmp_path: Path, kind: str, role: str, factor: str
) -> None:
    """With the main rate at 0 only partners act; with the other rate at 0 only main pictures."""
    assert main_factor(kind, role) == factor
    concept = {"content": "teapot", "style": "stripes"}[kind]
    trained = {}
    for moved, rates in (("other", (0.0, 1e-2)), ("main", (1e-2, 0.0)), ("none", (0.0, 0.0))):
        work = tmp_path / moved
        run = runs.open_run("b4m", kind, prepared, concept, base, work, **FAST | {"role": role})
        # A rate of 0 is out of range for users.
        update = {"steps": 2, "lr": rates[0], "lr_other": rates[1]}
        run = replace(run, settings=run.settings.model_copy(update=update))
        trained[moved] = break_for_make.train(run)
    name = next(iter(trained["none"].layers))
    still = PLP.cut(trained["none"].layers[name], 0.5)
    main = f"{factor}_learnable"
    other = "up_learnable" if factor == "down" else "down_learnable"
    for moved, kept, changed in (("other", main, other), ("main", other, main)):
        ended = PLP.cut(trained[moved].layers[name], 0.5)
        assert torch.equal(getattr(ended, kept), getattr(still, kept))
        assert not torch.equal(getattr(ended, changed), getattr(still, changed))


def test_without_partners_only_the_main_block_learns(
    base: Base, prepared: Path, tmp_path: Path
) -> None:
    import shutil

    alone = Path(shutil.copytree(prepared, tmp_path / "data"))
    rows = read_manifest(alone)
    write_manifest(alone, [row for row in rows if row.role != "partner"])
    assert not partner_rows(read_manifest(alone), "content")
    adapter = runs.train("b4m", "content", alone, "teapot", base, tmp_path / "work", **FAST)
    assert all(not PLP.cut(pair, 0.5).up_learnable.any() for pair in adapter.layers.values())


def test_the_file_says_how_the_half_was_broken(
    halves: dict[str, Adapter], base: Base, tmp_path: Path
) -> None:
    path = write_adapter(tmp_path / "content.safetensors", halves["content"])
    said = read_adapter(path).metadata
    assert (said.method, said.stage, said.concept) == ("b4m", "content", "teapot")
    assert (said.rank, said.split, said.role, said.basis_seed) == (4, 0.5, "content-down", 0)
    assert said.triggers == {"content": "snq"}
    assert said.class_words == {"content": "teapot"}
    assert (said.base_id, said.base_hash) == (base.id, base.hash)
    assert len(said.data_hash) == 64
    assert said.code_version
    assert said.config["settings"]["weight_decay"] == 0.5


@pytest.mark.parametrize("role", ["content-down", "content-up"])
def test_make_starts_at_exactly_the_two_halves(
    base: Base, prepared: Path, tmp_path: Path, role: str
) -> None:
    settings = {**FAST, "steps": 2, "role": role}
    content = runs.train("b4m", "content", prepared, "teapot", base, tmp_path, **settings)
    style = runs.train("b4m", "style", prepared, "stripes", base, tmp_path, **settings)
    files = [
        read_adapter(write_adapter(tmp_path / f"{index}.safetensors", adapter))
        for index, adapter in enumerate((content, style))
    ]
    merged = break_for_make.merge(*files, context(base, prepared, tmp_path, steps=0))
    for name, pair in merged.layers.items():
        ours, theirs = PLP.cut(content.layers[name], 0.5), PLP.cut(style.layers[name], 0.5)
        up_half, down_half = (theirs, ours) if role == "content-down" else (ours, theirs)
        joint = PLP.cut(pair, 0.5)
        assert torch.equal(joint.up_frozen, ours.up_frozen)
        assert torch.equal(joint.down_frozen, ours.down_frozen)
        assert torch.equal(joint.up_learnable, up_half.up_learnable)
        assert torch.equal(joint.down_learnable, down_half.down_learnable)


def test_make_trains_both_halves_and_keeps_frozen_blocks_and_rank(
    base: Base, prepared: Path, halves: dict[str, Adapter], tmp_path: Path
) -> None:
    content, style = halves["content"], halves["style"]
    merged = break_for_make.merge(content, style, context(base, prepared, tmp_path, lr=1e-2))
    begun = joined(content, style)
    for name, pair in merged.layers.items():
        ended = PLP.cut(pair, 0.5)
        assert pair.rank == 4
        assert torch.equal(ended.up_frozen, begun[name].up_frozen)
        assert torch.equal(ended.down_frozen, begun[name].down_frozen)
        assert not torch.equal(ended.up_learnable, begun[name].up_learnable)
        assert not torch.equal(ended.down_learnable, begun[name].down_learnable)
    said = merged.metadata
    assert (said.method, said.stage, said.concept) == ("b4m", "merged", "teapot+stripes")
    assert (said.content, said.style, said.rank) == ("teapot", "stripes", 4)
    assert (said.basis_seed, said.split, said.role) == (0, 0.5, "content-down")
    assert said.triggers == {"content": "snq", "style": "w@z"}
    assert said.base_hash == base.hash


@pytest.mark.parametrize("preconditioner", ["riemannian", "plain"])
def test_make_lowers_the_loss_on_both_references(
    base: Base,
    prepared: Path,
    halves: dict[str, Adapter],
    tmp_path: Path,
    loss_of: Callable[..., float],
    preconditioner: str,
) -> None:
    begun, ended = (
        break_for_make.merge(
            halves["content"],
            halves["style"],
            context(base, prepared, tmp_path, lr=1e-2, steps=steps, preconditioner=preconditioner),
        )
        for steps in (0, 30)
    )
    for kind, concept in (("content", "teapot"), ("style", "stripes")):
        assert loss_of(kind, concept, ended) < loss_of(kind, concept, begun) - 1e-3


def test_the_preconditioner_acts(
    base: Base, prepared: Path, halves: dict[str, Adapter], tmp_path: Path
) -> None:
    results = {
        kind: break_for_make.merge(
            halves["content"],
            halves["style"],
            context(base, prepared, tmp_path, preconditioner=kind, lr=1e-2),
        )
        for kind in ("riemannian", "plain")
    }
    name = next(iter(results["plain"].layers))
    ours, theirs = (results[kind].layers[name] for kind in ("riemannian", "plain"))
    assert not torch.allclose(ours.up, theirs.up, atol=1e-3)
    assert not torch.allclose(ours.down, theirs.down, atol=1e-3)


def test_make_is_repeatable(
    base: Base, prepared: Path, halves: dict[str, Adapter], tmp_path: Path
) -> None:
    files = []
    for name in ("a", "b"):
        merged = break_for_make.merge(
            halves["content"], halves["style"], context(base, prepared, tmp_path / name)
        )
        files.append(write_adapter(tmp_path / f"{name}.safetensors", merged).read_bytes())
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"basis_seed": 7}, "content was broken with basis_seed 0, style with basis_seed 7"),
        ({"rank": 2}, "content was broken with rank 4, style with rank 2"),
        ({"split": 0.25}, "content was broken with split 0.5, style with split 0.25"),
        ({"role": "content-up"}, "with role content-down, style with role content-up"),
        ({"basis_scale": 0.5}, "not broken on the same orthogonal basis"),
    ],
)
def test_make_refuses_halves_that_do_not_fit(
    base: Base,
    prepared: Path,
    halves: dict[str, Adapter],
    tmp_path: Path,
    change: dict[str, object],
    message: str,
) -> None:
    settings = {**FAST, "steps": 1, **change}
    style = runs.train("b4m", "style", prepared, "stripes", base, tmp_path, **settings)
    with pytest.raises(B4MError, match=message):
        break_for_make.merge(halves["content"], style, context(base, prepared, tmp_path))


def test_make_refuses_what_are_no_halves(
    base: Base, prepared: Path, halves: dict[str, Adapter], tmp_path: Path
) -> None:
    content, style = halves["content"], halves["style"]
    around = context(base, prepared, tmp_path)
    with pytest.raises(B4MError, match="needs a content adapter .*, not a b4m style adapter"):
        break_for_make.merge(style, content, around)
    plain = replace(content, metadata=replace(content.metadata, method="lora"))
    with pytest.raises(B4MError, match="with method b4m, not a lora content adapter"):
        break_for_make.merge(plain, style, around)
    elsewhere = replace(style, metadata=replace(style.metadata, base_hash="0" * 64, base_id="x"))
    with pytest.raises(B4MError, match="adapters fit only the base"):
        break_for_make.merge(content, elsewhere, around)
    fewer = replace(style, layers=dict(list(style.layers.items())[1:]))
    with pytest.raises(B4MError, match="only one of the two halves has the layer"):
        break_for_make.merge(content, fewer, around)
    name, pair = next(iter(style.layers.items()))
    moved = LowRank(pair.up * 1.001, pair.down)
    forged = replace(style, layers={**style.layers, name: moved})
    with pytest.raises(B4MError, match="not broken on the same orthogonal basis"):
        break_for_make.merge(content, forged, around)


def test_make_refuses_another_base_and_missing_data(
    base: Base, prepared: Path, halves: dict[str, Adapter], tmp_path: Path
) -> None:
    content, style = halves["content"], halves["style"]
    around = context(base, prepared, tmp_path)
    other = replace(around, loaded=replace_hash(base))
    with pytest.raises(B4MError, match="this merge for"):
        break_for_make.merge(content, style, other)
    with pytest.raises(B4MError, match="give the prepared folder with --data"):
        break_for_make.merge(content, style, replace(around, data=None))


def replace_hash(base: Base) -> Base:
    """The same model under another identity."""
    import copy

    other = copy.copy(base)
    other.hash = "f" * 64
    return other


def test_kinds_and_settings_that_make_no_sense_are_refused(
    base: Base, prepared: Path, tmp_path: Path
) -> None:
    def train(kind: str = "content", concept: str = "teapot", **change: object) -> Adapter:
        settings = {**FAST, **change}
        return runs.train("b4m", kind, prepared, concept, base, tmp_path, **settings)

    for change, message in (
        ({"rank": 0}, "rank=0 must be 1 or more"),
        ({"alpha": 8.0}, "no setting 'alpha'"),
        ({"role": "both"}, "must be one of 'content-down' or 'content-up'"),
        ({"split": 1.0}, "must be less than 1"),
        ({"blocks": "nowhere"}, "keeps none"),
    ):
        with pytest.raises(B4MError, match=message):
            train(**change)
    with pytest.raises(B4MError, match="content or style, not 'joint'"):
        main_factor("joint", "content-down")
    with pytest.raises(B4MError, match="no content 'cup'"):
        train(concept="cup")
