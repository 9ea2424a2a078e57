"""What mini-SDXL's training draws from."""

from pathlib import Path

import numpy as np
import pytest
import torch

from b4m.testing import TINY, learn_tokenizer
from b4m.training.loop import LoopConfig
from b4m_mini import base, tiles
from b4m_mini.catalog import STYLES, Content
from b4m_mini.grid import Cell
from b4m_mini.recipe import BaseRecipe, ClipRecipe, Recipe, VaeRecipe
from b4m_mini.tiles import Tiles


class Mirror:
    """An autoencoder whose latent is the mean colour of the picture."""

    config = {"sample_size": 16}

    def encode(self, x_BCHW: torch.Tensor) -> object:
        mean = x_BCHW.mean((2, 3), keepdim=True)
        latent = type("Latent", (), {"mean": mean, "std": torch.zeros_like(mean)})
        return type("Encoded", (), {"latent_dist": latent})


def test_known_cells_other_contents_and_synthetic_styles_come_in_their_shares(
    tmp_path: Path,
) -> None:
    names = ("lion", "ant", "cat", "octopus")
    things = [Content(name, "", name, "", "", (), "animal") for name in names]
    styles = [STYLES[name] for name in ("twemoji", "painted-06", "openmoji")]
    cells = [Cell(thing, style) for thing in things for style in styles]
    images = np.full((len(cells), 128, 128, 3), 120, dtype=np.uint8)
    images[:, :20] = 255
    texts = ["a lion in flat sticker style", "under a stone near the river nobody sang of winter"]
    vocabulary = learn_tokenizer(texts * 9, 700, 48)
    loop = LoopConfig(1)
    shares = BaseRecipe(
        loop,
        lr=1,
        painted=0.5,
        styleless=0,
        nonsense_style=0,
        nameless=0.0,
        others=0.1,
        synthetic=0.2,
        described=60,
    )
    recipe = Recipe(TINY, 2, VaeRecipe(loop, lr=1), shares, ClipRecipe(loop, lr=1))
    blends = tiles.blends(cells, frozenset({"lion", "ant"}), 20, 0)
    shown = base._gather(
        Tiles(cells, images, blends, np.full((20, 128, 128, 3), 90, np.uint8), recipe, tmp_path),
        Mirror(),  # type: ignore[arg-type]
        vocabulary,
        torch.device("cpu"),
    )
    # the octopus and openmoji are held out: two known things in two styles, a third one drawn
    assert len(shown.mean) == len(shown.tokens) == 4 + 1 + 60 + 20
    assert shown.weights.tolist() == pytest.approx([0.175] * 4 + [0.1] + [0.2 / 80] * 80)
    known, strange = shown.mean[:5].float(), shown.mean[5:65].float()
    assert known.flatten(1).std(0).max() < 1e-6
    assert strange.flatten(1).std(0).min() > 0.1, "every copy has a look of its own"

    texts = [vocabulary.decode(row, skip_special_tokens=True) for row in shown.tokens[:, 0]]
    texts = [text.replace(" ", "") for text in texts]
    assert sum("sticker" in text or "doodle" in text for text in texts[:5]) == 5
    hues = ("red", "orange", "gold", "lime", "green", "teal", "cyan", "blue", "indigo", "violet")
    hues += ("pink", "crimson", "outline", "stencil")
    assert all(any(hue in text for hue in hues) for text in texts[5:65])
    assert all("and" in text for text in texts[65:])
    nameless = 1 - sum(any(name in text for name in names) for text in texts[5:]) / 80
    assert nameless == pytest.approx(base.UNNAMED, abs=0.15)


def test_blends_are_of_two_base_styles_and_name_the_heavier_one_first() -> None:
    things = [Content(name, "", name, "", "", (), "animal") for name in ("lion", "ant", "cat")]
    cells = [Cell(thing, STYLES["twemoji"]) for thing in things]
    mixed = tiles.blends(cells, frozenset({"lion", "ant"}), 200, seed=3)
    assert {cell.content.id for cell in mixed} == {"lion", "ant"}
    painters = {style.painter: style for style in STYLES.values()}
    for cell in mixed:
        parts = [part.split(":") for part in str(cell.style.painter).split(",")]
        heavy, light = (painters[int(number)] for number, _ in parts)
        assert not heavy.held_out
        assert not light.held_out
        assert cell.style.words == f"{heavy.words} and {light.words}"
        assert float(parts[0][1]) >= 0.5
        assert float(parts[0][1]) + float(parts[1][1]) == pytest.approx(1, abs=2e-3)
        assert cell.split == "base"
