"""The forward process and the two ways of stating its reverse, epsilon and v.

With abar the cumulative product of the schedule's alphas:

    x_t = sqrt(abar) x_0 + sqrt(1 - abar) eps
    v   = sqrt(abar) eps - sqrt(1 - abar) x_0            (Salimans and Ho 2022, 2202.00512)
    eps = sqrt(abar) v + sqrt(1 - abar) x_t

Under zero-terminal SNR (2305.08891) abar is (nearly) 0 at the last step: nothing here divides by
it. All is computed in float32.
"""

import torch
from torch import Tensor

from b4m.bases.sdxl.load import Base


def alphas_cumprod(base: Base) -> Tensor:
    """The schedule abar (T,) in float32 on the base's device; index it with timesteps."""
    abar_T: Tensor = base.scheduler.alphas_cumprod
    return abar_T.to(base.device, torch.float32)


def add_noise(base: Base, x0_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
    """Noisy latents x_t of clean latents at the timesteps t."""
    signal, spread = _coefficients(base, t_B)
    return signal * x0_BCHW.float() + spread * noise_BCHW.float()


def target(base: Base, x0_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
    """What the UNet should output for x_t: the noise, or the velocity of a v-prediction base."""
    if base.prediction_type == "epsilon":
        return noise_BCHW.float()
    signal, spread = _coefficients(base, t_B)
    return signal * noise_BCHW.float() - spread * x0_BCHW.float()


def to_epsilon(base: Base, output_BCHW: Tensor, x_t_BCHW: Tensor, t_B: Tensor) -> Tensor:
    """The noise that a raw output of the UNet states."""
    if base.prediction_type == "epsilon":
        return output_BCHW.float()
    signal, spread = _coefficients(base, t_B)
    return signal * output_BCHW.float() + spread * x_t_BCHW.float()


def min_snr_weight(base: Base, t_B: Tensor, gamma: float) -> Tensor:
    """Loss weight (B,) of Hang et al. 2023 (2303.09556) for the mean squared error of the output.

    min(SNR, gamma) / SNR for epsilon and min(SNR, gamma) / (SNR + 1) for v, with SNR = abar /
    (1 - abar); rearranged, because abar may be 0: min(abar, gamma (1 - abar)), over abar for
    epsilon, whose limit at abar = 0 is 1.
    """
    abar_B = alphas_cumprod(base)[t_B.to(base.device)]
    clipped_B = torch.minimum(abar_B, gamma * (1 - abar_B))
    if base.prediction_type == "epsilon":
        return torch.where(abar_B > 0, clipped_B / abar_B.clamp_min(1e-12), 1.0)
    return clipped_B


def _coefficients(base: Base, t_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return sqrt(abar) and sqrt(1 - abar) at t, shaped to multiply a batch of latents."""
    abar_B111 = alphas_cumprod(base)[t_B.to(base.device)].reshape(-1, 1, 1, 1)
    return abar_B111.sqrt(), (1 - abar_B111).sqrt()
