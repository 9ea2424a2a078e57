"""A small world drawn with PIL: contents x styles, a prepared folder, folders of "samples"."""

import csv
import random
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

from b4m.data.manifest import ManifestRow, write_manifest
from b4m.evaluation.samples import COLUMNS
from b4m.plan import row_and_strength

SIDE = 128
BODY = {"mushroom": "#d8453b", "house": "#4f86c6", "fish": "#f2a33a"}
PROMPT = "a snq thing in w@z style"
OTHER_PROMPT = "two of a snq thing in w@z style"
METHODS = {
    "base": "base",
    "content only": "lora",
    "style only": "lora",
    "direct": "direct",
    "nplora": "nplora",
    "b4m": "b4m",
}


def draw(content: str, style: str, seed: int = 0, slip: float = 0.0) -> Image.Image:
    """A content in a style; `slip` in [0, 1] makes it wrong, as a poor method would."""
    rng = random.Random(f"{content}{seed}")
    scale = 4
    image = Image.new("RGB", (SIDE * scale, SIDE * scale), "white")
    pen = ImageDraw.Draw(image)
    grow = 1.0 + rng.uniform(-0.08, 0.08) - 0.25 * slip * rng.random()
    shift = rng.uniform(-5, 5) + 14 * slip * rng.uniform(-1, 1)
    fill = {"flat": BODY[content], "outlined": BODY[content], "stencil": "#111111"}[style]
    line = {"flat": None, "outlined": "#111111", "stencil": "#111111"}[style]
    light = {"flat": "#f6e7c8", "outlined": "#ffffff", "stencil": "#ffffff"}[style]

    def box(*corners: float) -> list[float]:
        return [(64 + (c - 64) * grow + shift) * scale for c in corners]

    wide = 5 * scale if line else 0
    if content == "mushroom":
        pen.rounded_rectangle(box(50, 66, 78, 112), 40, fill=light, outline=line, width=wide)
        pen.pieslice(box(18, 18, 110, 112), 180, 360, fill=fill, outline=line, width=wide)
        for spot in ((38, 42, 52, 56), (62, 28, 78, 44), (84, 46, 96, 58)):
            pen.ellipse(box(*spot), fill=light)
    elif content == "house":
        pen.rectangle(box(30, 58, 98, 110), fill=light, outline=line, width=wide)
        roof = box(18, 62, 64, 18, 110, 62)
        pen.polygon(roof, fill=fill)
        if line:
            pen.line([*roof, *roof[:2]], fill=line, width=wide, joint="curve")
        pen.rectangle(box(56, 78, 74, 110), fill=fill, outline=line, width=wide)
    else:
        tail = box(92, 64, 116, 40, 116, 88)
        pen.polygon(tail, fill=fill)
        pen.ellipse(box(14, 34, 100, 94), fill=fill, outline=line, width=wide)
        pen.ellipse(box(28, 52, 42, 66), fill=light)
    if slip > 0.3:
        image = image.filter(ImageFilter.GaussianBlur(10 * slip * scale / 4))
    return image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def prepare(folder: Path, contents: Sequence[str], styles: Sequence[str]) -> Path:
    """A prepared folder: one training picture per content, references, partners and truths."""
    rows: list[ManifestRow] = []

    def add(
        kind: str, concept: str, role: str, trigger: str, word: str, image: Image.Image
    ) -> None:
        file = f"{kind}-{concept}-{role}-{len(rows)}.png"
        image.save(folder / file)
        caption = f"a {trigger}" if kind != "style" else f"a drawing in {trigger} style"
        alignment = "exact" if kind == "truth" else ""
        rows.append(
            ManifestRow(
                file, kind, concept, caption, trigger, word, role, "CC0-1.0", "drawn", alignment
            )
        )

    folder.mkdir(parents=True)
    for content in contents:
        add("content", content, "train", "snq", "thing", draw(content, "flat"))
        for seed in (1, 2):
            add("content", content, "reference", "snq", "thing", draw(content, "flat", seed))
    known = [name for name in BODY if name not in contents] or list(BODY)
    for style in styles:
        for role, seeds in (("train", (0, 1, 2)), ("reference", (3, 4))):
            for seed in seeds:
                image = draw(known[seed % len(known)], style, seed)
                add("style", style, role, "w@z", f"{style} comic", image)
        add("style", "partner style", "partner", "w@z", "other", draw(known[0], "flat", 9))
    for content in contents:
        for style in styles:
            add("truth", f"{content}+{style}", "reference", "snq w@z", "", draw(content, style))
    write_manifest(folder, rows)
    return folder


def sample(
    folder: Path,
    label: str,
    pairs: Sequence[tuple[str, str]],
    seeds: Sequence[int] = (0, 1, 2),
    prompts: Sequence[str] = (PROMPT,),
) -> Path:
    """A folder of samples as a method of this name would draw them."""
    (folder / "images").mkdir(parents=True)
    row = row_and_strength(label)[0]
    rows = []
    for content, style in pairs:
        for prompt in prompts:
            for seed in seeds:
                file = f"images/{len(rows):03d}.png"
                _as_drawn_by(row, content, style, seed).save(folder / file)
                rows.append(
                    (file, label, METHODS[row], content, style, prompt, seed, 25, 3.0)
                    + ("mini-sdxl", "ba5e" * 16, "" if label == "base" else "ada9" * 16)
                )
    with (folder / "samples.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([COLUMNS, *rows])
    return folder


def _as_drawn_by(label: str, content: str, style: str, seed: int) -> Image.Image:
    other = next(name for name in BODY if name != content)
    if label == "base":
        return draw(other, "flat", seed + 20, 0.2)
    if label == "content only":
        return draw(content, "flat", seed + 20, 0.1)
    if label == "style only":
        return draw(other, style, seed + 20, 0.1)
    return draw(content, style, seed + 20, {"direct": 1.0, "nplora": 0.45, "b4m": 0.05}[label])
