"""The loop makes the steps asked for, and a resumed run equals one that was never stopped."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from b4m.errors import B4MError
from b4m.train.checkpoint import checkpoint_path
from b4m.train.loop import Batch, LoopConfig, ParameterGroup, fit

TARGETS = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))


class Killed(Exception):
    """Stands for the end of the process."""


class Line(nn.Module):
    """Three numbers that chase the targets."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(3))
        self.slope = nn.Parameter(torch.ones(3))

    def forward(self, noise: Tensor) -> Tensor:
        return self.place + self.slope * noise


class Counted(torch.optim.AdamW):
    """Counts its steps."""

    steps = 0

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        self.steps += 1
        super().step()


def step(model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
    noise = torch.randn(len(batch.rows), 3, generator=batch.generator)
    loss_B = (model(noise) - TARGETS[batch.rows]).square().mean(1)
    return {"loss": loss_B, "distance": loss_B.sqrt()}


def group(model: Line, lr: float = 0.05) -> ParameterGroup:
    parameters = dict(model.named_parameters())
    return ParameterGroup(parameters, Counted(parameters.values(), lr=lr, weight_decay=0.1))


class Watch:
    """Keeps what the loop reports."""

    def __init__(self) -> None:
        self.seen: dict[int, Mapping[str, float]] = {}
        self.images: list[int] = []

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self.seen[step] = values

    def image(self, name: str, image: object, step: int) -> None:
        self.images.append(step)


@pytest.mark.parametrize("examples", [1, 4, 5])
@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_steps_asked_for_are_made(
    tmp_path: Path, examples: int, accumulation: int, batch_size: int
) -> None:
    model, shown = Line(), []
    one = group(model)
    plan = LoopConfig(steps=7, batch_size=batch_size, accumulation=accumulation)

    def watched(model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        shown.extend(batch.rows)
        return step(model, batch)

    fit(watched, model, [one], examples, plan, workdir=tmp_path, fingerprint="a")
    assert isinstance(one.optimizer, Counted)
    assert one.optimizer.steps == 7
    assert len(shown) == 7 * accumulation * batch_size
    counts = [shown.count(index) for index in range(examples)]
    assert max(counts) - min(counts) <= 1, "all examples are shown equally often"


def test_accumulation_equals_one_large_batch(tmp_path: Path) -> None:
    def exact(model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        return {"loss": (model(torch.zeros(1)) - TARGETS[batch.rows]).square().mean(1)}

    results = []
    for batch_size, accumulation in ((4, 1), (1, 4), (2, 2)):
        model = Line()
        plan = LoopConfig(steps=6, batch_size=batch_size, accumulation=accumulation)
        fit(exact, model, [group(model)], 5, plan, workdir=tmp_path, fingerprint="a")
        results.append(model.place.detach())
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("killed_after", range(1, 12))
def test_a_killed_run_goes_on_with_the_same_bits(tmp_path: Path, killed_after: int) -> None:
    plan = LoopConfig(steps=9, batch_size=2, accumulation=2, warmup=4, checkpoint_every=2)
    whole = Line()
    one = group(whole)
    fit(step, whole, [one], 5, plan, workdir=tmp_path / "a", fingerprint="a")

    calls = 0

    def deadly(model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        nonlocal calls
        calls += 1
        if calls > killed_after:
            raise Killed
        return step(model, batch)

    first = Line()
    with pytest.raises(Killed):
        fit(deadly, first, [group(first)], 5, plan, workdir=tmp_path / "b", fingerprint="a")
    model = Line()
    two = group(model)
    fit(step, model, [two], 5, plan, workdir=tmp_path / "b", fingerprint="a")
    assert isinstance(two.optimizer, Counted)
    assert two.optimizer.steps == 9 - killed_after // 4 * 2, "finished steps are not repeated"
    for ours, theirs in zip(model.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    ours, theirs = (each.optimizer.state_dict() for each in (two, one))
    assert ours["param_groups"] == theirs["param_groups"]
    for index, state in theirs["state"].items():
        assert all(torch.equal(ours["state"][index][key], value) for key, value in state.items())


def test_checkpoints_go_with_success_and_are_told_apart(tmp_path: Path) -> None:
    plan = LoopConfig(steps=5, checkpoint_every=2)
    model = Line()

    def deadly(model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        if batch.position == 3:
            raise Killed
        return step(model, batch)

    with pytest.raises(Killed):
        fit(deadly, model, [group(model)], 5, plan, workdir=tmp_path, fingerprint="a")
    assert checkpoint_path(tmp_path, "a").is_file()
    other = Line()
    one = group(other)
    fit(step, other, [one], 5, plan, workdir=tmp_path, fingerprint="b")
    assert isinstance(one.optimizer, Counted)
    assert one.optimizer.steps == 5, "another run's checkpoint is not taken"
    fit(step, model, [group(model)], 5, plan, workdir=tmp_path, fingerprint="a")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    checkpoint_path(tmp_path, "a").write_bytes(b"half a file")
    model = Line()
    with pytest.raises(B4MError, match=r"checkpoint .* cannot be read; delete it"):
        fit(step, model, [group(model)], 5, LoopConfig(2), workdir=tmp_path, fingerprint="a")


def test_learners_are_clipped_on_their_own(tmp_path: Path) -> None:
    model = Line()
    norms: list[float] = []

    class Sees(torch.optim.SGD):
        def step(self, closure: object = None) -> None:  # type: ignore[override]
            (parameter,) = self.param_groups[0]["params"]
            norms.append(float(parameter.grad.norm()))

    def steep(model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        return {"loss": 100 * model.place.sum() + 0.1 * model.slope.sum()}  # type: ignore[operator,union-attr]

    groups = [
        ParameterGroup({name: parameter}, Sees([parameter], lr=0.1))
        for name, parameter in model.named_parameters()
    ]
    fit(steep, model, groups, 5, LoopConfig(1, clip=1.0), workdir=tmp_path, fingerprint="a")
    assert norms == pytest.approx([1.0, 0.1 * 3**0.5], rel=1e-5)


def test_warm_up_rises_linearly_to_the_rate(tmp_path: Path) -> None:
    rates: list[float] = []

    class Sees(torch.optim.SGD):
        def step(self, closure: object = None) -> None:  # type: ignore[override]
            rates.append(self.param_groups[0]["lr"])

    model = Line()
    one = ParameterGroup(dict(model.named_parameters()), Sees(model.parameters(), lr=0.4))
    fit(step, model, [one], 5, LoopConfig(6, warmup=4), workdir=tmp_path, fingerprint="a")
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])


def test_reports_are_means_and_end_with_the_last_step(tmp_path: Path) -> None:
    watch, model = Watch(), Line()
    seen: list[Tensor] = []

    def watched(model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        losses = step(model, batch)
        seen.append(losses["loss"].detach().mean())
        return losses

    plan = LoopConfig(steps=25, sample_every=10)
    fit(
        watched, model, [group(model)], 5, plan, workdir=tmp_path, fingerprint="a",
        tracker=watch, name="content", preview=lambda step: {"picture": None},  # type: ignore[dict-item]
    )  # fmt: skip
    assert list(watch.seen) == [10, 20, 25]
    assert watch.images == [10, 20]
    wanted = float(torch.stack(seen[10:20]).mean())
    assert watch.seen[20]["content/loss"] == pytest.approx(wanted)
    assert set(watch.seen[20]) == {"content/loss", "content/distance"}


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    model = Line()

    def broken(model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        return {"loss": model.place.sum() * float("nan")}  # type: ignore[operator,union-attr]

    with pytest.raises(B4MError, match="lower the learning rate"):
        fit(broken, model, [group(model)], 5, LoopConfig(30), workdir=tmp_path, fingerprint="a")


@pytest.mark.parametrize("field", ["steps", "batch_size", "accumulation"])
def test_plans_without_a_step_are_refused(field: str) -> None:
    with pytest.raises(B4MError, match=f"{field}=0 must be 1 or more"):
        LoopConfig(**{"steps": 1, field: 0})


def test_no_example_is_an_error(tmp_path: Path) -> None:
    model = Line()
    with pytest.raises(B4MError, match="no picture to train on"):
        fit(step, model, [group(model)], 0, LoopConfig(1), workdir=tmp_path, fingerprint="a")
