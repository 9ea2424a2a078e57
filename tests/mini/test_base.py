"""What mini-SDXL's training draws from."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from b4m.mini import base, tokenizer
from b4m.mini.contents import Content
from b4m.mini.grid import Cell
from b4m.mini.recipe import BaseRecipe, Schedule
from b4m.mini.styles import BY_ID
from b4m.mini.tiles import Tiles


class Mirror:
    """An autoencoder whose latent is the mean colour of the picture."""

    config = {"sample_size": 16}

    def encode(self, x_BCHW: torch.Tensor) -> object:
        mean = x_BCHW.mean((2, 3), keepdim=True)
        latent = type("Latent", (), {"mean": mean, "std": torch.zeros_like(mean)})
        return type("Encoded", (), {"latent_dist": latent})


def test_named_cells_and_unnamed_looks_come_in_their_shares(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(base, "LOOKS", 300)
    things = [Content(name, "", name, "", "", (), "animal") for name in ("lion", "ant", "octopus")]
    styles = [BY_ID[name] for name in ("twemoji", "painted-06", "openmoji")]
    cells = [Cell(thing, style) for thing in things for style in styles]
    pictures = np.full((len(cells), 128, 128, 3), 120, dtype=np.uint8)
    pictures[:, :20] = 255
    vocabulary = tokenizer.learn(["a lion in flat sticker style"] * 9, 560, 24)
    recipe = BaseRecipe(
        Schedule(1, 1, 4, 1, 1), contents=2, painted=0.5, styleless=0, nonsense_style=0, looks=0.2
    )
    shown = base._gather(
        Tiles(cells, pictures),
        Mirror(),  # type: ignore[arg-type]
        vocabulary,
        replace(recipe, nameless=0.0, unconditional=0.0),
        torch.device("cpu"),
    )
    # the octopus and openmoji are held out: two things in two styles, then the unnamed looks
    assert len(shown.mean) == len(shown.tokens) == 4 + 300
    assert shown.weights.sum() == pytest.approx(1.0)
    assert shown.weights[4:].sum() == pytest.approx(0.2)
    assert shown.weights[:4].tolist() == pytest.approx([0.2] * 4)
    plain, strange = shown.mean[:4].float(), shown.mean[4:].float()
    assert plain.flatten(1).std(0).max() < 1e-6
    assert strange.flatten(1).std(0).min() > 0.1
    texts = [vocabulary.decode(row, skip_special_tokens=True) for row in shown.tokens[:, 0]]
    assert sum("sticker" in text or "doodle" in text for text in texts[:4]) == 4
    assert not any("sticker" in text for text in texts[4:])
    nameless = sum("animal" in text for text in texts[4:]) / 300
    assert nameless == pytest.approx(base.UNNAMED, abs=0.12)
