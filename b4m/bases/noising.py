"""Forward processes: how noise is added, what the network should predict, and at which times.

Diffusion, with abar the cumulative product of the schedule's alphas and t an integer step:

    x_t = sqrt(abar) x_0 + sqrt(1 - abar) eps
    v   = sqrt(abar) eps - sqrt(1 - abar) x_0            (Salimans and Ho 2022, 2202.00512)
    eps = sqrt(abar) v + sqrt(1 - abar) x_t

Under zero-terminal SNR (2305.08891) abar is (nearly) 0 at the last step: nothing here divides by
it.

Flow matching (rectified flow, 2209.03003), with t in [0, 1] the share of noise:

    x_t = (1 - t) x_0 + t eps        v = eps - x_0        eps = x_t + (1 - t) v

All is computed in float32. Shape suffixes: B batch, C H W latents, T training steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

_LEAST = 1e-4  # abar that a division takes for smaller ones; SDXL's smallest is 4.7e-3


class Noising(Protocol):
    """A forward process on latents."""

    def sample_times(self, count: int, generator: torch.Generator) -> Tensor:
        """Times (B,) as training draws them, on the CPU."""
        ...

    def stratified_times(self, count: int, generator: torch.Generator) -> Tensor:
        """One time from each of `count` equal parts of the range, in shuffled order, on the CPU."""
        ...

    def add(self, x0_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """Noisy latents x_t of clean latents at the times t."""
        ...

    def target(self, x0_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """What the network should output for x_t."""
        ...

    def to_noise(self, output_BCHW: Tensor, x_t_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """The noise that a raw output of the network states."""
        ...

    def noise_scale(self, t_B: Tensor) -> Tensor:
        """The factor on the noise in x_t, (B, 1, 1, 1)."""
        ...

    def share(self, t_B: Tensor) -> Tensor:
        """Times as shares (B,) of their range, 0 being no noise."""
        ...

    def times_at(self, share_B: Tensor) -> Tensor:
        """The times (B,) at shares in [0, 1) of their range, on the shares' device."""
        ...

    def error_factor(self, of: str, t_B: Tensor) -> Tensor:
        """Squared error of what an output implies by that of the output, (B, 1, 1, 1).

        Args:
            of: "noise", "velocity" or "x0".
            t_B: times.
        """
        ...

    def min_snr_weight(self, t_B: Tensor, gamma: float) -> Tensor:
        """Loss weight (B,) of Hang et al. 2023 (2303.09556) for the squared error of the output."""
        ...

    def debiased_weight(self, t_B: Tensor) -> Tensor:
        """Loss weight (B,) of Yu et al. 2023 (2310.08442) for the squared error of the output.

        It is 1 / sqrt(SNR) for the squared error of the noise.
        """
        ...


@dataclass(frozen=True, eq=False)
class Diffusion:
    """A discrete schedule under epsilon or v prediction.

    Args:
        abar_T: cumulative product of the alphas, float32 on the base's device.
        prediction_type: "epsilon" or "v_prediction".
    """

    abar_T: Tensor
    prediction_type: str

    def sample_times(self, count: int, generator: torch.Generator) -> Tensor:
        """Uniform steps."""
        return torch.randint(len(self.abar_T), (count,), generator=generator)

    def stratified_times(self, count: int, generator: torch.Generator) -> Tensor:
        """One step from each of `count` equal parts of [0, T), in shuffled order."""
        steps = len(self.abar_T)
        t_B = (_stratified(count, generator) * steps / count).long().clamp(max=steps - 1)
        return t_B[torch.randperm(count, generator=generator)]

    def add(self, x0_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """sqrt(abar) x_0 + sqrt(1 - abar) eps."""
        signal, spread = self._coefficients(t_B)
        return signal * x0_BCHW.float() + spread * noise_BCHW.float()

    def target(self, x0_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """The noise, or the velocity of a v-prediction base."""
        if self.prediction_type == "epsilon":
            return noise_BCHW.float()
        signal, spread = self._coefficients(t_B)
        return signal * noise_BCHW.float() - spread * x0_BCHW.float()

    def to_noise(self, output_BCHW: Tensor, x_t_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """The output itself, or sqrt(abar) v + sqrt(1 - abar) x_t."""
        if self.prediction_type == "epsilon":
            return output_BCHW.float()
        signal, spread = self._coefficients(t_B)
        return signal * output_BCHW.float() + spread * x_t_BCHW.float()

    def noise_scale(self, t_B: Tensor) -> Tensor:
        """sqrt(1 - abar)."""
        return (1.0 - self.abar_T[t_B.to(self.abar_T.device)]).sqrt().reshape(-1, 1, 1, 1)

    def share(self, t_B: Tensor) -> Tensor:
        """T / T."""
        return t_B / len(self.abar_T)

    def times_at(self, share_B: Tensor) -> Tensor:
        """floor(share T)."""
        steps = len(self.abar_T)
        return (share_B * steps).long().clamp(max=steps - 1)

    def error_factor(self, of: str, t_B: Tensor) -> Tensor:
        """1, 1 / abar and (1 - abar) / abar for epsilon; abar, 1 and 1 - abar for v."""
        abar_B111 = self.abar_T[t_B.to(self.abar_T.device)].reshape(-1, 1, 1, 1)
        factor = {"noise": abar_B111, "velocity": torch.ones_like(abar_B111), "x0": 1 - abar_B111}
        return factor[of] / abar_B111.clamp_min(_LEAST) if self._states_noise else factor[of]

    def min_snr_weight(self, t_B: Tensor, gamma: float) -> Tensor:
        """min(SNR, gamma) / SNR for epsilon and min(SNR, gamma) / (SNR + 1) for v.

        With SNR = abar / (1 - abar); rearranged, because abar may be 0: min(abar, gamma (1 -
        abar)), over abar for epsilon, whose limit at abar = 0 is 1.
        """
        abar_B = self.abar_T[t_B.to(self.abar_T.device)]
        clipped_B = torch.minimum(abar_B, gamma * (1 - abar_B))
        if self.prediction_type == "epsilon":
            return torch.where(abar_B > 0, clipped_B / abar_B.clamp_min(1e-12), 1.0)
        return clipped_B

    def debiased_weight(self, t_B: Tensor) -> Tensor:
        """sqrt((1 - abar) / abar) for epsilon and sqrt(abar (1 - abar)) for v."""
        abar_B = self.abar_T[t_B.to(self.abar_T.device)]
        weight_B = (abar_B * (1 - abar_B)).sqrt()
        return weight_B / abar_B.clamp_min(_LEAST) if self._states_noise else weight_B

    @property
    def _states_noise(self) -> bool:
        return self.prediction_type == "epsilon"

    def _coefficients(self, t_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return sqrt(abar) and sqrt(1 - abar) at t, shaped to multiply a batch of latents."""
        abar_B111 = self.abar_T[t_B.to(self.abar_T.device)].reshape(-1, 1, 1, 1)
        return abar_B111.sqrt(), (1 - abar_B111).sqrt()


@dataclass(frozen=True)
class FlowMatching:
    """The straight path between data and noise; the network predicts its velocity.

    Args:
        logit_normal: draw training times from a logit-normal (SD3, 2403.03206) instead of uniform.
    """

    logit_normal: bool = False

    def sample_times(self, count: int, generator: torch.Generator) -> Tensor:
        """Times in (0, 1), 1 being pure noise."""
        if self.logit_normal:
            return torch.randn(count, generator=generator).sigmoid()
        return torch.rand(count, generator=generator)

    def stratified_times(self, count: int, generator: torch.Generator) -> Tensor:
        """One time from each of `count` equal parts of [0, 1), in shuffled order."""
        t_B = _stratified(count, generator) / count
        return t_B[torch.randperm(count, generator=generator)]

    def add(self, x0_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """(1 - t) x_0 + t eps."""
        t_B111 = self.noise_scale(t_B)
        return (1 - t_B111) * x0_BCHW.float() + t_B111 * noise_BCHW.float()

    def target(self, x0_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """The velocity eps - x_0."""
        return noise_BCHW.float() - x0_BCHW.float()

    def to_noise(self, output_BCHW: Tensor, x_t_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """x_t + (1 - t) v."""
        return x_t_BCHW.float() + (1 - self.noise_scale(t_B)) * output_BCHW.float()

    def noise_scale(self, t_B: Tensor) -> Tensor:
        """The time itself."""
        return t_B.float().reshape(-1, 1, 1, 1)

    def share(self, t_B: Tensor) -> Tensor:
        """The time itself."""
        return t_B

    def times_at(self, share_B: Tensor) -> Tensor:
        """The shares themselves."""
        return share_B

    def error_factor(self, of: str, t_B: Tensor) -> Tensor:
        """(1 - t)^2 for the noise, 1 for the velocity and t^2 for x_0."""
        t_B111 = self.noise_scale(t_B)
        factor = {"noise": 1 - t_B111, "velocity": torch.ones_like(t_B111), "x0": t_B111}
        return factor[of].square()

    def min_snr_weight(self, t_B: Tensor, gamma: float) -> Tensor:
        """min((1 - t)^2, gamma t^2).

        min-SNR weights the error of x_0 by min(SNR, gamma), with SNR = ((1 - t) / t)^2; since x_0 =
        x_t - t v, the squared error of x_0 is t^2 times that of v.
        """
        t_B = t_B.float()
        return torch.minimum((1 - t_B).square(), gamma * t_B.square())

    def debiased_weight(self, t_B: Tensor) -> Tensor:
        """T (1 - t)."""
        return t_B.float() * (1 - t_B.float())


def _stratified(count: int, generator: torch.Generator) -> Tensor:
    """A point of each of `count` unit intervals, in order."""
    return torch.rand(count, generator=generator) + torch.arange(count)
