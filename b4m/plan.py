"""What has to be done to answer a question: trainings, merges and images, as data.

    contents x styles x methods  ->  [TrainJob]  ->  [MergeJob]  ->  [SampleJob]

Pure: no torch, no files. `compare` carries the jobs out, by as many processes as are started, the
pipelines fan out over them. A job's key is the name of what it makes, so whoever runs it finds its
inputs by name: an adapter is made once, however many merges need it.

A row is a method, or a method with settings of its own: "ziplora:axis=rows", of training with
"b4m:train.partners=0". Each row may be drawn at several strengths t, which costs images alone:

    M + t (S - C)      M the merged adapter, C and S the content's and the style's that it is of

t = 0 is the method itself, t > 0 leans to the style. For the direct merge these are the weights
1 - t and 1 + t, and a sampler of two adapters is given them with these weights: every method moves
along the same direction, so that content and style can be traded in each of them alike.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from typing import Any, TypeVar

from b4m.errors import B4MError
from b4m.methods import method
from b4m.settings import parse_pairs

PAIRINGS = ("every", "matching")
SUM = "direct"
"""How adapters act together while sampling when no method says otherwise: they are added up."""
PLAIN = "lora"
"""The way of training whose adapters the baselines use."""


@dataclass(frozen=True)
class Baseline:
    """A row that stands beside the methods: what a merge has to beat.

    Attributes:
        label: the row's name in tables.
        kinds: the adapters that it is sampled with.
        title: its name in reports.
        summary: what it is in a few words, beside the name.
    """

    label: str
    kinds: tuple[str, ...]
    title: str
    summary: str


BASELINES = (
    Baseline("base", (), "Base model", "before any customization"),
    Baseline("content only", ("content",), "Content adapter", "alone, without the style"),
    Baseline("style only", ("style",), "Style adapter", "alone, without the content"),
)
REFERENCE_METHOD = "direct"
"""The merge that every other one is compared with; it is always among the rows."""


Own = tuple[tuple[str, str], ...]
"""Settings of one row alone, as (name, value)."""
_OF_TRAINING = "train."
_SWEPT = " style"
"""Stands in a row's label before its strength: "direct style+0.4"."""


@dataclass(frozen=True)
class Row:
    """A method, with what is set for this row alone.

    Attributes:
        method: its name.
        merged: settings of its merge, or of its sampler if it has no file.
        trained: settings of the training of its adapters.
    """

    method: str
    merged: Own = ()
    trained: Own = ()

    @classmethod
    def parse(cls, text: str) -> "Row":
        """The row of "METHOD" or "METHOD:NAME=VALUE,train.NAME=VALUE".

        Raises:
            B4MError: for an unknown method, or what is no setting.
        """
        name, _, listed = text.partition(":")
        method(name)
        merged, trained = {}, {}
        for key, value in parse_pairs(listed.split(",") if listed else ()).items():
            if not re.fullmatch(r"[a-z_.]+", key) or not re.fullmatch(r"[\w.+*-]+", value):
                raise B4MError(f"{text!r} is not METHOD:NAME=VALUE with plain names and values")
            if key.startswith(_OF_TRAINING):
                trained[key.removeprefix(_OF_TRAINING)] = value
            else:
                merged[key] = value
        if merged and method(name).result == "adapter":
            raise B4MError(f"{text!r}: {name} merges nothing; its settings are {_OF_TRAINING}NAME")
        return cls(name, tuple(merged.items()), tuple(trained.items()))

    @property
    def label(self) -> str:
        """The row's name in tables."""
        own = [*self.merged, *((f"{_OF_TRAINING}{name}", value) for name, value in self.trained)]
        return " ".join([self.method, *(f"{name}={value}" for name, value in own)])


def drawn_at(label: str, strength: float) -> str:
    """The label of a row's images at a strength; its own at 0."""
    return f"{label}{_SWEPT}{strength:+g}" if strength else label


def row_and_strength(label: str) -> tuple[str, float]:
    """The row's own label, and the strength at which its images were drawn."""
    found = re.fullmatch(rf"(.+){_SWEPT}([+-][\d.]+)", label)
    return (found[1], float(found[2])) if found else (label, 0.0)


@dataclass(frozen=True)
class TrainJob:
    """Train an adapter of a concept; `kind` is content, style or joint."""

    kind: str
    concept: str
    training: str
    settings: Own = ()

    @property
    def key(self) -> str:
        """Name of the adapter."""
        return f"{self.kind}-{self.concept}-{self.training}{_tail(self.settings)}"


@dataclass(frozen=True)
class MergeJob:
    """Make one adapter of two."""

    content: str
    style: str
    method: str
    settings: Own = ()
    trained: Own = ()

    @property
    def key(self) -> str:
        """Name of the merged adapter."""
        own = f"{_tail(self.settings)}{_tail(self.trained, _OF_TRAINING)}"
        return f"merged-{self.content}+{self.style}-{self.method}{own}"

    @property
    def inputs(self) -> tuple[str, str]:
        """Keys of the content's and the style's adapter."""
        training = method(self.method).training
        return (
            TrainJob("content", self.content, training, self.trained).key,
            TrainJob("style", self.style, training, self.trained).key,
        )

    @property
    def learned(self) -> bool:
        """Whether it needs the base and the images."""
        return method(self.method).learned


@dataclass(frozen=True)
class SampleJob:
    """Generate a pair's images with some adapters, or with the base alone."""

    label: str
    content: str
    style: str
    adapters: tuple[str, ...]
    combine: str = SUM
    weights: tuple[float, ...] = ()
    """Factor on each adapter; empty is 1 for all."""
    settings: Own = ()

    @property
    def key(self) -> str:
        """Name of the images."""
        return f"{self.label.replace(' ', '-')}-{self.content}+{self.style}"


@dataclass(frozen=True)
class Comparison:
    """Which methods are compared on which pairs.

    Attributes:
        contents: names of contents.
        styles: names of styles.
        methods: names of methods, with settings of their own or without, see `Row`.
        pairing: `every` content with every style, or `matching`: first with first, and so on.
        strengths: at which every row is drawn besides 0, in (-1, 1) without 0.
    """

    contents: tuple[str, ...]
    styles: tuple[str, ...]
    methods: tuple[str, ...]
    pairing: str = "every"
    strengths: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for what in ("contents", "styles", "methods"):
            values = getattr(self, what)
            if not values or not all(values):
                raise B4MError(f"nothing to compare: no {what} were given")
            if len(set(values)) != len(values):
                double = next(value for value in values if values.count(value) > 1)
                raise B4MError(f"{double!r} is given twice among the {what}; give it once")
            joined = next((value for value in values if "+" in value), None)
            if joined is not None:
                raise B4MError(
                    f"{joined!r} among the {what} has a '+', which joins a content's and a style's "
                    "name; give the folder another name"
                )
            for value in values:
                if any(sign in value for sign in '"/\\') or not value.isprintable():
                    raise B4MError(
                        f"{value!r} cannot be part of a file's name; rename it without quotation "
                        "marks, slashes, backslashes and control characters"
                    )
        if self.pairing not in PAIRINGS:
            raise B4MError(f"unknown pairing {self.pairing!r}; choose {' or '.join(PAIRINGS)}")
        if self.pairing == "matching" and len(self.contents) != len(self.styles):
            raise B4MError(
                f"{len(self.contents)} contents do not match {len(self.styles)} styles; "
                "give as many of both, or pair every content with every style"
            )
        _check_strengths(self.strengths)
        labels = [Row.parse(text).label for text in self.methods]
        double = next((label for label in labels if labels.count(label) > 1), None)
        if double is not None:
            raise B4MError(f"{double!r} is given twice among the methods; give it once")

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The (content, style) pairs."""
        if self.pairing == "matching":
            return list(zip(self.contents, self.styles, strict=True))
        return list(product(self.contents, self.styles))

    @property
    def title(self) -> str:
        """What is compared, in a few words."""
        if len(self.pairs) == 1:
            content, style = self.pairs[0]
            return f"{content} in {style}"
        return f"{len(self.pairs)} pairs, {len(self.rows)} methods"

    @property
    def rows(self) -> list[Row]:
        """The methods with the reference method, which comes last if it was not asked for."""
        return list(dict.fromkeys(map(Row.parse, [*self.methods, REFERENCE_METHOD])))


@dataclass(frozen=True)
class Plan:
    """The jobs in the order in which they can be done."""

    trainings: tuple[TrainJob, ...]
    merges: tuple[MergeJob, ...]
    samples: tuple[SampleJob, ...]

    def as_dict(self) -> dict[str, list[dict[str, Any]]]:
        """The jobs as JSON values, each with its key and what it needs."""
        return {
            "trainings": [{"key": job.key, **asdict(job)} for job in self.trainings],
            "merges": [
                {"key": job.key, "inputs": list(job.inputs), "learned": job.learned, **asdict(job)}
                for job in self.merges
            ],
            "samples": [{"key": job.key, **asdict(job)} for job in self.samples],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Sequence[Mapping[str, Any]]]) -> "Plan":
        """The plan that `as_dict` wrote down."""
        return cls(
            tuple(_job(TrainJob, job) for job in values["trainings"]),
            tuple(_job(MergeJob, job) for job in values["merges"]),
            tuple(
                _job(SampleJob, {**job, **{n: tuple(job[n]) for n in ("adapters", "weights")}})
                for job in values["samples"]
            ),
        )


J = TypeVar("J", TrainJob, MergeJob, SampleJob)
_PAIRS = ("settings", "trained")


def _job(form: type[J], values: Mapping[str, Any]) -> J:
    """A job from its JSON values, without the derived ones."""
    own = {field.name: values[field.name] for field in fields(form)}
    tupled = {name: tuple(map(tuple, own[name])) for name in _PAIRS if name in own}
    return form(**{**own, **tupled})


def plan(comparison: Comparison) -> Plan:
    """All jobs of a comparison, each once."""
    trainings = [
        TrainJob(kind, concept, training, own)
        for training, own in _trainings(comparison.rows)
        for kind, concepts in (("content", comparison.contents), ("style", comparison.styles))
        for concept in concepts
    ]
    merges: list[MergeJob] = []
    samples: list[SampleJob] = []
    for content, style in comparison.pairs:
        samples += _baselines(content, style)
    for row, (content, style) in product(comparison.rows, comparison.pairs):
        merge = MergeJob(content, style, row.method, row.merged, row.trained)
        drawn = SampleJob(row.label, content, style, merge.inputs)
        result = method(row.method).result
        if result == "images":
            samples += _choosing(drawn, row, comparison.strengths)
            continue
        if result == "file":
            merges.append(merge)
            inputs, own = merge.inputs, merge.key
        else:
            training = method(row.method).training
            both = TrainJob(training, f"{content}+{style}", training, row.trained)
            trainings.append(both)
            inputs, own = MergeJob(content, style, REFERENCE_METHOD).inputs, both.key
        samples += _leaning(replace(drawn, adapters=(own,)), inputs, comparison.strengths)
    return Plan(tuple(trainings), tuple(merges), tuple(samples))


def _leaning(
    drawn: SampleJob, inputs: tuple[str, str], strengths: Sequence[float]
) -> Iterator[SampleJob]:
    """One adapter M at every strength t: M + t (S - C)."""
    yield drawn
    content, style = inputs
    for t in strengths:
        yield replace(
            drawn,
            label=drawn_at(drawn.label, t),
            adapters=(*drawn.adapters, style, content),
            weights=(1.0, t, -t),
        )


def _choosing(drawn: SampleJob, row: Row, strengths: Sequence[float]) -> Iterator[SampleJob]:
    """A sampler of content's and style's adapter at every strength t: (1 - t) C, (1 + t) S."""
    chosen = replace(drawn, combine=row.method, settings=row.merged)
    yield chosen
    for t in strengths:
        yield replace(chosen, label=drawn_at(drawn.label, t), weights=(1.0 - t, 1.0 + t))


def _trainings(rows: Sequence[Row]) -> list[tuple[str, Own]]:
    """Ways of training the single concepts with their settings, the baselines' first."""
    single = [row for row in rows if method(row.method).result != "adapter"]
    ways = ((method(row.method).training, row.trained) for row in single)
    return list(dict.fromkeys([(PLAIN, ()), *ways]))


def _tail(own: Own, prefix: str = "") -> str:
    return "".join(f"-{prefix}{name}={value}" for name, value in own)


def _check_strengths(strengths: Sequence[float]) -> None:
    wrong = next((t for t in strengths if not -1.0 < t < 1.0 or t == 0.0), None)
    if wrong is not None:
        raise B4MError(
            f"strength {wrong} must be between -1 and 1 and not 0, which is always drawn"
        )
    if len(set(strengths)) != len(strengths):
        raise B4MError("a strength is given twice; give it once")


def _baselines(content: str, style: str) -> Iterator[SampleJob]:
    concepts = {"content": content, "style": style}
    for baseline in BASELINES:
        files = tuple(TrainJob(kind, concepts[kind], PLAIN).key for kind in baseline.kinds)
        yield SampleJob(baseline.label, content, style, files)
