"""What mini-SDXL's training draws from."""

from pathlib import Path

import numpy as np
import pytest
import torch

from b4m.testing import TINY, learn_tokenizer
from b4m.training.loop import LoopConfig
from b4m_mini import base, captions
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
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(base, "SYNTHETIC_STYLES", 12)
    names = ("lion", "ant", "cat", "octopus")
    things = [Content(name, "", name, "", "", (), "animal") for name in names]
    styles = [STYLES[name] for name in ("twemoji", "painted-06", "openmoji")]
    cells = [Cell(thing, style) for thing in things for style in styles]
    pictures = np.full((len(cells), 128, 128, 3), 120, dtype=np.uint8)
    pictures[:, :20] = 255
    texts = ["a lion in flat sticker style", "under a stone near the river nobody sang of winter"]
    vocabulary = learn_tokenizer(texts * 9, 700, 24)
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
    )
    recipe = Recipe(TINY, 2, VaeRecipe(loop, lr=1), shares, ClipRecipe(loop, lr=1))
    shown = base._gather(
        Tiles(cells, pictures, recipe, tmp_path),
        Mirror(),  # type: ignore[arg-type]
        vocabulary,
        torch.device("cpu"),
    )
    # the octopus and openmoji are held out: two known things in two styles, a third one drawn
    count = 12 * base.DRAWINGS
    assert len(shown.mean) == len(shown.tokens) == 4 + 1 + count
    assert shown.weights.tolist() == pytest.approx([0.175] * 4 + [0.1] + [0.2 / count] * count)
    known, strange = shown.mean[:5].float(), shown.mean[5:].float()
    assert known.flatten(1).std(0).max() < 1e-6
    looks = strange.flatten(1).unflatten(0, (12, base.DRAWINGS))
    assert looks.std(1).mean() < 0.2 * looks.mean(1).std(0).mean()  # one look, one hand

    texts = [vocabulary.decode(row, skip_special_tokens=True) for row in shown.tokens[:, 0]]
    assert sum("sticker" in text or "doodle" in text for text in texts[:5]) == 5
    assert not any("sticker" in text for text in texts[5:])
    called = [any(name in text.replace(" ", "") for name in names) for text in texts]
    assert all(called[:4])
    nameless = 1 - sum(called[5:]) / count
    assert nameless == pytest.approx(base.UNNAMED, abs=0.12)


def test_every_synthetic_style_has_one_token_of_its_own() -> None:
    vocabulary = learn_tokenizer(["a lion under a palm tree in flat sticker style"] * 9, 600, 24)
    words = captions.free_words(vocabulary, ["lion", "flat sticker style"], 8)
    assert len(set(words)) == len(words) > 2
    assert not {"lion", "flat", "sticker", "style"} & set(words)
    assert all(len(vocabulary.tokenize(word)) == 1 for word in words)
