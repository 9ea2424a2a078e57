"""Made-up looks: random recolouring, texture and lines over a drawing.

Twenty-three named looks are few for an autoencoder and a base that adapters shall take to others.
Both see these beside the grid, the base hundreds of them under a word each, so that a word which
it never met means *some* look, of one hand.
"""

import math
from collections.abc import Callable

import torch
from torch.nn import functional

_KNOTS = 4


def repaint(x_BCHW: torch.Tensor, generator: torch.Generator, each: int = 1) -> torch.Tensor:
    """The same drawings in random looks; white stays white.

    A palette replaces brightness by colours, hatching and blotches change the fills, a contour
    draws lines, and a few pictures become stencils or empty outlines.

    Args:
        x_BCHW: pictures in [-1, 1] on white.
        generator: on the pictures' device.
        each: so many drawings in a row get the same look.

    Returns:
        pictures in [-1, 1], of the same shape.
    """
    count, _, height, width = x_BCHW.shape
    device = x_BCHW.device

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        looks = (-(-count // each), *(shape or (1, 1, 1)))
        drawn = torch.rand(looks, generator=generator, device=device)
        return low + (high - low) * drawn.repeat_interleave(each, 0)[:count]

    def chance(share: float) -> torch.Tensor:
        return uniform(0.0, 1.0) < share

    rgb = (x_BCHW + 1.0) / 2.0
    light = rgb.mean(1, keepdim=True)
    inside = (8.0 * (1.0 - rgb).amax(1, keepdim=True)).clamp(0.0, 1.0)
    contour = (_spread(light) + _spread(inside)).mul(1.5).clamp(0.0, 1.0)

    colours = uniform(0.0, 1.0, _KNOTS, 3)
    by_light = colours.gather(1, colours.sum(2, keepdim=True).argsort(1).expand_as(colours))
    colours = torch.where(chance(0.8)[..., 0], by_light, colours)
    knots = torch.arange(_KNOTS, device=device)[None, :, None, None]
    share = (1.0 - (light * (_KNOTS - 1) - knots).abs()).clamp_min(0.0)
    painted = torch.einsum("bkhw,bkc->bchw", share, colours)
    result = torch.lerp(rgb, painted, uniform(0.2, 1.5).clamp_max(1.0))

    result = result + _hatching(uniform, height, width) * uniform(-0.5, 0.5).clamp_min(0.0)
    coarse = torch.rand((count, 3, 8, 8), generator=generator, device=device) - 0.5
    blotches = functional.interpolate(coarse, (height, width), mode="bilinear")
    result = result + blotches * uniform(-1.0, 0.8).clamp_min(0.0)

    hollow, stencil = chance(0.08), chance(0.08)
    result = torch.where(hollow, 1.0, result)
    ink = torch.where(chance(0.7), 0.0, uniform(0.0, 0.6, 3, 1, 1))
    lines = torch.where(hollow, 1.0, uniform(-0.8, 1.0).clamp_min(0.0))
    result = torch.lerp(result, ink.expand_as(result), contour * lines)
    black = (0.5 + 8.0 * (light - uniform(0.3, 0.7))).clamp(0.0, 1.0)
    outlined = torch.minimum(black, 1.0 - contour)  # a pale thing would vanish without
    result = torch.where(stencil, outlined.expand_as(result), result)
    covered = torch.maximum(inside, contour * lines)
    return torch.lerp(torch.ones_like(result), result, covered).clamp(0.0, 1.0) * 2.0 - 1.0


def _spread(plane_B1HW: torch.Tensor) -> torch.Tensor:
    """Highest less lowest value within three pixels: where lines would be drawn."""
    high = functional.max_pool2d(plane_B1HW, 3, 1, 1)
    return high + functional.max_pool2d(-plane_B1HW, 3, 1, 1)


def _hatching(uniform: Callable[..., torch.Tensor], height: int, width: int) -> torch.Tensor:
    """Parallel waves of random direction, width and tint, between -0.5 and 0.5."""
    angle, waves = uniform(0.0, math.pi), uniform(4.0, 20.0)
    tint = uniform(0.0, 1.0, 3, 1, 1)
    down = torch.linspace(0.0, 1.0, height, device=angle.device)[None, None, :, None]
    right = torch.linspace(0.0, 1.0, width, device=angle.device)[None, None, None, :]
    along = right * angle.cos() + down * angle.sin()
    return 0.5 * torch.sin(2.0 * math.pi * waves * along) * tint
