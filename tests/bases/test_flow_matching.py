"""Flow matching's forward process against its definition and against diffusers' scheduler."""

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from b4m.bases.noising import FlowMatching

FLOW = FlowMatching()
TRAIN_STEPS = 1000


def batch(count: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, count, 4, 8, 8, generator=generator)
    return x0, noise


def scheduler(shift: float = 1.0) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=TRAIN_STEPS, shift=shift)


def test_time_0_is_the_image_and_time_1_the_noise() -> None:
    x0, noise = batch(2)
    ends = FLOW.add(x0, noise, torch.tensor([0.0, 1.0]))
    assert torch.equal(ends[0], x0[0])
    assert torch.equal(ends[1], noise[1])


def test_noisy_latents_equal_those_of_diffusers() -> None:
    x0, noise = batch()
    theirs = scheduler(shift=3.0)
    t_B = theirs.timesteps[::180]
    wanted = theirs.scale_noise(x0, t_B, noise)
    torch.testing.assert_close(FLOW.add(x0, noise, t_B / TRAIN_STEPS), wanted)


def test_the_target_is_the_path_s_derivative() -> None:
    x0, noise = (x.double() for x in batch())
    t_B = torch.linspace(0.1, 0.9, 6)
    step = 1e-2
    later, earlier = (FLOW.add(x0, noise, t_B + sign * step) for sign in (1, -1))
    slope = (later - earlier) / (2 * step)
    torch.testing.assert_close(FLOW.target(x0, noise, t_B), slope, atol=1e-4, rtol=1e-4)


def test_one_euler_step_of_diffusers_along_the_target_lands_on_the_path() -> None:
    x0, noise = batch(1)
    theirs = scheduler(shift=3.0)
    theirs.set_timesteps(5)
    for index, t in enumerate(theirs.timesteps):
        now, after = theirs.sigmas[index : index + 2, None]
        velocity = FLOW.target(x0, noise, now)
        moved = theirs.step(velocity, t, FLOW.add(x0, noise, now), return_dict=False)[0]
        torch.testing.assert_close(moved, FLOW.add(x0, noise, after))


def test_the_right_output_states_the_true_noise() -> None:
    x0, noise = batch()
    t_B = torch.linspace(0.0, 1.0, 6)
    noisy, output = FLOW.add(x0, noise, t_B), FLOW.target(x0, noise, t_B)
    torch.testing.assert_close(FLOW.to_noise(output, noisy, t_B), noise, atol=1e-6, rtol=0)
    assert torch.equal(FLOW.noise_scale(t_B).flatten(), t_B)


def test_min_snr_weight_is_that_of_the_image_s_error_stated_for_the_velocity() -> None:
    """x_0 = x_t - t v, so an error d of v is an error t d of x_0, weighted by min(SNR, gamma)."""
    t_B = torch.linspace(0.02, 1.0, 50)
    snr = ((1 - t_B) / t_B).square()
    wanted = snr.clamp(max=5.0) * t_B.square()
    torch.testing.assert_close(FLOW.min_snr_weight(t_B, 5.0), wanted, rtol=1e-5, atol=1e-7)
    assert FLOW.min_snr_weight(torch.tensor([0.0]), 5.0) == 0


@pytest.mark.parametrize("logit_normal", [False, True])
def test_training_times_follow_their_distribution(logit_normal: bool) -> None:
    t_N = FlowMatching(logit_normal).sample_times(20_000, torch.Generator().manual_seed(1))
    assert 0 <= float(t_N.min()) < float(t_N.max()) <= 1
    logits = t_N.double().clamp(1e-9, 1 - 1e-9).logit()
    # a uniform t has a standard logistic logit
    deviation = 1.0 if logit_normal else math.pi / math.sqrt(3)
    assert float(logits.mean()) == pytest.approx(0.0, abs=0.05)
    assert float(logits.std()) == pytest.approx(deviation, rel=0.03)


def test_stratified_times_cover_every_part_of_the_range_once() -> None:
    t_K = FLOW.stratified_times(16, torch.Generator().manual_seed(2))
    assert sorted((t_K * 16).long().tolist()) == list(range(16))
    assert t_K.tolist() != sorted(t_K.tolist())
