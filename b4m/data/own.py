"""Choose from a user's own folder: content/<name>/* and style/<name>/*, with optional captions.

The folder's name is the class word ("teddy-bear" is "teddy bear"), the file's name says what a
style picture shows ("a-red-barn.jpg"). A caption file beside a picture (same name, .txt) overrides
both and must hold the trigger word.
"""

import re
from pathlib import Path
from random import Random

from b4m.settings import CONTENT_TRIGGER, STYLE_TRIGGER
from b4m.data.captions import check_trigger, content_caption, style_caption, with_article
from b4m.data.images import SUFFIXES, images_in
from b4m.data.manifest import ManifestRow
from b4m.data.request import Request
from b4m.errors import B4MError

_HOLD_OUT_FROM = 4  # with so many pictures of a content one can be spared to compare with
_CAMERA_NAME = re.compile(r"(?i)^(img|dsc|dscn|pxl|image|photo|picture|screenshot|untitled)\b")

Selection = list[tuple[Path, ManifestRow]]


def choose(source: Path, request: Request) -> Selection:
    """The pictures that the request needs, with their manifest lines (without file names).

    Raises:
        B4MError: for a folder without content/ and style/, an unknown name, an empty folder or a
            caption without its trigger.
    """
    names = {kind: _concepts(source, kind) for kind in ("content", "style")}
    if not names["content"] and not names["style"]:
        raise B4MError(
            f"{source} has neither content/<name>/ nor style/<name>/ with pictures in it; "
            "put at least one picture there"
        )
    selected = {
        "content": _selected(source, "content", request.contents, names["content"]),
        "style": _selected(source, "style", request.styles, names["style"]),
    }
    licence = _licence(source)
    rows: Selection = []
    for kind, concepts in selected.items():
        for concept in concepts:
            rows += _concept(source, kind, concept, request, licence)
    for kind, other in (("content", "style"), ("style", "content")):
        if selected[kind]:
            rows += _partners(source, other, names[other], selected[other], request, licence)
    return rows


def _concepts(source: Path, kind: str) -> list[str]:
    folder = source / kind
    if not folder.is_dir():
        return []
    return sorted(f.name for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))


def _selected(source: Path, kind: str, names: tuple[str, ...], available: list[str]) -> list[str]:
    unknown = [name for name in names if name not in available]
    if unknown:
        known = ", ".join(available) or "nothing"
        raise B4MError(f"{source / kind} has no folder {unknown[0]!r}; it has: {known}")
    return list(names) or available


def _concept(source: Path, kind: str, concept: str, request: Request, licence: str) -> Selection:
    """All pictures of a concept as train or reference."""
    files = _pictures(source / kind / concept)
    if kind == "content":
        train_count = len(files) - 1 if len(files) >= _HOLD_OUT_FROM else len(files)
    else:
        train_count = request.style_images
    shuffled = list(files)
    Random(f"{request.seed} {kind} {concept}").shuffle(shuffled)
    training = set(shuffled[:train_count])
    return [
        (
            file,
            _row(
                source, file, kind, concept, "train" if file in training else "reference", licence
            ),
        )
        for file in files
    ]


def _partners(
    source: Path,
    kind: str,
    available: list[str],
    selected: list[str],
    request: Request,
    licence: str,
) -> Selection:
    """One image of each concept of this kind: those that nobody trains on come first."""
    concepts = [name for name in available if name not in selected] + selected
    rows: Selection = []
    for concept in concepts[: request.partners]:
        files = _pictures(source / kind / concept)
        file = Random(f"{request.seed} partner {concept}").choice(files)
        rows.append((file, _row(source, file, kind, concept, "partner", licence)))
    return rows


def _pictures(folder: Path) -> list[Path]:
    files = images_in(folder)
    if not files:
        kinds = ", ".join(suffix.lstrip(".") for suffix in SUFFIXES)
        raise B4MError(f"{folder} holds no image; put at least one in it ({kinds})")
    return files


def _row(source: Path, file: Path, kind: str, concept: str, role: str, licence: str) -> ManifestRow:
    trigger = CONTENT_TRIGGER if kind == "content" else STYLE_TRIGGER
    class_word = _words(concept)
    caption_file = file.with_suffix(".txt")
    if caption_file.is_file():
        caption = " ".join(caption_file.read_text(encoding="utf-8").split())
        check_trigger(caption, trigger, str(caption_file))
    elif kind == "content":
        caption = content_caption(class_word)
    else:
        caption = style_caption(_shown(file.stem))
    return ManifestRow(
        file="",
        kind=kind,
        concept=concept,
        caption=caption,
        trigger=trigger,
        class_word=class_word,
        role=role,
        licence=licence,
        source=file.relative_to(source).as_posix(),
    )


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
            lines = (source / name).read_text(encoding="utf-8").strip().splitlines()
            return lines[0].strip() if lines else "not stated"
    return "not stated"
