"""What a training is shown: masks, orders of tags, left out captions, images of the class."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from b4m.adapters.deltas import LoRADelta, RankDropout
from b4m.bases.base import Base
from b4m.bases.sampling import sample
from b4m.data.cache import Cache
from b4m.data.captions import prior_caption, shuffled_tags
from b4m.data.manifest import read_manifest, training_rows
from b4m.data.prepare import prepare
from b4m.errors import B4MError
from b4m.training.prior import read_prior
from b4m.training.training_set import Augmentation, Shown, TrainingSet, read_training_set
from b4m.training.watching import grid, held_out
from tests import runs

LAYER = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
FAST = {"rank": 2, "steps": 2, "batch_size": 2, "accumulation": 1, "lr": 1e-2}


def write(path: Path, mode: str = "RGB", size: tuple[int, int] = (32, 32), seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    channels = {"RGB": 3, "RGBA": 4, "L": 1}[mode]
    pixels = rng.integers(0, 255, (size[1], size[0], channels), dtype=np.uint8)
    if mode == "RGBA":
        pixels[..., 3] = 255
        pixels[:, : size[0] // 2, 3] = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.squeeze()).save(path)
    return path


@pytest.fixture
def masked(tmp_path: Path) -> Path:
    """Prepared: an image with a mask file, one whose left half is transparent, one with neither."""
    own = tmp_path / "own/content/mug"
    write(own / "file.png")
    mask = np.zeros((32, 32), np.uint8)
    mask[:16] = 255
    Image.fromarray(mask).save(own / "file.mask.png")
    write(own / "alpha.png", "RGBA", seed=1)
    write(own / "plain.png", seed=2)
    write(tmp_path / "own/style/ink/a.png", seed=3)
    return prepare(tmp_path / "own", tmp_path / "data", "mug", "ink")


def test_masks_come_from_files_or_transparency_and_follow_their_image(
    masked: Path, base: Base, tmp_path: Path
) -> None:
    rows = training_rows(read_manifest(masked), "content", "mug")
    assert len(rows) == 3, "a mask is no image to train on"
    augmentation = Augmentation(masked=True, flip=True)
    found = read_training_set(masked, rows, base, Cache(tmp_path, base), augmentation)
    assert found.mask_VN1HW is not None
    by_source = {Path(row.source).stem: n for n, row in enumerate(rows)}
    upper, right = torch.zeros(2, 1, 8, 8)
    upper[:, :4] = 1
    right[:, :, 4:] = 1
    masks = found.mask_VN1HW
    assert torch.equal(masks[0, by_source["file"]], upper)
    assert torch.equal(masks[0, by_source["alpha"]], right)
    assert torch.equal(masks[1, by_source["alpha"]], right.flip(-1)), "mirrored with the image"
    assert torch.equal(masks[0, by_source["plain"]], torch.ones(1, 8, 8))


def test_a_mask_changes_what_is_learned(masked: Path, base: Base, tmp_path: Path) -> None:
    results = {
        runs.train(
            "lora", "content", masked, "mug", base, tmp_path / "work", **FAST, **settings
        ).layers[LAYER].up.numpy().tobytes()
        for settings in ({}, {"masked": True}, {"masked": True, "unmasked_weight": 0.5})
    }  # fmt: skip
    assert len(results) == 3


def test_masks_that_are_not_there_or_do_not_fit_are_refused(
    masked: Path, base: Base, tmp_path: Path
) -> None:
    rows = training_rows(read_manifest(masked), "style", "ink")
    with pytest.raises(B4MError, match="no image of 'ink' in .* has one; put NAME.mask.png"):
        read_training_set(masked, rows, base, Cache(tmp_path, base), Augmentation(masked=True))
    write(tmp_path / "own/style/ink/a.mask.png", "L", (16, 32))
    with pytest.raises(B4MError, match="is 16 x 32 and its image 32 x 32"):
        prepare(tmp_path / "own", tmp_path / "data2", "mug", "ink")


def test_tags_change_places_behind_those_that_are_kept() -> None:
    caption = "a snq mug, blue,  on a table, seen from above, chipped"
    seen = {shuffled_tags(caption, 2, seed) for seed in range(40)}
    assert len(seen) > 5
    for order in seen:
        tags = order.split(", ")
        assert tags[:2] == ["a snq mug", "blue"]
        assert sorted(tags[2:]) == ["chipped", "on a table", "seen from above"]


def captioned(dropout: float) -> TrainingSet:
    from b4m.bases.base import Conditioning

    text = Conditioning({"hidden": torch.arange(6.0).reshape(6, 1, 1).expand(6, 2, 3) + 1})
    latents = torch.zeros(1, 3, 4, 2, 2)
    empty = Conditioning({"hidden": torch.zeros(1, 2, 3)})
    captions = tuple(f"{image}/{order}" for image in range(3) for order in range(2))
    return TrainingSet(latents, latents, captions, text, dropout, empty)


def test_every_order_of_an_images_tags_is_shown_with_its_own_conditioning() -> None:
    shown = captioned(0.0).draw([0, 1, 2] * 100, torch.Generator().manual_seed(0))
    rows = shown.text.tensors["hidden"][:, 0, 0].long() - 1
    for row, caption, image in zip(rows.tolist(), shown.captions, [0, 1, 2] * 100, strict=True):
        assert caption == f"{row // 2}/{row % 2}"
        assert row // 2 == image
    assert set(rows.tolist()) == set(range(6))


def test_captions_are_left_out_as_often_as_asked_for() -> None:
    shown = captioned(0.3).draw([0] * 2000, torch.Generator().manual_seed(0))
    left_out = shown.text.tensors["hidden"].flatten(1).eq(0).all(1)
    assert torch.equal(left_out, ~shown.kept_B)
    assert float(left_out.float().mean()) == pytest.approx(0.3, abs=0.03)


def test_sdxls_unconditional_is_what_its_guidance_takes(base: Base) -> None:
    assert not any(value.any() for value in base.unconditional(1).tensors.values())


def test_parts_of_a_batch_are_those_of_the_whole() -> None:
    whole = captioned(0.3).draw([0, 1, 2, 1], torch.Generator().manual_seed(0))
    both = Shown.cat([whole[:3], whole[3:]])
    assert torch.equal(both.text.tensors["hidden"], whole.text.tensors["hidden"])
    assert (both.captions, both.kept_B.tolist()) == (whole.captions, whole.kept_B.tolist())


def test_left_out_ranks_keep_the_mean_and_come_back() -> None:
    delta = LoRADelta.start(5, 6, 8, torch.Generator().manual_seed(0))
    delta.up_learnable.data.normal_(generator=torch.Generator().manual_seed(1))
    x = torch.randn(1, 6, generator=torch.Generator().manual_seed(2))
    whole = delta(x).detach()
    dropout, generator = RankDropout([delta], 0.25), torch.Generator().manual_seed(3)
    parts, weights = [], set()
    for _ in range(3000):
        dropout.draw(generator)
        assert delta.kept_R is not None
        weights |= set(delta.kept_R.tolist())
        parts.append(delta(x).detach())
    torch.testing.assert_close(torch.stack(parts).mean(0), whole, atol=0.03, rtol=0.05)
    assert weights == {0.0, float(torch.tensor(1.0) / 0.75)}
    dropout.rest()
    assert torch.equal(delta(x), whole)
    assert torch.equal(delta.lowrank().up, delta.up_learnable)


@pytest.mark.parametrize(
    ("caption", "trigger", "word", "kind", "wanted"),
    [
        ("a snq animal in flat style", "snq", "animal", "content", "an animal"),
        ("a lion in w@z style", "w@z", "", "style", "a lion"),
        ("w@z lion, red", "w@z", "", "style", "lion, red"),
        ("snq", "snq", "", "content", "a picture"),
    ],
)
def test_images_of_the_class_are_asked_for_without_the_trigger(
    caption: str, trigger: str, word: str, kind: str, wanted: str
) -> None:
    assert prior_caption(caption, trigger, word, kind) == wanted


def test_images_of_the_class_are_drawn_once_by_the_base_or_given(
    base: Base, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**FAST, "prior_weight": 0.5, "prior_images": 2}
    run = runs.open_run("lora", "content", prepared, "teapot", base, tmp_path, **settings)
    drawn = read_prior(run)
    assert drawn is not None
    assert drawn.captions == ("a teapot", "a teapot")
    (own,) = sample(base, ["a teapot"], [1], steps=25)
    mean, _ = base.encode_images([own])
    torch.testing.assert_close(drawn.mean_VNCHW[0, 1], mean[0], atol=1e-4, rtol=1e-3)
    monkeypatch.setattr("b4m.training.prior.sample", None)  # a second drawing would fail
    again = read_prior(run)
    assert again is not None
    assert torch.equal(again.mean_VNCHW, drawn.mean_VNCHW)

    write(tmp_path / "class/x.png", size=(40, 32))
    (tmp_path / "class/x.txt").write_text("an old teapot\n")
    write(tmp_path / "class/y.png", seed=1)
    given = runs.open_run(
        "lora", "content", prepared, "teapot", base, tmp_path,
        **settings, prior_folder=str(tmp_path / "class"),
    )  # fmt: skip
    found = read_prior(given)
    assert found is not None
    assert found.captions == ("an old teapot", "a teapot")
    learned = {
        runs.train(
            "lora", "content", prepared, "teapot", base, tmp_path, **FAST,
            prior_folder=str(tmp_path / "class"), prior_weight=weight,
        ).layers[LAYER].up.numpy().tobytes()
        for weight in (0.0, 0.5, 1.0)
    }  # fmt: skip
    assert len(learned) == 3


def test_what_is_held_back_is_judged_and_without_it_the_images_themselves(
    base: Base, prepared: Path, tmp_path: Path
) -> None:
    rows = read_manifest(prepared)
    for kind, concept in (("content", "teapot"), ("style", "stripes")):
        run = runs.open_run("lora", kind, prepared, concept, base, tmp_path, **FAST)
        held = [r for r in rows if (r.kind, r.concept, r.role) == (kind, concept, "reference")]
        assert held_out(run) == (held or run.trained())


def test_a_grid_has_a_line_for_each_prompt() -> None:
    colours = [(n * 40, 0, 0) for n in range(5)]
    whole = grid([Image.new("RGB", (4, 2), colour) for colour in colours], 2)
    assert whole.size == (8, 6)
    placed = [whole.getpixel((x, y)) for y in (0, 2, 4) for x in (0, 4)]
    assert placed == [*colours, (255, 255, 255)]
