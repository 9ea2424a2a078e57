"""Where images come from: a user's own folder, or a collection that an installed package reads.

A folder with a manifest.csv is a collection. A package reads one kind of them and says so with an
entry point of the group `b4m.sources`; in its pyproject.toml:

    [project.entry-points."b4m.sources"]
    emojigrid = "b4m_mini.emojigrid"

The entry point names anything with the two functions of `Source`; a module will do.
"""

from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol

from b4m.data.manifest import MANIFEST, ManifestRow
from b4m.errors import B4MError

GROUP = "b4m.sources"

Selection = list[tuple[Path, ManifestRow]]
"""Image files with their lines of the manifest to be, which have no file name yet."""


@dataclass(frozen=True)
class Request:
    """What is to be chosen.

    Attributes:
        contents: names of contents.
        styles: names of styles.
        style_images: images that a style is trained on; further ones become references.
        partners: images of the other kind that multi-correspondence training gets.
        seed: of every choice among images.
        content_style: style that a collection's contents are drawn in; empty leaves it to the
            collection.
    """

    contents: tuple[str, ...]
    styles: tuple[str, ...]
    style_images: int
    partners: int
    seed: int
    content_style: str = ""


class Source(Protocol):
    """A reader of one kind of collection."""

    def reads(self, folder: Path) -> bool:
        """Whether this folder, which has a manifest.csv, is such a collection."""

    def choose(self, folder: Path, request: Request) -> Selection:
        """The images that the request needs.

        Raises:
            B4MError: for a name that the collection lacks.
        """


def find_source(folder: Path) -> Source:
    """The installed reader of a folder with a manifest.csv.

    Raises:
        B4MError: if there is none.
    """
    installed = sorted(entry_points(group=GROUP), key=lambda point: point.name)
    for point in installed:
        source: Source = point.load()
        if source.reads(folder):
            return source
    known = ", ".join(point.name for point in installed) or "none"
    raise B4MError(
        f"no installed reader knows {folder / MANIFEST} (installed: {known}); "
        "EmojiGrid's comes with `pip install ./mini` in a checkout of b4m"
    )
