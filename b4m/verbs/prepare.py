"""Choose and caption the images of contents and styles."""

import tempfile
from pathlib import Path


def prepare(
    source: str | Path,
    out: str | Path,
    content: str = "",
    style: str = "",
    style_images: int = 5,
    partners: int = 3,
    seed: int = 0,
) -> Path:
    """Choose and caption the images of a content and a style.

    A user's folder has content/NAME and style/NAME with images, and beside an image optionally
    its caption in a .txt file of the same name, which must hold the trigger word.

    Args:
        source: folder of an EmojiGrid, or your own folder with content/NAME and style/NAME; or
            where DVC tracks one: dvc+REPOSITORY@REVISION#PATH, with &remote=NAME
        out: folder to write: images and manifest.csv
        content: name of the content; several separated by commas; empty takes all of your own
        style: name of the style; several separated by commas; empty takes all of your own
        style_images: images that a style is trained on; further ones become references
        partners: images of the other kind that B4M's training is accompanied by
        seed: of every choice among images

    Returns:
        `out`.

    Raises:
        B4MError: for unknown names, damaged images, captions without their trigger.
    """
    from b4m.data.prepare import prepare as build
    from b4m.data.repository import fetch, origin

    where = origin(str(source))
    with tempfile.TemporaryDirectory() as folder:
        place = Path(source) if where is None else fetch(where, Path(folder) / "data")
        return build(place, Path(out), content, style, style_images, partners, seed)
