"""Put the offline world together as users get it: `data/`, which DVC versions.

data/emojigrid          images, manifest.csv, CREDITS.md
data/models/mini-sdxl   a diffusers folder in fp16, with its card and the settings that suit it
data/models/mini-clip   an open_clip folder in fp16, with its card
"""

import json
import shutil
from pathlib import Path
from typing import Any

from b4m.errors import B4MError
from b4m_mini import grid
from b4m_mini.catalog import PACKAGES
from b4m_mini.recipe import Recipe
from b4m_mini.tiles import Tiles

_MODELS = ("mini-sdxl", "mini-clip")


def publish(archive_folder: Path, tiles: Tiles, out: Path, workers: int | None = None) -> None:
    """Write `out` from what was trained and measured in `tiles.work`.

    Args:
        archive_folder: folder of the npm archives.
        tiles: the grid that the models were trained on.
        out: the folder that DVC versions.
        workers: processes that render; one per core if left out.

    Raises:
        B4MError: if a model or its measures are missing.
    """
    work = tiles.work
    for needed in (*_MODELS, "history.md", "card/measures.json"):
        if not (work / needed).exists():
            raise B4MError(f"{work / needed} is missing; train and measure first")
    settings = out / "models/mini-sdxl/b4m.json"  # tried by hand on the base: not made anew
    kept = (settings if settings.exists() else work / "mini-sdxl/b4m.json").read_text()
    for folder in ("emojigrid", *(f"models/{name}" for name in _MODELS)):
        shutil.rmtree(out / folder, ignore_errors=True)
    digest = grid.write(archive_folder, out / "emojigrid", workers)
    (out / "emojigrid/CREDITS.md").write_text(credits_page(digest), encoding="utf-8")
    measures = json.loads((work / "card/measures.json").read_text())
    history = (work / "history.md").read_text(encoding="utf-8")
    for name in _MODELS:
        shutil.copytree(work / name, out / "models" / name)
        text = model_card(name, measures, tiles.recipe, history)
        (out / "models" / name / "README.md").write_text(text, encoding="utf-8")
    settings.write_text(kept)
    for image in ("base.png", "vae.png"):
        shutil.copyfile(work / "card" / image, out / "models/mini-sdxl" / image)


def credits_page(digest: str) -> str:
    """Whose drawings the grid with this identity holds, under which licence."""
    rows = [
        f"| {each.makers} | {each.name} {each.version} | {each.licence} |"
        for each in PACKAGES.values()
    ]
    return _card("credits").format(rows="\n".join(rows), digest=digest)


def model_card(name: str, measures: dict[str, Any], recipe: Recipe, history: str) -> str:
    """The README.md of `mini-sdxl` or `mini-clip`, by what `measure` and the trainings wrote."""
    by_style = measures["evaluator"]["style_accuracy_by_style"].items()
    return _card(name).format(
        **measures,
        recipe=recipe,
        contents=recipe.contents or "all",
        unseen=", ".join(recipe.clip.unseen_styles),
        psnr=", ".join(f"{split} {value:.1f}" for split, value in sorted(measures["vae"].items())),
        by_style=", ".join(f"{style} {value:.0%}" for style, value in by_style),
        history=history.strip(),
    )


def _card(name: str) -> str:
    return (Path(__file__).parent / f"cards/{name}.md").read_text(encoding="utf-8")
