"""The loop makes the steps asked for, and a resumed run equals one that was never stopped."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from b4m.errors import B4MError
from b4m.training import key as keys
from b4m.training.checkpoint import checkpoint_path, read_checkpoint
from b4m.training.key import key
from b4m.training.loop import Batch, LoopConfig, fit
from b4m.training.state import ParameterGroup

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
    config = LoopConfig(steps=7, batch_size=batch_size, accumulation=accumulation)

    def watched(model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        shown.extend(batch.rows)
        return step(model, batch)

    fit(watched, model, [one], examples, config, workdir=tmp_path, fingerprint="a")
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
        config = LoopConfig(steps=6, batch_size=batch_size, accumulation=accumulation)
        fit(exact, model, [group(model)], 5, config, workdir=tmp_path, fingerprint="a")
        results.append(model.place.detach())
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
@pytest.mark.parametrize("killed_after", range(1, 12))
def test_a_killed_run_goes_on_with_the_same_bits(
    tmp_path: Path, killed_after: int, ema_decay: float
) -> None:
    config = LoopConfig(
        steps=9,
        batch_size=2,
        accumulation=2,
        schedule="cosine",
        warmup=4,
        ema_decay=ema_decay,
        checkpoint_every=2,
    )
    whole = Line()
    one = group(whole)
    fit(step, whole, [one], 5, config, workdir=tmp_path / "a", fingerprint="a")

    calls = 0

    def deadly(model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        nonlocal calls
        calls += 1
        if calls > killed_after:
            raise Killed
        return step(model, batch)

    first = Line()
    with pytest.raises(Killed):
        fit(deadly, first, [group(first)], 5, config, workdir=tmp_path / "b", fingerprint="a")
    model = Line()
    two = group(model)
    fit(step, model, [two], 5, config, workdir=tmp_path / "b", fingerprint="a")
    assert isinstance(two.optimizer, Counted)
    assert two.optimizer.steps == 9 - killed_after // 4 * 2, "finished steps are not repeated"
    for ours, theirs in zip(model.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    ours, theirs = (each.optimizer.state_dict() for each in (two, one))
    assert ours["param_groups"] == theirs["param_groups"]
    for index, state in theirs["state"].items():
        assert all(torch.equal(ours["state"][index][key], value) for key, value in state.items())


def test_checkpoints_go_with_success_and_are_told_apart(tmp_path: Path) -> None:
    config = LoopConfig(steps=5, checkpoint_every=2)
    model = Line()

    def deadly(model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        if batch.position == 3:
            raise Killed
        return step(model, batch)

    with pytest.raises(Killed):
        fit(deadly, model, [group(model)], 5, config, workdir=tmp_path, fingerprint="a")
    assert checkpoint_path(tmp_path, "a").is_file()
    other = Line()
    one = group(other)
    fit(step, other, [one], 5, config, workdir=tmp_path, fingerprint="b")
    assert isinstance(one.optimizer, Counted)
    assert one.optimizer.steps == 5, "another run's checkpoint is not taken"
    fit(step, model, [group(model)], 5, config, workdir=tmp_path, fingerprint="a")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    checkpoint_path(tmp_path, "a").write_bytes(b"half a file")
    model = Line()
    with pytest.raises(B4MError, match=r"checkpoint .* cannot be read; delete it"):
        fit(step, model, [group(model)], 5, LoopConfig(2), workdir=tmp_path, fingerprint="a")


def test_groups_are_clipped_on_their_own(tmp_path: Path) -> None:
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

    config = LoopConfig(steps=25, sample_every=10)
    fit(
        watched, model, [group(model)], 5, config, workdir=tmp_path, fingerprint="a",
        tracker=watch, name="content", preview=lambda step: {"picture": None},  # type: ignore[dict-item]
    )  # fmt: skip
    assert list(watch.seen) == [10, 20, 25]
    assert watch.images == [10, 20]
    wanted = float(torch.stack(seen[10:20]).mean())
    assert watch.seen[20]["content/loss"] == pytest.approx(wanted)
    speed = ("steps_per_second", "images_per_second", "peak_gib")
    names = ("loss", "distance", "grad_norm", "lr", *speed)
    assert set(watch.seen[20]) == {f"content/{name}" for name in names}
    assert watch.seen[20]["content/lr"] == 0.05
    assert watch.seen[20]["content/steps_per_second"] > 1


def test_the_reported_gradient_norm_is_that_before_clipping_over_all_groups(
    tmp_path: Path,
) -> None:
    model, watch = Line(), Watch()

    def steep(model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        return {"loss": 100 * model.place.sum() + 10 * model.slope.sum()}  # type: ignore[operator,union-attr]

    groups = [
        ParameterGroup({name: parameter}, torch.optim.SGD([parameter], lr=0.1))
        for name, parameter in model.named_parameters()
    ]
    fit(
        steep, model, groups, 5, LoopConfig(10), workdir=tmp_path, fingerprint="a", tracker=watch
    )  # fmt: skip
    assert watch.seen[10]["train/grad_norm"] == pytest.approx((3 * 100**2 + 3 * 10**2) ** 0.5)


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_a_number_that_is_not_finite_stops_the_run_before_its_step(
    tmp_path: Path, broken: str
) -> None:
    config = LoopConfig(9, checkpoint_every=1)
    whole, model = Line(), Line()
    fit(step, whole, [group(whole)], 5, config, workdir=tmp_path / "whole", fingerprint="a")

    def poisoned(model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        losses = dict(step(model, batch))
        if batch.position == 6:
            if broken == "loss":
                losses["loss"] = losses["loss"] * float("nan")
            else:  # the root of 0 is finite, its slope is not
                losses["loss"] = losses["loss"] + (0 * model.place.sum()).sqrt()  # type: ignore[operator,union-attr]
        return losses

    with pytest.raises(B4MError, match=f"train: the {broken} is not finite at step 7, .* lower"):
        fit(poisoned, model, [group(model)], 5, config, workdir=tmp_path, fingerprint="a")
    kept = read_checkpoint(checkpoint_path(tmp_path, "a"), "a")
    assert kept is not None
    assert kept["step"] == 6
    assert torch.equal(model.place, kept["parameters"]["0.place"]), "the step was not made"
    fit(step, model, [group(model)], 5, config, workdir=tmp_path, fingerprint="a")
    assert torch.equal(model.place, whole.place), "the checkpoint is sound"


def test_a_gradient_that_overflows_with_the_scaled_loss_is_left_to_the_scaler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device, enabled: scaler)

    def huge(model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        return {"loss": 1e33 * model.place.sum()}  # type: ignore[operator,union-attr]

    model = Line()
    one = group(model)
    fit(huge, model, [one], 5, LoopConfig(8), workdir=tmp_path, fingerprint="a")
    assert isinstance(one.optimizer, Counted)
    assert one.optimizer.steps == 8 - 2, "2 ** 20 and 2 ** 19 times 1e33 are too large for float32"
    assert torch.isfinite(model.place).all()


def test_a_checkpoint_of_other_code_is_not_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = LoopConfig(steps=5, checkpoint_every=2)

    def deadly(model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        if batch.position == 3:
            raise Killed
        return step(model, batch)

    model = Line()
    with pytest.raises(Killed):
        fit(
            deadly, model, [group(model)], 5, config, workdir=tmp_path, fingerprint=key("lora", 1)
        )  # fmt: skip
    assert checkpoint_path(tmp_path, key("lora", 1)).is_file()
    monkeypatch.setattr(keys, "_code", lambda *families: "of the next version")
    other = Line()
    one = group(other)
    fit(step, other, [one], 5, config, workdir=tmp_path, fingerprint=key("lora", 1))
    assert isinstance(one.optimizer, Counted)
    assert one.optimizer.steps == 5


def test_the_result_is_the_average_of_the_steps_where_one_is_asked_for(tmp_path: Path) -> None:
    places: list[Tensor] = []

    class Sees(torch.optim.SGD):
        def step(self, closure: object = None) -> None:  # type: ignore[override]
            super().step()
            places.append(self.param_groups[0]["params"][0].detach().clone())

    previewed: list[Tensor] = []

    def preview(finished: int) -> Mapping[str, object]:
        previewed.append(model.place.detach().clone())
        return {}

    model = Line()
    one = ParameterGroup(dict(model.named_parameters()), Sees(model.parameters(), lr=0.3))
    config = LoopConfig(steps=30, ema_decay=0.6, sample_every=20)
    fit(
        step, model, [one], 5, config, workdir=tmp_path, fingerprint="a",
        preview=preview,  # type: ignore[arg-type]
    )  # fmt: skip
    averages = [torch.zeros(3)]
    for number, place in enumerate(places, start=1):
        decay = min(0.6, (1 + number) / (10 + number))
        averages.append(decay * averages[-1] + (1 - decay) * place)
    torch.testing.assert_close(model.place.detach(), averages[30])
    torch.testing.assert_close(previewed[0], averages[20])
    assert len(places) == 30
    assert not torch.allclose(places[-1], averages[30], atol=1e-3)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("steps", 0, "steps=0 must be 1 or more"),
        ("batch_size", 0, "batch_size=0 must be 1 or more"),
        ("accumulation", 0, "accumulation=0 must be 1 or more"),
        ("warmup", -1, "warmup=-1 must be 0 or more"),
        ("schedule", "cosin", "schedule='cosin' must be constant or cosine or linear"),
        ("ema_decay", 1.0, r"ema_decay=1.0 must be at least 0 and below 1"),
    ],
)
def test_settings_that_no_training_can_have_are_refused(
    field: str, value: object, message: str
) -> None:
    with pytest.raises(B4MError, match=message):
        LoopConfig(**{"steps": 1, field: value})  # type: ignore[arg-type]


def test_no_example_is_an_error(tmp_path: Path) -> None:
    model = Line()
    with pytest.raises(B4MError, match="no image to train on"):
        fit(step, model, [group(model)], 0, LoopConfig(1), workdir=tmp_path, fingerprint="a")
