"""Does customization work on the mini world, and how many pictures does a style need?

    python -m tests.benchmarks.customize --out runs/customize

Ten held-out contents from ONE picture each, five held-out styles from 1, 5 and 20 pictures, plain
adapters and their direct merge, all fifty pairs, beside the baselines. Writes table.md and
sheet.png. About half an hour of one CPU core; a killed run goes on where it stopped.
"""

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from b4m import verbs
from b4m.data.images import fit_square, load_image
from b4m.evaluation.references import read_prepared
from b4m.evaluation.samples import read_samples
from b4m.evaluation.statistics import Estimate
from b4m.evaluation.tables import read_scores

CONTENTS = (
    "octopus",
    "owl",
    "fox",
    "turtle",
    "cactus",
    "hamburger",
    "castle",
    "rocket",
    "violin",
    "umbrella",
)
STYLES = ("openmoji", "fluent-contrast", "painted-08", "painted-19", "painted-21")
COUNTS = (1, 5, 20)
SEEDS = (0,)
METRICS = {
    "clip_i_content": "content",
    "clip_i_style": "style",
    "clip_i_harmonic": "harmonic",
    "clip_i_truth": "truth",
    "content_named": "content named",
    "style_named": "style named",
}
TILE, GAP = 96, 6


def main() -> None:
    """Run all comparisons, then write the table and the sheet."""
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--out", type=Path, default=Path("runs/customize"))
    flags.add_argument("--count", type=int, nargs="+", default=list(COUNTS))
    flags.add_argument("--set", nargs="+", default=[], help="settings of training, NAME=VALUE")
    given = flags.parse_args()
    folders = {count: given.out / f"{count:02d}" for count in given.count}
    for count, folder in folders.items():
        verbs.compare(
            "data/emojigrid",
            folder,
            CONTENTS,
            STYLES,
            ["direct"],
            SEEDS,
            style_images=count,
            train_with=given.set,
        )
    (given.out / "table.md").write_text(table(folders), encoding="utf-8")
    sheet(folders).save(given.out / "sheet.png", optimize=True)
    print(table(folders))


def table(folders: dict[int, Path]) -> str:
    """Markdown: one row per label and number of style pictures, means with 95 % intervals."""
    lines = [
        "| style pictures | row | " + " | ".join(METRICS.values()) + " |",
        "|---|---|" + "---|" * len(METRICS),
    ]
    for count, folder in folders.items():
        summary = read_scores(folder / "scores").summary
        estimates = {(label, metric): one for (label, metric, _), one in summary.items()}
        for label in dict.fromkeys(label for label, _ in estimates):
            cells = [_cell(estimates.get((label, metric))) for metric in METRICS]
            lines.append(f"| {count} | {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(one: Estimate | None) -> str:
    if one is None:
        return ""
    return f"{one.mean:.2f}" + (f" ({one.low:.2f} to {one.high:.2f})" if one.bounded else "")


def sheet(folders: dict[int, Path]) -> Image.Image:
    """One row per style and content (two contents a style): picture, style, truth, results."""
    first = next(iter(folders.values()))
    prepared = read_prepared(first / "data")
    drawn = {
        count: {
            (sample.label, sample.content, sample.style, sample.seed): sample.path
            for sample in read_samples(sorted(folder.glob("samples/*")))
        }
        for count, folder in folders.items()
    }
    titles = ["content", "style", "truth", "content\nonly"]
    titles += [f"{what}\n{count}" for count in folders for what in ("style", "both")]
    pairs = [
        (CONTENTS[(2 * n + k) % len(CONTENTS)], s) for n, s in enumerate(STYLES) for k in (0, 1)
    ]
    step, head = TILE + GAP, 40
    image = Image.new("RGB", (step * len(titles) + GAP, head + step * len(pairs)), "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    for column, title in enumerate(titles):
        pen.multiline_text((GAP + column * step, 4), title, "#20211f", font)
    for row, (content, style) in enumerate(pairs):
        paths = [
            prepared.concept("content", content).trained[0],
            prepared.concept("style", style).trained[0],
            prepared.ground_truths[content, style].path,
            next(iter(drawn.values()))["content only", content, style, 0],
        ]
        for found in drawn.values():
            paths += [found["style only", content, style, 0], found["direct", content, style, 0]]
        for column, path in enumerate(paths):
            tile = fit_square(load_image(path), TILE)
            image.paste(tile, (GAP + column * step, head + row * step))
    return image


if __name__ == "__main__":
    main()
