"""Small drawn worlds: a user's folder and an EmojiGrid of a few cells."""

import csv
from pathlib import Path

from PIL import Image, ImageDraw

COLOURS = ("firebrick", "teal", "goldenrod", "indigo", "olive")


def drawing(shape: str, look: str, number: int = 0, pixels: int = 32) -> Image.Image:
    """A shape on white: what is drawn is the content, how it is drawn is the style."""
    image = Image.new("RGB", (pixels, pixels), "white")
    draw = ImageDraw.Draw(image)
    colour = COLOURS[number % len(COLOURS)]
    box = (4 + number % 3, 4, pixels - 6, pixels - 4 - number % 5)
    fill = {"fill": colour} if look in ("flat", "dots") else {"outline": colour, "width": 2}
    if shape in ("teapot", "ball"):
        draw.ellipse(box, **fill)
    elif shape in ("vase", "tower"):
        draw.rectangle(box, **fill)
    else:
        draw.polygon([(box[0], box[3]), (box[2], box[3]), (pixels // 2, box[1])], **fill)
    if look in ("dots", "stripes"):
        for x in range(2, pixels, 6):
            draw.line((x, 0, x, pixels), fill="white", width=1)
    return image


def write_user_folder(folder: Path, contents: int = 1, styles: int = 5) -> Path:
    """A folder as a user would make it: teapot and others in flat, stripes and others of balls."""
    for name in ("teapot", "vase", "cone"):
        for number in range(contents if name == "teapot" else 1):
            _save(drawing(name, "flat", number), folder / f"content/{name}/{name}-{number}.png")
    for name in ("stripes", "dots", "outline"):
        for number in range(styles if name == "stripes" else 1):
            shape = ("ball", "tower", "hill")[number % 3]
            path = folder / f"style/{name}/a-{shape}-{number}.png"
            _save(drawing(shape, name, number), path)
    (folder / "LICENCE").write_text("CC0-1.0\n")
    return folder


def write_grid(folder: Path) -> Path:
    """An EmojiGrid of 12 contents in 5 styles; content 0 and 1 are held out, so is style "ink"."""
    styles = {
        "fluent-flat": ("bold flat", "fluent", False),
        "fluent-contrast": ("black stencil", "fluent", True),
        "noto": ("soft shaded", "", False),
        "twemoji": ("flat sticker", "", False),
        "ink": ("thin line", "", True),
    }
    rows = []
    for number in range(12):
        content = f"thing-{number:02d}"
        for style, (words, family, held_style) in styles.items():
            held_content = number < 2
            split = {(0, 0): "base", (1, 0): "content", (0, 1): "style", (1, 1): "both"}
            file = f"{style}/{content}.png"
            _save(drawing(("ball", "tower", "hill")[number % 3], "flat", number), folder / file)
            rows.append(
                {
                    "file": file,
                    "content": content,
                    "name": f"thing {number}",
                    "class_word": "object",
                    "style": style,
                    "style_name": words,
                    "kind": "drawn",
                    "family": family,
                    "alignment": "exact" if family else "meaning",
                    "split": split[int(held_content), int(held_style)],
                    "licence": "CC0-1.0",
                    "source": "drawn by the test",
                }
            )
    with (folder / "manifest.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return folder


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
