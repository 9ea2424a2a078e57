"""What the evaluator is shown and asked: a content is not a palette, a style is not a content."""

import dataclasses
import math
import random

import pytest
import torch

from b4m.training.loop import LoopConfig
from b4m_mini import clip
from b4m_mini.catalog import STYLES, Content
from b4m_mini.grid import Cell
from b4m_mini.recipe import ClipRecipe


def _cells() -> tuple[list[Cell], torch.Tensor]:
    """Three things in four styles, the first one held out; a cell's grey is 40 times its style."""
    things = [Content(name, "", name, "", "", (), "thing") for name in ("octopus", "house", "lion")]
    styles = [STYLES[name] for name in ("twemoji", "noto", "openmoji", "emojione")]
    cells = [Cell(thing, style) for thing in things for style in styles]
    kept = [cell for cell in cells if clip.seen(cell, ClipRecipe(LoopConfig(1), lr=1))]
    greys = [40 * (1 + styles.index(cell.style)) for cell in kept]
    images = torch.tensor(greys, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 64, 64)
    return kept, images.contiguous()


def test_the_evaluator_never_learns_that_an_unseen_cell_does_not_exist() -> None:
    cells, images = _cells()
    assert len(cells) == 10  # the octopus is not shown in openmoji and emojione
    recipe = ClipRecipe(LoopConfig(1, 6), lr=1, mosaics=5)
    batch = clip._Views(images, cells, recipe).draw(random.Random(3))
    assert batch.images.shape == (6 + 3 + 5, 3, 64, 64)
    named = list(clip._style_words(cells))
    for row, position in enumerate(batch.index):
        shut = [name for name, off in zip(named, batch.excluded[row], strict=True) if off]
        held = cells[position].content.held_out
        assert shut == (["openmoji", "emojione"] if held else [])
        assert named[int(batch.styles[row])] == cells[position].style.id
    assert not batch.excluded[6:].any()
    assert batch.styles[6:9].tolist() == [4, 4, 5]  # made-up ones, two things in each
    assert batch.contents.tolist() == [0, 1, 2] * 3 + [3, 4, 5, 6, 7]
    for first, second in zip(batch.index[:3], batch.index[3:], strict=True):
        assert cells[first].content == cells[second].content
        assert cells[first].style != cells[second].style


def test_a_style_is_looked_for_among_other_things_only() -> None:
    likeness = torch.tensor(
        [[9.0, 9.0, 2.0, 1.0], [9.0, 9.0, 0.0, 3.0], [2.0, 0.0, 9.0, 0.5], [1.0, 3.0, 0.5, 9.0]]
    )
    batch = clip._Shown(
        [],
        torch.empty(0),
        contents=torch.tensor([0, 0, 1, 2]),
        styles=torch.tensor([0, 1, 0, 1]),
        excluded=torch.zeros(4, 2, dtype=torch.bool),
    )
    # each picture has one of its style among two or three that show other things
    shares = [1 / (1 + e) for e in map(math.exp, (-1.0, -3.0))]
    for right, wrong in ((2.0, (0.0, 0.5)), (3.0, (1.0, 0.5))):
        shares.append(1 / (1 + sum(math.exp(value - right) for value in wrong)))
    expected = -sum(map(math.log, shares)) / 4
    assert float(clip._same_style(likeness, batch)) == pytest.approx(expected, rel=1e-5)

    # the thing of picture 2 is never seen in style 1: it must not learn to be unlike it
    unseen = torch.zeros(4, 2, dtype=torch.bool)
    unseen[2, 1] = True
    found = clip._same_style(likeness, dataclasses.replace(batch, excluded=unseen))
    expected = (math.log(1 + math.exp(-1.0)) + math.log(1 + math.exp(-2.0))) / 4
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_a_mosaic_is_of_one_style() -> None:
    cells, images = _cells()
    recipe = ClipRecipe(LoopConfig(1, 2), lr=1, mosaics=40)
    batch = clip._Views(images, cells, recipe).draw(random.Random(0))
    mosaics, styles = batch.images[3:], batch.styles[3:]
    assert set(styles.tolist()) == {0, 1, 2, 3}
    grey = (mosaics.mean(1) + 1) * 127.5
    expected = 40.0 * (styles + 1)
    tint = 0.13 * expected + 8  # as far as augmentation may change it
    for quarter in grey.unfold(1, 32, 32).unfold(2, 32, 32).flatten(1, 2).unbind(1):
        assert ((quarter.flatten(1).median(1).values - expected).abs() < tint).all()


def test_a_mosaic_has_four_pictures_side_by_side() -> None:
    parts = torch.arange(8.0)[:, None, None, None].expand(-1, 3, 8, 8)
    found = clip._mosaic(parts, random.Random(0))
    corners = found[:, 0, ::4, ::4].flatten(1)
    assert corners.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
