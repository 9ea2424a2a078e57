"""Random looks, and what the evaluator is shown: a thing is no palette, a style is no thing."""

import dataclasses
import math
import random

import pytest
import torch

from b4m.mini import clip
from b4m.mini.contents import Content
from b4m.mini.grid import Cell
from b4m.mini.looks import repaint
from b4m.mini.recipe import ClipRecipe, Schedule
from b4m.mini.styles import BY_ID


def _drawings(count: int) -> torch.Tensor:
    """A shaded box on white, the same in every picture, in [-1, 1]."""
    picture = torch.ones(3, 64, 64)
    picture[:, 20:44, 20:44] = torch.linspace(-0.9, 0.6, 24)[None, :, None]
    return picture.expand(count, -1, -1, -1).clone()


def test_a_look_changes_the_thing_and_leaves_the_background_white() -> None:
    drawings = _drawings(64)
    painted = repaint(drawings, torch.Generator().manual_seed(0))
    assert painted.min() >= -1
    assert painted.max() <= 1
    background = torch.ones(64, 64, dtype=torch.bool)
    background[18:46, 18:46] = False  # a contour may lie outside
    assert torch.equal(painted[:, :, background], drawings[:, :, background])
    changed = (painted - drawings)[:, :, 21:43, 21:43].abs().mean((1, 2, 3))
    assert (changed > 0.05).float().mean() > 0.9
    colours = painted[:, :, 22:42, 22:42].mean((2, 3))
    assert torch.cdist(colours, colours)[~torch.eye(64, dtype=torch.bool)].mean() > 0.5
    again = repaint(drawings, torch.Generator().manual_seed(0))
    assert torch.equal(painted, again)


def test_drawings_of_one_look_are_of_one_hand() -> None:
    painted = repaint(_drawings(64), torch.Generator().manual_seed(1), each=8)
    colours = painted[:, :, 22:42, 22:42].mean((2, 3))
    apart = torch.cdist(colours, colours)
    look = torch.arange(64) // 8
    same = (look[:, None] == look) & ~torch.eye(64, dtype=torch.bool)
    assert apart[same].mean() < 0.2 * apart[look[:, None] != look].mean()
    assert repaint(_drawings(5), torch.Generator().manual_seed(1), each=8).shape[0] == 5


def _cells() -> tuple[list[Cell], torch.Tensor]:
    """Three things in four styles, the first one held out; a cell's grey is 40 times its style."""
    things = [Content(name, "", name, "", "", (), "thing") for name in ("octopus", "house", "lion")]
    styles = [BY_ID[name] for name in ("twemoji", "noto", "openmoji", "emojione")]
    cells = [Cell(thing, style) for thing in things for style in styles]
    kept = [cell for cell in cells if clip.seen(cell, ClipRecipe(Schedule(1, 1, 4, 1, 1)))]
    greys = [40 * (1 + styles.index(cell.style)) for cell in kept]
    pictures = torch.tensor(greys, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 64, 64)
    return kept, pictures.contiguous()


def test_the_evaluator_never_learns_that_an_unseen_cell_does_not_exist() -> None:
    cells, pictures = _cells()
    assert len(cells) == 10  # the octopus is not shown in openmoji and emojione
    recipe = ClipRecipe(Schedule(1, 1, 6, 1, 1), mosaics=5)
    batch = clip._Views(pictures, cells, recipe).draw(random.Random(3))
    assert batch.pictures.shape == (6 + 3 + 5, 3, 64, 64)
    named = [style.id for style in clip._styles(cells)]
    for row, position in enumerate(batch.index):
        shut = [name for name, off in zip(named, batch.excluded[row], strict=True) if off]
        held = cells[position].content.held_out
        assert shut == (["openmoji", "emojione"] if held else [])
        assert named[int(batch.styles[row])] == cells[position].style.id
    assert not batch.excluded[6:].any()
    assert batch.styles[6:9].tolist() == [4, 4, 5]  # made-up ones, two things in each
    assert batch.things.tolist() == [0, 1, 2] * 3 + [3, 4, 5, 6, 7]
    for first, second in zip(batch.index[:3], batch.index[3:], strict=True):
        assert cells[first].content == cells[second].content
        assert cells[first].style != cells[second].style


def test_a_style_is_looked_for_among_other_things_only() -> None:
    likeness = torch.tensor(
        [[9.0, 9.0, 2.0, 1.0], [9.0, 9.0, 0.0, 3.0], [2.0, 0.0, 9.0, 0.5], [1.0, 3.0, 0.5, 9.0]]
    )
    batch = clip._Batch(
        [],
        torch.empty(0),
        things=torch.tensor([0, 0, 1, 2]),
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
    cells, pictures = _cells()
    recipe = ClipRecipe(Schedule(1, 1, 2, 1, 1), mosaics=40)
    batch = clip._Views(pictures, cells, recipe).draw(random.Random(0))
    mosaics, styles = batch.pictures[3:], batch.styles[3:]
    assert set(styles.tolist()) == {0, 1, 2, 3}
    grey = (mosaics.mean(1) + 1) * 127.5
    for quarter in grey.unfold(1, 32, 32).unfold(2, 32, 32).flatten(1, 2).unbind(1):
        assert (quarter.flatten(1).median(1).values - 40 * (styles + 1)).abs().max() < 20


def test_a_mosaic_has_four_pictures_side_by_side() -> None:
    parts = torch.arange(8.0)[:, None, None, None].expand(-1, 3, 8, 8)
    found = clip._mosaic(parts, random.Random(0))
    corners = found[:, 0, ::4, ::4].flatten(1)
    assert corners.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
