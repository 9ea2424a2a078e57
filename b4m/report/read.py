"""What the report reads: samples, scores and the prepared data, joined and ordered."""

import csv
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from b4m.errors import B4MError
from b4m.evaluate.references import Prepared, read_prepared
from b4m.evaluate.samples import Sample, read_samples
from b4m.evaluate.tables import COPIES

IDENTITY = ("base", "content only", "style only")
"""Rows that merge nothing; every report starts with those that were sampled."""
BASELINES = ("direct", "direct merge")
_NAMES = {
    "base": ("Base model", "before any customization"),
    "content only": ("Content adapter", "alone, without the style"),
    "style only": ("Style adapter", "alone, without the content"),
    "direct": ("Direct merge", "both adapters added"),
    "svd": ("SVD", "their sum at a lower rank"),
    "ties": ("TIES", "small and conflicting entries dropped"),
    "dare": ("DARE", "entries dropped at random"),
    "nplora": ("NP-LoRA", "content kept off the style's directions"),
    "blora": ("B-LoRA", "content and style in different blocks"),
    "ziplora": ("ZipLoRA", "learned column weights"),
    "duolora": ("DuoLoRA", "learned rank weights"),
    "klora": ("K-LoRA", "one adapter per layer and step"),
    "joint": ("Joint training", "one adapter for both"),
    "b4m": ("B4M", "broken for each other, then made one"),
    COPIES[0]: ("Copy of the content", "its training picture, unchanged"),
    COPIES[1]: ("Copy of the style", "its training pictures, unchanged"),
}


@dataclass(frozen=True)
class Line:
    """One mean with its interval, as in summary.csv and differences.csv."""

    mean: float
    low: float | None
    high: float | None
    n: int
    unit: str


@dataclass(frozen=True)
class World:
    """Everything that a report shows."""

    samples: Sequence[Sample]
    prepared: Prepared
    provenance: Mapping[str, Any]
    summary: Mapping[tuple[str, str, str], Line]
    """By method, metric and encoder."""
    differences: Mapping[tuple[str, str, str], Line]
    """Method minus the direct merge, by method, metric and encoder."""
    in_pair: Mapping[tuple[str, str, str, str, str], float]
    """Mean by method, content, style, metric and encoder."""
    adapters: Mapping[str, Mapping[str, Any]]
    """What adapters say of themselves, by hash, where the samples folders carry it."""

    @property
    def labels(self) -> list[str]:
        """Sampled rows: identity rows, the direct merge, the others as they came, b4m last."""
        found = list(dict.fromkeys(sample.label for sample in self.samples))
        rank = {name: place for place, name in enumerate((*IDENTITY, *BASELINES))}
        return sorted(found, key=lambda name: (rank.get(name, 90), name == "b4m"))

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """(content, style) in the order of the samples."""
        return list(dict.fromkeys(self.pair_of(sample) for sample in self.samples))

    @property
    def judge(self) -> Mapping[str, str]:
        """The first encoder: `id`, `metric`, `weights_sha256`, `preprocessing`."""
        first: Mapping[str, str] = self.provenance["encoders"][0]
        return first

    def pair_of(self, sample: Sample) -> tuple[str, str]:
        """Names of the sample's content and style; an empty one is the only one there is."""
        return (
            self.prepared.concept("content", sample.content).name,
            self.prepared.concept("style", sample.style).name,
        )

    def of_judge(self, method: str, part: str) -> Line | None:
        """The judge's score of a method; `part` is content, style, harmonic or truth."""
        return self.summary.get((method, f"{self.judge['metric']}_{part}", self.judge["id"]))

    @property
    def deciding(self) -> str:
        """The part that decides: likeness to the truth where every pair has one, else both.

        A picture that shows a bit of the content and a bit of the style is like either, so the
        harmonic mean can be won by a double exposure; the ground truth cannot.
        """
        return "truth" if all(pair in self.prepared.truths for pair in self.pairs) else "harmonic"

    def best(self, part: str = "") -> str:
        """The merged row that is best in `part`, or in the deciding one."""
        merged = [label for label in self.labels if label not in IDENTITY] or self.labels

        def mean(label: str) -> float:
            line = self.of_judge(label, part or self.deciding)
            return line.mean if line else -1.0

        return max(merged, key=mean)


def read_world(samples: Sequence[Path], scores: Path, data: Path) -> World:
    """Read and join what three verbs have written.

    Raises:
        B4MError: for missing files, or scores of other samples than these.
    """
    drawn, prepared = read_samples(samples), read_prepared(data)
    rows = _table(scores / "scores.csv")
    sums: dict[tuple[str, str, str, str, str], list[float]] = defaultdict(list)
    for row in rows:
        key = (row["method"], row["content"], row["style"], row["metric"], row["encoder"])
        sums[key].append(float(row["value"]))
    world = World(
        samples=drawn,
        prepared=prepared,
        provenance=_json(scores / "provenance.json"),
        summary=_lines(scores / "summary.csv"),
        differences=_lines(scores / "differences.csv"),
        in_pair={key: sum(values) / len(values) for key, values in sums.items()},
        adapters={
            name: about
            for folder in samples
            if (folder / "adapters.json").is_file()
            for name, about in _json(folder / "adapters.json").items()
        },
    )
    unscored = [label for label in world.labels if world.of_judge(label, "content") is None]
    if unscored:
        raise B4MError(
            f"{scores / 'summary.csv'} has no score of {unscored[0]!r}; "
            "run b4m evaluate on these samples first"
        )
    return world


def name_of(label: str) -> tuple[str, str]:
    """How a row is called, and what it is in a few words."""
    if label in _NAMES:
        return _NAMES[label]
    for known, (name, _) in _NAMES.items():
        if label.startswith(f"{known} "):
            return f"{name}{label[len(known) :]}", ""
    return label[:1].upper() + label[1:], ""


def _lines(path: Path) -> dict[tuple[str, str, str], Line]:
    return {
        (row["method"], row["metric"], row["encoder"]): Line(
            mean=float(row["mean"]),
            low=float(row["ci_low"]) if row["ci_low"] else None,
            high=float(row["ci_high"]) if row["ci_high"] else None,
            n=int(row["n"]),
            unit=row["unit"],
        )
        for row in _table(path)
    }


def _table(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        raise B4MError(f"{path} is missing; run b4m evaluate first")
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def _json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise B4MError(f"{path} cannot be read: {error}") from None
    return found
