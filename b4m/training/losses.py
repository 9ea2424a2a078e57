"""Noise, times and the denoising loss, in the forms that the settings ask for.

With e the error of what is looked at (`error_of`), per element:

    mse     e^2
    huber   2 d (sqrt(e^2 + d^2) - d)      e^2 where it is small, 2 d |e| where it is large
    l1      |e|

The loss of an image is their mean, or with a mask w the mean weighted by w. min-SNR and debiased
weights multiply it. Shape suffixes: B batch, C H W latents.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from b4m.bases.base import Base, Conditioning
from b4m.training.settings import Objective

PLAIN = Objective.model_validate({})
"""The squared error of the output at the base's own times."""

_ERRORS: Mapping[str, Callable[[Tensor, float], Tensor]] = {
    "mse": lambda e, d: e.square(),
    # the difference of the root and d, without its rounding where e is small
    "huber": lambda e, d: 2 * d * e.square() / ((e.square() + d * d).sqrt() + d),
    "l1": lambda e, d: e.abs(),
}
# From a uniform number to a share of the time's range with this density, by the inverse of its
# distribution: high-noise has the density 2 t, low-noise 2 (1 - t).
_SHARES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "uniform": lambda u: u,
    "logit-normal": lambda u: torch.special.ndtri(u).sigmoid(),
    "high-noise": torch.sqrt,
    "low-noise": lambda u: 1 - (1 - u).sqrt(),
}
_BELOW_ONE = 1 - 2**-24


@dataclass(frozen=True)
class Noise:
    """Noise and timesteps of a batch, on the base's device."""

    noise_BCHW: Tensor
    t_B: Tensor

    @classmethod
    def sample(
        cls,
        base: Base,
        batch_size: int,
        generator: torch.Generator,
        objective: Objective = PLAIN,
        size: Sequence[int] = (),
    ) -> "Noise":
        """Normal noise and times for B latents.

        Args:
            base: its device and its own times.
            batch_size: B.
            generator: on the CPU.
            objective: offset of the noise, density and range of the times.
            size: height and width of the latents; empty for the base's.
        """
        channels, *own = base.latent_shape
        noise_BCHW = torch.randn((batch_size, channels, *(size or own)), generator=generator)
        t_B = draw_times(base, batch_size, generator, objective)
        if objective.noise_offset:
            level_BC11 = torch.randn((batch_size, channels, 1, 1), generator=generator)
            noise_BCHW = noise_BCHW + objective.noise_offset * level_BC11
        return cls(noise_BCHW.to(base.device), t_B.to(base.device))

    @classmethod
    def cat(cls, parts: Sequence["Noise"]) -> "Noise":
        """All of the parts in order."""
        noise_BCHW = torch.cat([one.noise_BCHW for one in parts])
        return cls(noise_BCHW, torch.cat([one.t_B for one in parts]))

    def __getitem__(self, rows: slice | Sequence[int]) -> "Noise":
        index = rows if isinstance(rows, slice) else list(rows)
        return Noise(self.noise_BCHW[index], self.t_B[index])


def draw_times(base: Base, count: int, generator: torch.Generator, objective: Objective) -> Tensor:
    """Times (B,) of the density that is asked for, squeezed into its range, on the CPU."""
    noising, density = base.noising, objective.t_density
    if density == "own":
        t_B = noising.sample_times(count, generator)
        if (objective.t_min, objective.t_max) == (0.0, 1.0):
            return t_B
        share_B = noising.share(t_B)
    else:
        share_B = _SHARES[density](torch.rand(count, generator=generator)).clamp(max=_BELOW_ONE)
    return noising.times_at(objective.t_min + (objective.t_max - objective.t_min) * share_B)


def denoising_losses(
    model: nn.Module,
    base: Base,
    x0_BCHW: Tensor,
    noise: Noise,
    text: Conditioning,
    objective: Objective = PLAIN,
    mask_B1HW: Tensor | None = None,
) -> Tensor:
    """The loss (B,) between the denoiser's output and what it should be.

    Args:
        model: the denoiser, adapted.
        base: its noising says what the output should be.
        x0_BCHW: clean latents.
        noise: of the same B.
        text: conditioning of the B captions.
        objective: which error, weighted how.
        mask_B1HW: weights in [0, 1] of the latents' places, if the objective is masked.
    """
    noising = base.noising
    noisy_BCHW = noising.add(x0_BCHW, noise.noise_BCHW, noise.t_B)
    output_BCHW = base.predict(model, noisy_BCHW, noise.t_B, text)
    target_BCHW = noising.target(x0_BCHW, noise.noise_BCHW, noise.t_B)
    error_BCHW = output_BCHW - target_BCHW
    if objective.error_of != "output":
        error_BCHW = error_BCHW * noising.error_factor(objective.error_of, noise.t_B).sqrt()
    loss_BCHW = _ERRORS[objective.loss](error_BCHW, objective.huber_delta)
    loss_B = _mean(loss_BCHW, mask_B1HW if objective.masked else None, objective.unmasked_weight)
    if objective.min_snr_gamma > 0:
        loss_B = loss_B * noising.min_snr_weight(noise.t_B, objective.min_snr_gamma)
    if objective.debiased:
        loss_B = loss_B * noising.debiased_weight(noise.t_B)
    return loss_B


def _mean(loss_BCHW: Tensor, mask_B1HW: Tensor | None, floor: float) -> Tensor:
    """Mean per image; with a mask weighted by it, so that a small subject counts as a large one."""
    if mask_B1HW is None:
        return loss_BCHW.flatten(1).mean(dim=1)
    weight_BCHW = (floor + (1 - floor) * mask_B1HW).expand_as(loss_BCHW).flatten(1)
    total_B = weight_BCHW.sum(dim=1).clamp_min(1e-6)
    return (weight_BCHW * loss_BCHW.flatten(1)).sum(dim=1) / total_B
