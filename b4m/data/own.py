"""Choose from a user's own folder: content/<name>/* and style/<name>/*, with optional captions.

The folder's name is the class word ("teddy-bear" is "teddy bear"), the file's name says what a
style picture shows ("a-red-barn.jpg"). A caption file beside a picture (same name, .txt) overrides
both and must hold the trigger word. Of kohya's folders ("10_mug") the repeats are left out.
"""

import os
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

from b4m.data.captions import check_trigger, content_caption, style_caption, with_article
from b4m.data.images import CAPTION_SUFFIXES, SUFFIXES, images_in
from b4m.data.manifest import ManifestRow
from b4m.data.masks import is_mask
from b4m.data.names import canonical
from b4m.data.sources import Request
from b4m.errors import B4MError
from b4m.io import read_text, sha256
from b4m.settings import CONTENT_TRIGGER, STYLE_TRIGGER

_HOLD_OUT_FROM = 4  # with so many pictures of a content one can be spared to compare with
_CAMERA_NAME = re.compile(r"(?i)^(img|dsc|dscn|pxl|image|photo|picture|screenshot|untitled)\b")
_REPEATS = re.compile(r"^\d+_(?=\D)")

Selection = list[tuple[Path, ManifestRow]]


def choose(source: Path, request: Request) -> Selection:
    """The pictures that the request needs, with their manifest lines (without file names).

    Raises:
        B4MError: for a folder without content/ and style/, an unknown name, an empty folder or a
            caption without its trigger.
    """
    folders = {kind: concepts(source, kind) for kind in ("content", "style")}
    if not any(folders.values()):
        raise B4MError(
            f"{source} has neither content/<name>/ nor style/<name>/ with pictures in it; "
            "put at least one picture there"
        )
    selected = {
        "content": _selected(source / "content", request.contents, folders["content"]),
        "style": _selected(source / "style", request.styles, folders["style"]),
    }
    rows: Selection = []
    for kind, names in selected.items():
        for name in names:
            rows += _concept(folders[kind][name], kind, name, request)
    for kind, other in (("content", "style"), ("style", "content")):
        if selected[kind]:
            rows += _partners(folders[other], other, selected[other], request)
    licence = _licence(source)
    return [
        (file, replace(row, licence=licence, source=_text(file.relative_to(source))))
        for file, row in rows
    ]


def concepts(source: Path, kind: str) -> dict[str, Path]:
    """The folders of contents or styles by name, in the order of their names.

    Raises:
        B4MError: for names that differ in case or in Unicode's form alone: where files are called
            after them, other systems take them for one.
    """
    folder = source / kind
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_dir() and not path.name.startswith("."):
            same = [name for name in found if name.casefold() == canonical(path.name).casefold()]
            if same:
                raise B4MError(
                    f"{found[same[0]]} and {path} have names that some systems take for one; "
                    "rename one of the folders"
                )
            found[canonical(path.name)] = path
    return found


def _selected(folder: Path, names: Sequence[str], known: Collection[str]) -> list[str]:
    unknown = [name for name in names if name not in known]
    if unknown:
        there = ", ".join(known) or "nothing"
        raise B4MError(f"{folder} has no folder {unknown[0]!r}; it has: {there}")
    return list(names) or list(known)


def _concept(folder: Path, kind: str, concept: str, request: Request) -> Selection:
    """All images of a concept as train or reference."""
    files = _images(folder)
    if kind == "content":
        train_count = len(files) - 1 if len(files) >= _HOLD_OUT_FROM else len(files)
    else:
        train_count = request.style_images
    shuffled = list(files)
    Random(f"{request.seed} {kind} {concept}").shuffle(shuffled)
    training = set(shuffled[:train_count])
    class_word = _class_word(folder)
    return [
        (file, _row(file, kind, concept, class_word, "train" if file in training else "reference"))
        for file in files
    ]


def _partners(
    folders: Mapping[str, Path], kind: str, selected: Sequence[str], request: Request
) -> Selection:
    """One image of each concept of this kind: those that nobody trains on come first."""
    ordered = [name for name in folders if name not in selected] + list(selected)
    rows: Selection = []
    for concept in ordered[: request.partners]:
        file = Random(f"{request.seed} partner {concept}").choice(_images(folders[concept]))
        rows.append((file, _row(file, kind, concept, _class_word(folders[concept]), "partner")))
    return rows


def _images(folder: Path) -> list[Path]:
    """A folder's images, each content once: a copy would be trained on and held back at once."""
    first: dict[str, Path] = {}
    for file in images_in(folder):
        if is_mask(file):
            continue
        kept = first.setdefault(sha256(file), file)
        if kept != file:
            warnings.warn(f"{file} is a copy of {kept.name} and not used", stacklevel=2)
    if not first:
        kinds = ", ".join(suffix.lstrip(".") for suffix in SUFFIXES)
        raise B4MError(f"{folder} holds no image; put at least one in it ({kinds})")
    return list(first.values())


def _class_word(folder: Path) -> str:
    name = _REPEATS.sub("", canonical(folder.name))
    if name != canonical(folder.name):
        warnings.warn(
            f"{folder}: the number before the name is taken for kohya's repeats and left out of "
            "captions; every image is shown equally often",
            stacklevel=2,
        )
    return _words(name)


def _row(file: Path, kind: str, concept: str, class_word: str, role: str) -> ManifestRow:
    trigger = CONTENT_TRIGGER if kind == "content" else STYLE_TRIGGER
    captions = [file.with_suffix(suffix) for suffix in CAPTION_SUFFIXES]
    caption_file = next(filter(Path.is_file, captions), None)
    if caption_file is not None:
        caption = " ".join(read_text(caption_file).split())
        check_trigger(caption, trigger, str(caption_file))
    elif kind == "content":
        caption = content_caption(class_word)
    else:
        caption = style_caption(_shown(file.stem), class_word)
    return ManifestRow("", kind, concept, caption, trigger, class_word, role, "", "")


def _text(path: Path) -> str:
    """A path in text; bytes that are none, as old archives leave them in names, as escapes."""
    return os.fsencode(path.as_posix()).decode(errors="backslashreplace")


def _words(name: str) -> str:
    return " ".join(re.sub(r"[^\w]|_", " ", name).split())


def _shown(stem: str) -> str:
    """What a file's name says of the picture; a camera's name says nothing."""
    words = " ".join(re.sub(r"[\W\d_]", " ", stem).split()).lower()
    if len(words) < 3 or _CAMERA_NAME.match(words):
        return "a picture"
    return with_article(words)


def _licence(source: Path) -> str:
    for name in ("LICENCE", "LICENSE", "LICENCE.txt", "LICENSE.txt"):
        if (source / name).is_file():
            lines = read_text(source / name).strip().splitlines()
            return lines[0].strip() if lines else "not stated"
    return "not stated"
