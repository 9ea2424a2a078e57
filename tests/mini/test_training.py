"""The trainings of the offline world: whitening, arithmetic, and models that others can load."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from b4m.bases import load_base
from b4m.bases.sampling import sample
from b4m.testing import RECIPE, TINY, build_vae
from b4m.training.loop import LoopConfig
from b4m_mini import autoencoder, base, clip, measure, publish, tiles
from b4m_mini.catalog import STYLES, Content
from b4m_mini.grid import Cell
from b4m_mini.measure import psnr
from b4m_mini.recipe import BaseRecipe, ClipRecipe, Recipe, VaeRecipe
from b4m_mini.tiles import Tiles
from b4m_mini.trainer import Bfloat16

LOOP = LoopConfig(2, 4, schedule="cosine", ema_decay=0.9)


CONTENTS = ("ant", "bus", "cat", "octopus", "owl")  # the base never sees the last two
COLOURS = {
    "twemoji": (200, 30, 30),
    "noto": (30, 160, 30),
    "noto-v1": (40, 40, 200),
    "fluent-flat": (120, 120, 0),
    "emojione": (160, 0, 160),
    "openmoji": (0, 140, 160),  # the base never sees this one
}


def _world(work: Path) -> Tiles:
    """Five contents (where a bar lies) in six styles (its colour)."""
    cells, images = [], []
    for number, name in enumerate(CONTENTS):
        for style, colour in COLOURS.items():
            image = np.full((128, 128, 3), 255, np.uint8)
            image[8 + 23 * number : 28 + 23 * number, 24:104] = colour
            cells.append(Cell(Content(name, "", name, "", "", (), "thing"), STYLES[style]))
            images.append(image)
    recipe = Recipe(
        TINY,
        contents=0,
        vae=VaeRecipe(replace(LOOP, steps=40), lr=3e-3),
        base=BaseRecipe(LOOP, lr=1e-3, variants=4, described=8, blends=0),
        clip=ClipRecipe(replace(LOOP, steps=60, batch_size=8), lr=2e-3, mosaics=4),
        vocabulary=600,
    )
    none = np.empty((0, 128, 128, 3), np.uint8)
    built = Tiles(cells, np.stack(images), [], none, recipe, work)
    tiles._learn_tokenizer(cells, recipe).save_pretrained(work / "tokenizer")
    return built


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Tiles:
    """A trained world of thirty cells."""
    built = _world(tmp_path_factory.mktemp("world"))
    autoencoder.train(built)
    base.train(built)
    clip.train(built)
    return built


@pytest.fixture(scope="module")
def measures(world: Tiles) -> dict[str, dict]:
    """What is measured on three prompts, drawn in two steps each."""

    def fast(*given: Any, **rest: Any) -> list[Image.Image]:
        return sample(*given, **rest | {"steps": 2})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "sample", fast)
        measure.measure(world, prompts=3)
    return json.loads((world.work / "card/measures.json").read_text())


def test_the_trained_base_is_an_ordinary_one_with_its_settings(world: Tiles) -> None:
    loaded = load_base(str(world.work / "mini-sdxl"), device="cpu")
    assert loaded.recipe == RECIPE
    (image,) = sample(loaded, ["an ant in flat sticker style"], [0], steps=2)
    assert image.size == (32, 32)


def test_the_autoencoder_reconstructs_better_than_before_its_training(world: Tiles) -> None:
    loaded = load_base(str(world.work / "mini-sdxl"), device="cpu")
    x = world.tensor(world.positions("base"), torch.device("cpu"), 32).float() / 127.5 - 1.0
    with torch.no_grad():
        values = []
        for vae in (loaded.vae, build_vae(TINY)):  # type: ignore[attr-defined]
            values.append(psnr(vae.decode(vae.encode(x).latent_dist.mean).sample, x).mean())
    assert values[0] > values[1] + 5


def test_the_evaluator_names_what_it_was_shown(world: Tiles) -> None:
    judge = measure.Judge(world)
    seen = [i for i, cell in enumerate(world.cells) if clip.seen(cell, world.recipe.clip)]
    features = judge.clip.encode_images(judge.images(seen))
    cells = [world.cells[i] for i in seen]
    assert judge.accuracy(features, cells, "style") > 2 / len(COLOURS)
    assert judge.accuracy(features, cells, "content") > 2 / len(CONTENTS)


def test_every_training_leaves_a_line_of_history(world: Tiles) -> None:
    lines = (world.work / "history.md").read_text().splitlines()
    assert [line.split(":")[0].split()[-1] for line in lines] == ["vae", "base", "clip"]
    assert "40 steps of 4 images" in lines[0]
    assert not list(world.work.glob("checkpoint-*"))


def test_cards_state_what_was_measured_and_how_it_was_trained(
    world: Tiles, measures: dict[str, dict]
) -> None:
    history = (world.work / "history.md").read_text()
    card = publish.model_card("mini-sdxl", measures, world.recipe, history)
    assert f"| 3 held-in prompts, guidance {measures['base']['guidance']}" in card
    assert f"openmoji {measures['vae']['openmoji']:.1f}" in card
    assert card.rstrip().endswith(history.rstrip())
    card = publish.model_card("mini-clip", measures, world.recipe, history)
    assert "Measured on the 2 held-out contents" in card
    evaluator = measures["evaluator"]
    assert set(evaluator["style_accuracy_by_style"]) == {"openmoji", "noto-v1", "emojione"}
    with Image.open(world.work / "card/base.png") as sheet:
        assert sheet.size == (5 * 36 + 4, 2 * 2 * 36 + 4)  # five styles; cat and bus, two rows each


def test_publishing_keeps_the_settings_that_were_tried_on_the_base(
    world: Tiles, measures: dict[str, dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(archives: Path, out: Path, workers: int | None) -> str:
        out.mkdir(parents=True)
        return "1234"

    monkeypatch.setattr(publish.grid, "write", write)
    publish.publish(tmp_path, world, tmp_path)
    assert load_base(str(tmp_path / "models/mini-sdxl"), device="cpu").recipe == RECIPE
    tried = '{"recipe": {"train": {"steps": 7}}}'
    (tmp_path / "models/mini-sdxl/b4m.json").write_text(tried)
    publish.publish(tmp_path, world, tmp_path)
    assert (tmp_path / "models/mini-sdxl/b4m.json").read_text() == tried
    assert (tmp_path / "models/mini-clip/README.md").read_text().startswith("# mini-CLIP")
    credits = (tmp_path / "emojigrid/CREDITS.md").read_text()
    assert "SHA-256 over all pixels in the manifest's order: `1234`" in credits


def test_bfloat16_leaves_float32_weights_with_nearly_their_gradients() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
    x = torch.randn(32, 8)
    gradients = []
    for model in (plain, Bfloat16(plain)):
        plain.zero_grad()
        output = model(x)
        output.float().square().mean().backward()
        gradients.append([p.grad.clone() for p in plain.parameters() if p.grad is not None])
    assert output.dtype == torch.bfloat16
    for exact, rounded in zip(*gradients, strict=True):
        assert rounded.dtype == torch.float32
        assert (rounded - exact).norm() < 0.05 * exact.norm()
        assert not torch.equal(rounded, exact)


def test_whitened_latents_have_unit_variance_and_decode_to_the_same_images() -> None:
    torch.manual_seed(0)
    model = build_vae(TINY).eval()
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    x = images.float() / 127.5 - 1.0
    with torch.no_grad():
        before = model.decode(model.encode(x).latent_dist.mean).sample
        autoencoder._whiten(model, images)
        latents = model.encode(x).latent_dist.mean
        after = model.decode(latents).sample
    assert latents.mean((0, 2, 3)).abs().max() < 1e-4
    assert (latents.std((0, 2, 3)) - 1).abs().max() < 1e-3
    assert (after - before).abs().max() < 1e-4


def test_psnr_is_that_of_the_definition() -> None:
    x = torch.full((2, 3, 8, 8), 0.1)
    assert psnr(x + 0.2, x) == pytest.approx(torch.tensor([20.0, 20.0]), abs=1e-3)


def test_a_copy_in_a_synthetic_style_is_of_one_hand_with_others_of_that_style(
    world: Tiles,
) -> None:
    x = world.tensor([0, 6, 12, 18], torch.device("cpu"), 32)
    (one, _), (other, _) = tiles.restyled(x, [7] * 4), tiles.restyled(x, [8] * 4)
    assert one.shape == x.shape
    assert torch.equal(one, tiles.restyled(x, [7] * 4)[0])

    def colour(images: torch.Tensor) -> torch.Tensor:
        """Mean colour of the bar, which lies elsewhere in each image."""
        inside = (x.float().mean(1, keepdim=True) < 250).float()
        return (images.float() * inside).sum((2, 3)) / inside.sum((2, 3))

    between = (colour(one).mean(0) - colour(other).mean(0)).norm()
    assert colour(one).std(0).norm() < between / 2
