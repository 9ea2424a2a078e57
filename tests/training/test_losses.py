"""Losses, weights, noise and times against closed forms, for all three kinds of prediction."""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import stats
from torch import Tensor, nn

from b4m.bases.noising import Diffusion, FlowMatching
from b4m.training.losses import Noise, denoising_losses
from b4m.training.settings import Objective

ABAR = torch.linspace(0.999, 0.01, 1000)
NOISINGS: dict[str, Any] = {
    "epsilon": Diffusion(ABAR, "epsilon"),
    "v": Diffusion(ABAR, "v_prediction"),
    "flow": FlowMatching(),
}
TIMES = {
    "epsilon": torch.tensor([3, 500, 990]),
    "v": torch.tensor([3, 500, 990]),
    "flow": torch.tensor([0.05, 0.5, 0.95]),
}
GENERATOR = torch.Generator().manual_seed(0)
X0, EPS, OUTPUT = (torch.randn(3, 4, 8, 8, generator=GENERATOR) for _ in range(3))


@dataclass
class Stub:
    """A base whose denoiser always outputs the same."""

    noising: Any
    device = torch.device("cpu")
    latent_shape = (4, 8, 8)

    def predict(self, model: object, noisy: Tensor, t_B: Tensor, text: object) -> Tensor:
        return OUTPUT


def losses(kind: str, mask: Tensor | None = None, **settings: object) -> Tensor:
    base: Any = Stub(NOISINGS[kind])
    objective = Objective.model_validate(settings)
    noise, text = Noise(EPS, TIMES[kind]), SimpleNamespace()
    return denoising_losses(nn.Identity(), base, X0, noise, text, objective, mask)  # type: ignore[arg-type]


def coefficients(kind: str) -> tuple[Tensor, Tensor]:
    """Signal and noise in x_t."""
    if kind == "flow":
        return 1 - TIMES[kind].reshape(-1, 1, 1, 1), TIMES[kind].reshape(-1, 1, 1, 1)
    abar = ABAR[TIMES[kind]].reshape(-1, 1, 1, 1)
    return abar.sqrt(), (1 - abar).sqrt()


def implied(kind: str) -> dict[str, tuple[Tensor, Tensor]]:
    """What the output says that noise, velocity and x_0 are, and what they are."""
    a, s = coefficients(kind)
    x_t = a * X0 + s * EPS
    if kind == "epsilon":
        noise, x0 = OUTPUT, (x_t - s * OUTPUT) / a
    elif kind == "v":
        noise, x0 = a * OUTPUT + s * x_t, a * x_t - s * OUTPUT
    else:
        noise, x0 = x_t + (1 - s) * OUTPUT, x_t - s * OUTPUT
    if kind == "flow":
        velocities = noise - x0, EPS - X0
    else:
        velocities = a * noise - s * x0, a * EPS - s * X0
    return {"noise": (noise, EPS), "velocity": velocities, "x0": (x0, X0)}


@pytest.mark.parametrize("of", ["noise", "velocity", "x0"])
@pytest.mark.parametrize("kind", NOISINGS)
def test_the_error_is_that_of_what_the_output_implies(kind: str, of: str) -> None:
    said, true = implied(kind)[of]
    wanted = (said - true).square().flatten(1).mean(1)
    torch.testing.assert_close(losses(kind, error_of=of), wanted, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", NOISINGS)
def test_min_snr_is_the_error_of_x0_by_the_clipped_ratio(kind: str) -> None:
    a, s = coefficients(kind)
    snr_B = (a / s).square().flatten()
    x0, true = implied(kind)["x0"]
    wanted = snr_B.clamp(max=5.0) * (x0 - true).square().flatten(1).mean(1)
    torch.testing.assert_close(losses(kind, min_snr_gamma=5.0), wanted, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", NOISINGS)
def test_debiased_is_the_error_of_the_noise_by_the_root_of_the_ratio(kind: str) -> None:
    a, s = coefficients(kind)
    noise, true = implied(kind)["noise"]
    wanted = (s / a).flatten() * (noise - true).square().flatten(1).mean(1)
    torch.testing.assert_close(losses(kind, debiased=True), wanted, rtol=1e-3, atol=1e-6)


def test_huber_and_l1_are_their_closed_forms() -> None:
    e = OUTPUT - EPS
    huber = 2 * 0.3 * ((e**2 + 0.09) ** 0.5 - 0.3)
    torch.testing.assert_close(
        losses("epsilon", loss="huber", huber_delta=0.3), huber.flatten(1).mean(1)
    )
    torch.testing.assert_close(losses("epsilon", loss="l1"), e.abs().flatten(1).mean(1))
    torch.testing.assert_close(
        losses("epsilon", loss="huber", huber_delta=1e3), losses("epsilon"), rtol=1e-2, atol=0
    )


def test_a_mask_leaves_the_mean_of_what_it_keeps() -> None:
    mask = torch.zeros(3, 1, 8, 8)
    mask[:, :, :3, :5] = 1.0
    e2 = (OUTPUT - EPS).square()
    inside = e2[:, :, :3, :5].flatten(1).mean(1)
    torch.testing.assert_close(losses("epsilon", mask, masked=True), inside)
    torch.testing.assert_close(losses("epsilon", mask), e2.flatten(1).mean(1))
    half = losses("epsilon", mask, masked=True, unmasked_weight=0.5)
    wanted = ((0.5 + 0.5 * mask) * e2).flatten(1).sum(1) / (4 * (0.5 + 0.5 * mask)).flatten(1).sum(
        1
    )
    torch.testing.assert_close(half, wanted)


def test_the_offset_of_the_noise_is_one_number_per_channel() -> None:
    base: Any = Stub(NOISINGS["epsilon"])
    plain, offset = (
        Noise.sample(
            base,
            500,
            torch.Generator().manual_seed(1),
            Objective.model_validate({"noise_offset": size}),
        )
        for size in (0.0, 0.3)
    )
    moved = offset.noise_BCHW - plain.noise_BCHW
    torch.testing.assert_close(moved, moved[:, :, :1, :1].expand_as(moved), atol=1e-5, rtol=0)
    assert float(moved[:, :, 0, 0].std()) == pytest.approx(0.3, rel=0.05)
    assert torch.equal(plain.t_B, offset.t_B)


CDFS: dict[str, Callable[[Any], Any]] = {
    "uniform": lambda t: t,
    "logit-normal": lambda t: stats.norm.cdf(np.log(t / (1 - t))),
    "high-noise": lambda t: t**2,
    "low-noise": lambda t: 1 - (1 - t) ** 2,
}


@pytest.mark.parametrize("kind", ["epsilon", "flow"])
@pytest.mark.parametrize("density", CDFS)
def test_times_have_the_density_that_is_asked_for_within_their_range(
    density: str, kind: str
) -> None:
    base: Any = Stub(NOISINGS[kind])
    settings = {"t_density": density, "t_min": 0.2, "t_max": 0.7}
    generator = torch.Generator().manual_seed(3)
    drawn = Noise.sample(base, 4000, generator, Objective.model_validate(settings), (1, 1)).t_B
    share = drawn.numpy() / (1000 if kind == "epsilon" else 1) + (0.0005 if kind != "flow" else 0)
    assert share.min() >= 0.2
    assert share.max() <= 0.7
    found = stats.kstest((share - 0.2) / 0.5, CDFS[density])
    assert found.statistic < 0.03, "the 1 % level of 4000 draws is 0.026"


@pytest.mark.parametrize("kind", ["epsilon", "flow"])
def test_the_bases_own_times_are_squeezed_into_the_range(kind: str) -> None:
    base: Any = Stub(NOISINGS[kind])
    generator = torch.Generator().manual_seed(3)
    objective = Objective.model_validate({"t_min": 0.5})
    drawn = Noise.sample(base, 2000, generator, objective, (1, 1)).t_B
    share = drawn / (1000 if kind == "epsilon" else 1)
    assert 0.5 <= float(share.min()) < 0.51
    assert float(share.mean()) == pytest.approx(0.75, abs=0.01)


@pytest.mark.parametrize(
    "settings",
    [
        {"error_of": "x0", "debiased": True},
        {"debiased": True, "min_snr_gamma": 5.0},
        {"t_min": 0.7, "t_max": 0.3},
    ],
)
def test_what_contradicts_itself_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Objective.model_validate(settings)
