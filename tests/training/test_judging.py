"""A judged training keeps its best weights and ends by its rule, also after a kill."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from b4m.training.judging import Judge
from b4m.training.loop import Batch, LoopConfig, fit
from b4m.training.state import ParameterGroup

SERIES = {2: 5.0, 4: 3.0, 6: 4.0, 8: float("nan"), 10: 3.5, 12: 2.0, 14: 9.0}


class Killed(Exception):
    """Stands for the end of the process."""


class Counter(nn.Module):
    """One number that each step lowers by one."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(1))

    @property
    def finished(self) -> int:
        return -round(float(self.place.detach()))


def step(model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
    return {"loss": model.place.expand(len(batch.rows))}  # type: ignore[union-attr,operator]


class Watch:
    """Keeps what the loop reports of the judge."""

    def __init__(self) -> None:
        self.seen: dict[int, float] = {}

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        if "train/validation" in values:
            self.seen[step] = values["train/validation"]

    def image(self, name: str, image: object, step: int) -> None:
        raise AssertionError("no image was asked for")


def train(
    model: Counter, work: Path, patience: int, keep: bool, until: int = 99, ema: float = 0.0
) -> dict[int, float]:
    judge = Judge(lambda: SERIES[model.finished], 2, keep_best=keep, patience=patience)
    group = ParameterGroup(
        dict(model.named_parameters()), torch.optim.SGD(model.parameters(), lr=1.0)
    )
    watch = Watch()

    def deadly(model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        if batch.position == until:
            raise Killed
        return step(model, batch)

    fit(
        deadly, model, [group], 3, LoopConfig(14, clip=0.0, checkpoint_every=1, ema_decay=ema),
        workdir=work, fingerprint="a", tracker=watch, judge=judge,
    )  # fmt: skip
    return watch.seen


@pytest.mark.parametrize("killed_at", [1, 5, 7, 11, 13])
@pytest.mark.parametrize(
    ("patience", "keep", "place", "looks"),
    [(0, False, 14, 7), (0, True, 12, 7), (3, True, 4, 5), (3, False, 10, 5), (4, True, 12, 7)],
)
def test_the_rules_hold_whether_or_not_the_run_is_killed(
    tmp_path: Path, killed_at: int, patience: int, keep: bool, place: int, looks: int
) -> None:
    whole, model = Counter(), Counter()
    seen = train(whole, tmp_path / "whole", patience, keep)
    assert whole.finished == place
    assert list(seen) == list(SERIES)[:looks]
    if killed_at < max(seen):
        with pytest.raises(Killed):
            train(model, tmp_path, patience, keep, killed_at)
        model = Counter()
        train(model, tmp_path, patience, keep)
        assert model.finished == place


def test_the_best_of_averaged_weights_are_averages(tmp_path: Path) -> None:
    model = Counter()
    at: dict[float, float] = {}

    def measure() -> float:
        value = float(len(at) != 3)  # the fourth look is best
        at[float(model.place.detach())] = value
        return value

    judge = Judge(measure, 2, keep_best=True)
    group = ParameterGroup(
        dict(model.named_parameters()), torch.optim.SGD(model.parameters(), lr=1.0)
    )
    fit(
        step, model, [group], 3, LoopConfig(14, clip=0.0, ema_decay=0.5),
        workdir=tmp_path, fingerprint="a", judge=judge,
    )  # fmt: skip
    average, place = 0.0, 0.0
    for number in range(1, 9):
        place -= 1
        decay = min(0.5, (1 + number) / (10 + number))
        average = decay * average + (1 - decay) * place
    assert float(model.place) == pytest.approx(average)
