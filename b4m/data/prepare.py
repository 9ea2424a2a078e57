"""Make a prepared folder: chosen pictures with captions, roles and licences in one manifest.

Two kinds of sources: a collection (a folder with a manifest.csv that an installed package reads:
EmojiGrid, by b4m-mini; see `b4m.data.sources`) and a user's own folder

    content/<name>/*.png     one to some pictures of the thing
    style/<name>/*.png       one to some pictures in the style

with an optional caption beside each picture (same name, .txt), which must hold the trigger word.
"""

import os
from dataclasses import replace
from pathlib import Path

from b4m.data import own
from b4m.data.images import load_image
from b4m.data.manifest import MANIFEST, ManifestRow, is_prepared, write_manifest
from b4m.data.masks import mask_file, read_mask
from b4m.data.names import check_name, cut_names
from b4m.data.sources import Request, find_source
from b4m.errors import B4MError
from b4m.io import check_output, replacing_folder


def prepare(
    source: Path,
    out: Path,
    content: str = "",
    style: str = "",
    style_images: int = 5,
    partners: int = 3,
    seed: int = 0,
    content_style: str = "",
) -> Path:
    """Build a prepared folder; it appears whole or not at all.

    Args:
        source: a collection such as EmojiGrid, or a user's folder.
        out: folder to write; an earlier prepared folder there is replaced.
        content: name of the content, or several separated by commas. Empty takes all of a user's
            folder.
        style: the same for styles.
        style_images: pictures that a style is trained on; further ones become references.
        partners: pictures of the other kind that multi-correspondence training gets.
        seed: of every choice among pictures.
        content_style: of a collection: the style that contents are drawn in; empty leaves it to
            the collection.

    Returns:
        `out`.

    Raises:
        B4MError: for an unknown name, an empty folder, a damaged picture, a caption without its
            trigger, or an `out` that holds other things.
    """
    source, out = Path(source), Path(out)
    contents, styles = (
        cut_names(text, own.concepts(source, kind))
        for kind, text in (("content", content), ("style", style))
    )
    request = Request(contents, styles, style_images, partners, seed, content_style)
    _check(source, out, request)
    try:
        if (source / MANIFEST).is_file():
            chosen = find_source(source).choose(source, request)
        else:
            chosen = own.choose(source, request)
    except OSError as error:
        raise B4MError(f"{error.filename} cannot be read ({error.strerror})") from None
    for row in {row.concept: row for _, row in chosen if row.kind != "truth"}.values():
        check_name(row.concept, str(source))
    with replacing_folder(out) as partial:
        rows = [_copy(path, row, partial, number) for number, (path, row) in enumerate(chosen)]
        write_manifest(partial, rows)
    return out


def _check(source: Path, out: Path, request: Request) -> None:
    if not source.is_dir():
        raise B4MError(f"{source} does not exist; `dvc pull` brings the project's own data")
    if request.style_images < 1 or request.partners < 0:
        raise B4MError(
            f"style_images={request.style_images} must be 1 or more and "
            f"partners={request.partners} 0 or more"
        )
    check_output(out, folder=True)
    if out.exists() and not is_prepared(out) and any(out.iterdir()):
        raise B4MError(f"{out} exists and is no prepared folder; give another place to write to")
    if f"{os.path.realpath(source)}/".startswith(f"{os.path.realpath(out)}/"):
        raise B4MError(f"{out} holds the source {source} itself; give another place to write to")


def _copy(path: Path, row: ManifestRow, folder: Path, number: int) -> ManifestRow:
    """Write the picture as PNG under a name that says its use."""
    file = f"{row.kind}/{row.concept}/{row.role}-{number:03d}.png"
    image = load_image(path)
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    image.save(folder / file)
    if (mask := read_mask(path)) is not None:
        mask.save(mask_file(folder / file))
    return replace(row, file=file)
