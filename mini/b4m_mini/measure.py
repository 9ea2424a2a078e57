"""Measure the offline world as its model cards state it, and draw their contact sheets.

vae:        how well do latents reconstruct, on seen and on unseen styles?
evaluator:  does mini-CLIP know cells that it never saw?
base:       does mini-SDXL draw the content and the style that the prompt names?

Shape legend: N images, M names, D feature dimensions.
"""

import json
import random
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.functional import to_tensor
from torchvision.utils import save_image

from b4m.bases import load_base
from b4m.bases.sampling import sample
from b4m.evaluation.encoders import ClipEncoder, open_encoder
from b4m_mini import captions
from b4m_mini.catalog import STYLES
from b4m_mini.grid import Cell
from b4m_mini.tiles import Tiles, core_contents, named_contents

_GUIDANCE = 3.5
_SHEET = "cat lion koala rooster shark tulip banana pizza house bus guitar mobile-phone".split()


def measure(tiles: Tiles, prompts: int = 200) -> None:
    """Measure `tiles.work`'s models: write measures.json, base.png and vae.png into its `card`.

    Args:
        tiles: the grid that the models were trained on.
        prompts: held-in cells that are drawn.
    """
    (tiles.work / "card").mkdir(exist_ok=True)
    base, judge = load_base(str(tiles.work / "mini-sdxl")), Judge(tiles)
    measures = {
        "vae": _vae(base, tiles),
        "evaluator": _evaluator(judge),
        "base": _base(judge, base, prompts),
    }
    (tiles.work / "card/measures.json").write_text(json.dumps(measures, indent=1) + "\n")
    _sheet(base, tiles)


class Judge:
    """mini-CLIP with the names of the grid, and EfficientNet-Lite0 as an independent check."""

    def __init__(self, tiles: Tiles) -> None:
        self.tiles, self.cells = tiles, tiles.cells
        encoder = open_encoder(str(tiles.work / "mini-clip"))
        assert isinstance(encoder, ClipEncoder)
        self.clip, self.independent = encoder, open_encoder("efficientnet-lite0")
        contents = named_contents(tiles.cells, tiles.recipe.contents)
        styles = list(dict.fromkeys(cell.style.id for cell in tiles.cells))
        self.names = {"content": contents, "style": styles}
        self.unseen = [
            i
            for i, cell in enumerate(tiles.cells)
            if cell.content.held_out and cell.style.id in tiles.recipe.clip.unseen_styles
        ]

    def images(self, positions: Sequence[int]) -> list[Image.Image]:
        """Images of the grid."""
        return [Image.fromarray(self.tiles.images[position]) for position in positions]

    def scores(self, features_ND: np.ndarray, kind: str) -> np.ndarray:
        """Cosines with the names of all contents or styles, N x M."""
        names = self.clip.names[kind]
        texts = [names.template.format(names.words[name]) for name in self.names[kind]]
        return features_ND @ self.clip.encode_texts(texts).T

    def accuracy(self, features_ND: np.ndarray, cells: Sequence[Cell], kind: str) -> float:
        """Share of images whose content or style is named right among all."""
        right = [self.names[kind].index(getattr(cell, kind).id) for cell in cells]
        return _share(self.scores(features_ND, kind).argmax(1), right)

    @cached_property
    def _real(self) -> dict[str, tuple[list[str], np.ndarray]]:
        """Contents and independent features of the grid's images, by style."""
        shown: dict[str, dict[int, str]] = {}
        for i, cell in enumerate(self.cells):
            if cell.content.id in self.names["content"]:
                shown.setdefault(cell.style.id, {})[i] = cell.content.id
        encode = self.independent.encode_images
        return {
            style: (list(named.values()), encode(self.images([*named])))
            for style, named in shown.items()
        }

    def accuracies(self, cells: Sequence[Cell], images: Sequence[Image.Image]) -> dict[str, float]:
        """Contents and styles named right; nearest real images of the style with the content."""
        features_ND = self.clip.encode_images(images)
        nearest = []
        for cell, feature_D in zip(cells, self.independent.encode_images(images), strict=True):
            shown, real_ND = self._real[cell.style.id]
            nearest.append(shown[int((real_ND @ feature_D).argmax())] == cell.content.id)
        return {
            "content_top1": self.accuracy(features_ND, cells, "content"),
            "style_top1": self.accuracy(features_ND, cells, "style"),
            "efficientnet_nearest": float(np.mean(nearest)),
        }


def _share(found: Any, right: Any) -> float:
    return float((np.asarray(found) == np.asarray(right)).mean())


def psnr(x_NCHW: torch.Tensor, y_NCHW: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB of each of N images in [-1, 1]."""
    error_N = (x_NCHW - y_NCHW).square().mean((1, 2, 3)) / 4.0
    return -10.0 * error_N.clamp_min(1e-10).log10()


@torch.no_grad()
def _vae(base: Any, tiles: Tiles) -> dict[str, float]:
    """PSNR by split and by held-out style, mean over up to 120 cells; a sheet of some."""
    groups = {split: tiles.positions(split) for split in ("base", "content", "style", "both")}
    for i, cell in enumerate(tiles.cells):
        if cell.style.held_out:
            groups.setdefault(cell.style.id, []).append(i)
    found, rows = {}, []
    for name, positions in groups.items():
        some = random.Random(0).sample(positions, min(120, len(positions)))
        x = tiles.tensor(some, torch.device("cpu"), base.pixels).float() / 127.5 - 1.0
        means = (base.vae.encode(chunk).latent_dist.mean for chunk in x.split(32))
        decoded = torch.cat([base.vae.decode(mean).sample.clamp(-1, 1) for mean in means])
        found[name] = float(psnr(decoded, x).mean())
        rows += [x[:14], decoded[:14]]
    sheet = torch.cat(rows[:8]) / 2.0 + 0.5
    save_image(sheet, tiles.work / "card/vae.png", nrow=len(rows[0]), padding=0)
    return found


def _evaluator(judge: Judge) -> dict[str, Any]:
    """mini-CLIP on cells of held-out contents in the styles that it never saw them in."""
    asked, images = [judge.cells[i] for i in judge.unseen], judge.images(judge.unseen)
    held = list(dict.fromkeys(cell.content.id for cell in asked))
    features = judge.clip.encode_images(images)
    right = np.array([held.index(cell.content.id) for cell in asked])
    columns = [judge.names["content"].index(name) for name in held]
    names = judge.scores(features, "content")[:, columns]
    rows: dict[str, list[int]] = {}
    for row, cell in enumerate(asked):
        rows.setdefault(cell.style.id, []).append(row)
    same = [
        _share((features[one] @ features[two].T).argmax(1), range(len(held)))
        for one in rows.values()
        for two in rows.values()
        if one is not two
    ]
    return {
        "names": len(held),
        # share of names whose best image shows that name
        "text_to_image_r1": _share(right[names.argmax(0)], range(len(held))),
        "image_to_name_top1": _share(names.argmax(1), right),
        "style_accuracy": judge.accuracy(features, asked, "style"),
        "style_accuracy_by_style": {
            style: judge.accuracy(features[places], [asked[i] for i in places], "style")
            for style, places in rows.items()
        },
        "same_content_first": float(np.mean(same)),
    }


def _base(judge: Judge, base: Any, prompts: int) -> dict[str, Any]:
    """mini-SDXL on held-in cells, and real images of the same cells."""
    known = core_contents(judge.cells, judge.tiles.recipe.contents)
    held_in = [p for p in judge.tiles.positions("base") if judge.cells[p].content.id in known]
    positions = random.Random(1).sample(held_in, min(prompts, len(held_in)))
    cells = [judge.cells[position] for position in positions]
    return {
        "prompts": len(cells),
        "real": judge.accuracies(cells, judge.images(positions)),
        "guidance": _GUIDANCE,
        **judge.accuracies(cells, _sampled(base, cells)),
    }


def _sampled(base: Any, cells: Sequence[Cell]) -> list[Image.Image]:
    """One image per cell, 25 steps, in batches of 8."""
    images: list[Image.Image] = []
    for start in range(0, len(cells), 8):
        prompts = [captions.full(c.content, c.style) for c in cells[start : start + 8]]
        images += sample(base, prompts, [start], steps=25, guidance=_GUIDANCE, batch_size=8)
    return images


def _sheet(base: Any, tiles: Tiles) -> None:
    """Twelve contents in every style that the base saw: generated above, real below."""
    where = {(cell.content.id, cell.style.id): i for i, cell in enumerate(tiles.cells)}
    styles = [s.id for s in STYLES.values() if not s.held_out and (_SHEET[0], s.id) in where]
    rows = []
    for name in (name for name in _SHEET if (name, styles[0]) in where):
        positions = [where[name, style] for style in styles]
        real = tiles.tensor(positions, torch.device("cpu"), base.pixels)
        images = _sampled(base, [tiles.cells[position] for position in positions])
        rows += [torch.stack([to_tensor(image) for image in images]), real.float() / 255.0]
    file, sheet = tiles.work / "card/base.png", torch.cat(rows)
    save_image(sheet, file, nrow=len(styles), padding=4, pad_value=1.0)
