"""Groups of parameters may end before the training does."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from b4m.training.loop import Batch, LoopConfig, fit
from b4m.training.state import ParameterGroup
from tests.training.test_loop import Killed, Line, step


@pytest.mark.parametrize("killed_at", [2, 5, 7])
def test_a_group_stays_as_it_is_after_its_last_step(tmp_path: Path, killed_at: int) -> None:
    places: list[Tensor] = []

    def train(model: Line, work: Path, until: int) -> None:
        def deadly(model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
            if batch.position == until:
                raise Killed
            places.append(model.place.detach().clone())  # type: ignore[operator,union-attr]
            return step(model, batch)

        groups = [
            ParameterGroup({name: one}, torch.optim.AdamW([one], lr=0.1), until=last)
            for (name, one), last in zip(model.named_parameters(), (4, None), strict=True)
        ]
        config = LoopConfig(9, checkpoint_every=1)
        fit(deadly, model, groups, 5, config, workdir=work, fingerprint="a")

    whole, model = Line(), Line()
    train(whole, tmp_path / "whole", 99)
    assert not torch.equal(places[3], places[4])
    assert all(torch.equal(place, places[4]) for place in [*places[5:], whole.place])
    with pytest.raises(Killed):
        train(model, tmp_path, killed_at)
    model = Line()
    train(model, tmp_path, 99)
    assert torch.equal(model.place, whole.place)
    assert torch.equal(model.slope, whole.slope)
