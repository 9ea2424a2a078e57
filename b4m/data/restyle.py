"""Restyled copies of an image: the same thing in random looks, with words for each look.

A content that is learned from one image alone keeps that image's colours and lines, and lets no
style through. Shown in many looks, each named in its caption, it is what the looks have in common.

    palette    brightness becomes a ramp between one or two random hues, dark, pale or negative
    hatching   parallel waves of random direction, width and tint
    wash       fills run together and vary in blotches
    grain      coarse noise
    contour    lines along edges
    outline    lines alone;  stencil  two tones

A drawing on white keeps its white; a photograph is restyled to its borders.
"""

import colorsys
from collections.abc import Callable
from random import Random

import numpy as np
from PIL import Image, ImageFilter

Plane = np.ndarray
_KNOTS = 4
_CONSONANTS = "bcdfghjklmnpqrstvwxz"
_HUES = (
    "red", "orange", "gold", "lime", "green", "teal", "cyan", "blue", "indigo", "violet", "pink",
    "crimson",
)  # fmt: skip


def restyle(image: Image.Image, seed: int) -> tuple[Image.Image, str]:
    """One copy in a random look.

    Args:
        image: RGB, of any size.
        seed: decides the look.

    Returns:
        The copy, of the same size, and words for its look, such as "teal and gold hatched
        outlined".
    """
    random = Random(seed)
    noise = np.random.default_rng(seed)
    rgb = np.asarray(image.convert("RGB"), np.float64) / 255.0
    light = rgb.mean(axis=2)
    inside = _inside(rgb)
    lines = _contour(light, inside)
    words: list[str] = []
    if random.random() < 0.16:
        result, word = _two_tone(random, light, lines)
        words.append(word)
    else:
        result, colours = _palette(random, rgb, light)
        words.append(colours)
        texture, word = random.choice(_TEXTURES)
        result = texture(random, noise, result)
        words.append(word)
        if random.random() < 0.5:
            ink = np.full(3, 0.0) if random.random() < 0.7 else noise.uniform(0, 0.6, 3)
            result = _mix(result, ink, lines * random.uniform(0.4, 1.0))
            words.append("outlined")
    covered = np.maximum(inside, lines)
    result = _mix(np.ones(3), result, covered).clip(0.0, 1.0)
    copy = Image.fromarray((result * 255).round().astype(np.uint8))
    return copy, " ".join(word for word in words if word)


def identifier(seed: int) -> str:
    """Three characters that mean nothing, as papers call a look that has no name."""
    random = Random(seed)
    letters = [random.choice(_CONSONANTS) for _ in range(3)]
    if random.random() < 0.35:
        letters[1] = "@"
    return "".join(letters)


def _inside(rgb: Plane) -> Plane:
    """Where the thing is: all but white for a drawing on white, everywhere for a photograph."""
    border = np.concatenate([rgb[0], rgb[-1], rgb[:, 0], rgb[:, -1]])
    if (border.min(axis=1) > 0.94).mean() < 0.6:
        return np.ones(rgb.shape[:2])
    return (8.0 * (1.0 - rgb).max(axis=2)).clip(0.0, 1.0)


def _contour(light: Plane, inside: Plane) -> Plane:
    """Where lines would be drawn: highest less lowest value nearby, as wide as suits the size."""
    size = 3 if min(light.shape) < 256 else 5
    return (1.5 * (_spread(light, size) + _spread(inside, size)) - 0.15).clip(0.0, 1.0)


def _spread(plane: Plane, size: int) -> Plane:
    grey = Image.fromarray((plane * 255).astype(np.uint8))
    high = np.asarray(grey.filter(ImageFilter.MaxFilter(size)), np.float64)
    low = np.asarray(grey.filter(ImageFilter.MinFilter(size)), np.float64)
    return (high - low) / 255.0


def _palette(random: Random, rgb: Plane, light: Plane) -> tuple[Plane, str]:
    """Brightness as a ramp between one or two hues; and words for it, "dark teal and gold"."""
    hues = [random.random() for _ in range(2 if random.random() < 0.8 else 1)]
    knots = [hues[k % len(hues)] + random.uniform(-0.03, 0.03) for k in range(_KNOTS)]
    values = sorted(random.uniform(0.05, 1.0) for _ in range(_KNOTS))
    paleness = random.uniform(0.25, 1.0)
    saturations = [min(1.0, paleness + random.uniform(-0.15, 0.15)) for _ in range(_KNOTS)]
    words = ["dark"] if sum(values) / _KNOTS < 0.4 else []
    words += ["pale"] if paleness < 0.5 else []
    if random.random() < 0.15:
        values.reverse()
        words.append("negative")
    colours = np.array(
        [
            colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
            for hue, saturation, value in zip(knots, saturations, values, strict=True)
        ]
    )
    at = np.linspace(light.min(), light.max() + 1e-6, _KNOTS)
    painted = np.stack([np.interp(light, at, colours[:, k]) for k in range(3)], axis=2)
    named = dict.fromkeys(_HUES[int(hue % 1.0 * len(_HUES))] for hue in hues)
    words.append(" and ".join(named))
    return _mix(rgb, painted, min(1.0, random.uniform(0.6, 1.6))), " ".join(words)


def _plain(random: Random, noise: np.random.Generator, image: Plane) -> Plane:
    return image


def _hatching(random: Random, noise: np.random.Generator, image: Plane) -> Plane:
    height, width = image.shape[:2]
    angle, waves = random.uniform(0, np.pi), random.uniform(4, 20)
    down, right = np.mgrid[0:height, 0:width] / max(height, width)
    stripes = np.sin(2 * np.pi * waves * (right * np.cos(angle) + down * np.sin(angle)))
    tint = noise.uniform(0, 1, 3)
    return image + random.uniform(0.12, 0.4) * stripes[..., None] * tint


def _wash(random: Random, noise: np.random.Generator, image: Plane) -> Plane:
    height, width = image.shape[:2]
    soft = Image.fromarray((image.clip(0, 1) * 255).astype(np.uint8)).filter(
        ImageFilter.GaussianBlur(random.uniform(0.01, 0.025) * max(height, width))
    )
    return np.asarray(soft, np.float64) / 255.0 + random.uniform(0.15, 0.4) * _blotches(
        noise, height, width
    )


def _blotches(noise: np.random.Generator, height: int, width: int) -> Plane:
    coarse = noise.uniform(-0.5, 0.5, (8, 8, 3))
    planes = [
        Image.fromarray(coarse[..., k].astype(np.float32)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        for k in range(3)
    ]
    return np.stack([np.asarray(plane, np.float64) for plane in planes], axis=2)


def _grain(random: Random, noise: np.random.Generator, image: Plane) -> Plane:
    height, width = image.shape[:2]
    size = max(1, round(max(height, width) / 96))
    coarse = noise.normal(0, 1, (-(-height // size), -(-width // size)))
    grain = np.kron(coarse, np.ones((size, size)))[:height, :width]
    return image + random.uniform(0.04, 0.12) * grain[..., None]


def _two_tone(random: Random, light: Plane, lines: Plane) -> tuple[Plane, str]:
    """Lines on white, or black and white with white lines."""
    if random.random() < 0.5:
        return _mix(np.ones((*light.shape, 3)), np.zeros(3), lines), "outline"
    black = (0.5 + 8.0 * (light - random.uniform(0.3, 0.7))).clip(0.0, 1.0)
    # a pale thing would vanish without its lines
    return np.repeat(np.minimum(black, 1.0 - lines)[..., None], 3, axis=2), "stencil"


def _mix(first: Plane, second: Plane, share: Plane | float) -> Plane:
    part = share[..., None] if isinstance(share, np.ndarray) else share
    return first + (second - first) * part


_TEXTURES: tuple[tuple[Callable[[Random, np.random.Generator, Plane], Plane], str], ...] = (
    (_plain, ""),
    (_hatching, "hatched"),
    (_wash, "washed"),
    (_grain, "grainy"),
)
