"""Restyled copies: the same thing in other looks, on the same ground."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from b4m.data.restyle import restyle


def drawing() -> Image.Image:
    image = Image.new("RGB", (64, 64), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((12, 10, 52, 54), fill=(230, 120, 40), outline=(60, 20, 10), width=2)
    draw.rectangle((26, 22, 38, 34), fill=(40, 60, 160))
    return image


def photograph() -> Image.Image:
    down, right = np.mgrid[0:72, 0:96]
    rgb = np.stack([(down * 3) % 256, (right * 2) % 256, (down + right) % 256], axis=2)
    return Image.fromarray(rgb.astype(np.uint8))


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, np.float64) / 255.0


@pytest.mark.parametrize("image", [drawing(), photograph()], ids=["drawing", "photograph"])
def test_a_seed_is_one_look_and_other_seeds_are_others(image: Image.Image) -> None:
    copy, words = restyle(image, 7)
    again, same = restyle(image, 7)
    assert copy.tobytes() == again.tobytes()
    assert words == same
    assert copy.size == image.size
    assert copy.mode == "RGB"
    copies = [restyle(image, seed) for seed in range(24)]
    assert len({one.tobytes() for one, _ in copies}) == 24
    assert all(words for _, words in copies)
    assert len({words for _, words in copies}) >= 16


def test_the_ground_of_a_drawing_stays_white_and_the_thing_stays_where_it_is() -> None:
    image = drawing()
    thing = pixels(image).min(axis=2) < 0.9
    for seed in range(24):
        light = pixels(restyle(image, seed)[0]).min(axis=2)
        assert light[:6].min() > 0.97, "the upper border holds nothing"
        seen = light < 0.97
        # an outline alone covers the rim; nothing is drawn further out than a line is wide
        grown = np.pad(thing, 3)
        near = np.zeros_like(thing)
        for dy in range(7):
            for dx in range(7):
                near |= grown[dy : dy + 64, dx : dx + 64]
        assert not (seen & ~near).any()
        assert seen.sum() > 100


def test_a_photograph_is_restyled_to_its_borders() -> None:
    image = photograph()
    changed = [
        np.abs(pixels(restyle(image, seed)[0]) - pixels(image))[[0, -1]].mean()
        for seed in range(24)
    ]
    assert min(changed) > 0.01
    assert np.median(changed) > 0.1


def test_colours_of_copies_differ_more_from_one_another_than_one_look_from_itself() -> None:
    image = drawing()
    means = np.array(
        [pixels(restyle(image, seed)[0])[20:44, 20:44].mean(axis=(0, 1)) for seed in range(40)]
    )
    assert means.std(axis=0).min() > 0.15


def test_the_words_name_the_hues_that_are_seen() -> None:
    hues = "red orange gold lime green teal cyan blue indigo violet pink crimson".split()
    right = told = 0
    for seed in range(60):
        copy, words = restyle(drawing(), seed)
        named = [hues.index(word) for word in words.split() if word in hues]
        if not named:
            continue  # black and white
        hue, saturation, _ = (
            np.asarray(plane, np.float64) for plane in copy.convert("HSV").split()
        )
        weight = saturation * (pixels(copy).min(axis=2) < 0.9)
        seen = np.bincount((hue / 256 * 12).astype(int).ravel(), weight.ravel(), 12)
        distance = [abs(int(seen.argmax()) - name) for name in named]
        told += 1
        right += min(min(d, 12 - d) for d in distance) <= 1
    assert told > 30
    assert right / told > 0.8
