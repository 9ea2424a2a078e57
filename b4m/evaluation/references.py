"""What images are compared with: references of both sides, ground truth, plain prompts.

A reference that an adapter was trained on rewards memory. Where the manifest holds some back
(role "reference") only those are used, otherwise the training images, and the provenance says
which. Partners of multi-correspondence training are never references.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from b4m.data.captions import with_article
from b4m.data.manifest import ManifestRow, read_manifest
from b4m.data.names import find_pair
from b4m.errors import B4MError


@dataclass(frozen=True)
class Concept:
    """One content or one style with the images that stand for it."""

    kind: str
    name: str
    role: str
    """"reference" for held-back images, "train" when the training images have to serve."""
    references: tuple[Path, ...]
    trained: tuple[Path, ...]
    """What an adapter saw and could copy; the references if the manifest has no training row."""
    trigger: str
    class_word: str


@dataclass(frozen=True)
class GroundTruth:
    """This content in that style as its artist drew it."""

    path: Path
    alignment: str
    """"exact": the same drawing, so pixels may be compared; "meaning": another hand's drawing."""


@dataclass(frozen=True)
class Prepared:
    """A prepared data folder as the evaluation sees it."""

    folder: Path
    concepts: Mapping[tuple[str, str], Concept]
    ground_truths: Mapping[tuple[str, str], GroundTruth]
    """Ground truth by (content, style), where it exists."""

    def concept(self, kind: str, name: str) -> Concept:
        """The concept of this kind and name; the only one of its kind if `name` is empty.

        Raises:
            B4MError: when there is no such concept or the name is needed.
        """
        names = [key[1] for key in self.concepts if key[0] == kind]
        if not name and len(names) == 1:
            name = names[0]
        if (kind, name) not in self.concepts:
            known = ", ".join(names) or "none"
            raise B4MError(
                f"{self.folder / 'manifest.csv'} has no {kind} {name!r} that samples name; "
                f"it has: {known}"
            )
        return self.concepts[kind, name]


def read_prepared(data: Path) -> Prepared:
    """Concepts, references and ground truth of a prepared data folder.

    Raises:
        B4MError: when the manifest is missing or malformed, or has no content or no style.
    """
    groups: dict[tuple[str, str], list[ManifestRow]] = {}
    rows = read_manifest(data)
    for row in rows:
        if row.kind in ("content", "style") and row.role in ("train", "reference"):
            groups.setdefault((row.kind, row.concept), []).append(row)
    for kind in ("content", "style"):
        if not any(key[0] == kind for key in groups):
            raise B4MError(f"{data / 'manifest.csv'} has no {kind} image to compare with")
    concepts = {key: _concept(data, key, members) for key, members in groups.items()}
    return Prepared(data, concepts, _ground_truths(data, rows, concepts))


def _ground_truths(
    data: Path, rows: Sequence[ManifestRow], concepts: Iterable[tuple[str, str]]
) -> dict[tuple[str, str], GroundTruth]:
    """Of pairs whose content and style are there; an exact one goes before any other."""
    names = {kind: {name for own, name in concepts if own == kind} for kind in ("content", "style")}
    found: dict[tuple[str, str], GroundTruth] = {}
    for row in rows:
        pair = find_pair(row.concept, names["content"], names["style"])
        if row.kind == "truth" and pair and (pair not in found or found[pair].alignment != "exact"):
            found[pair] = GroundTruth(data / row.file, row.alignment)
    return found


def plain_prompt(prompt: str, concepts: Iterable[Concept], words: Mapping[str, str]) -> str:
    """The prompt without triggers: each is replaced by what it stands for.

    An encoder never saw the trigger words, so they would only add noise to CLIP-T. "a snq animal"
    and "a snq" both become "an animal"; what stands for a trigger is the encoder's own word for
    the concept, else its class word, else the name of a style.

    Args:
        prompt: with triggers.
        concepts: whose triggers are replaced.
        words: the encoder's own words by concept name.
    """
    for concept in concepts:
        if not concept.trigger:
            continue
        fallback = concept.class_word or (concept.name if concept.kind == "style" else "")
        word = words.get(concept.name, fallback)
        class_word = rf"(?:\s+{re.escape(concept.class_word)}(?!\S))?" if concept.class_word else ""
        pattern = rf"(?<!\S)(?:(an?)\s+)?{re.escape(concept.trigger)}(?!\S){class_word}"

        def replacement(match: re.Match[str], word: str = word) -> str:
            return with_article(word) if match.group(1) and word else word

        prompt = re.sub(pattern, replacement, prompt, flags=re.IGNORECASE)
    return " ".join(prompt.split())


def _concept(data: Path, key: tuple[str, str], rows: Sequence[ManifestRow]) -> Concept:
    held_back = [row for row in rows if row.role == "reference"]
    trained = [row for row in rows if row.role == "train"] or held_back
    references = held_back or trained
    return Concept(
        kind=key[0],
        name=key[1],
        role=references[0].role,
        references=tuple(data / row.file for row in references),
        trained=tuple(data / row.file for row in trained),
        trigger=next((row.trigger for row in rows if row.trigger), ""),
        class_word=next((row.class_word for row in rows if row.class_word), ""),
    )
