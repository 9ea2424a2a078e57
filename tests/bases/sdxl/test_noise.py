"""The forward process and both ways of stating its reverse, against diffusers and closed forms."""

from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler

from b4m.bases import load_base
from b4m.bases.base import Base


@pytest.fixture(params=["epsilon", "v_prediction"])
def base(request: pytest.FixtureRequest, tiny_base: Path) -> Base:
    loaded = load_base(str(tiny_base))
    config = dict(loaded.scheduler.config, prediction_type=request.param)
    if request.param == "epsilon":
        config["rescale_betas_zero_snr"] = False
    loaded.scheduler = type(loaded.scheduler).from_config(config)
    return loaded


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 5, 4, 8, 8, generator=generator)
    return x0, noise, torch.tensor([0, 1, 400, 998, 999])


def test_noise_and_target_equal_diffusers_ddpm(base: Base) -> None:
    x0, noise, t = batch()
    ddpm = DDPMScheduler.from_config(base.scheduler.config)
    ddpm.alphas_cumprod = base.noising.abar_T  # Euler keeps the last one just above zero
    torch.testing.assert_close(base.noising.add(x0, noise, t), ddpm.add_noise(x0, noise, t))
    wanted = noise if base.prediction_type == "epsilon" else ddpm.get_velocity(x0, noise, t)
    torch.testing.assert_close(base.noising.target(x0, noise, t), wanted)


def test_the_right_output_states_the_true_noise(base: Base) -> None:
    x0, noise, t = batch()
    noisy, output = base.noising.add(x0, noise, t), base.noising.target(x0, noise, t)
    torch.testing.assert_close(base.noising.to_noise(output, noisy, t), noise, atol=2e-6, rtol=0)


def test_min_snr_weight_equals_its_definition_where_that_is_defined(base: Base) -> None:
    t = torch.arange(0, 999, 37)
    abar = base.noising.abar_T[t].double()
    snr = abar / (1 - abar)
    clipped = snr.clamp(max=5.0)
    wanted = clipped / snr if base.prediction_type == "epsilon" else clipped / (snr + 1)
    torch.testing.assert_close(
        base.noising.min_snr_weight(t, 5.0).double(), wanted, rtol=1e-4, atol=1e-7
    )
    assert torch.isfinite(base.noising.min_snr_weight(torch.tensor([999]), 5.0)).all()
