"""What has to be done to answer a question: trainings, merges and images, as data.

    contents x styles x methods  ->  [TrainJob]  ->  [MergeJob]  ->  [SampleJob]

Pure: no torch, no files, no settings. `compare` carries the jobs out in one process, the pipelines
fan out over them. A job's key is the name of what it makes, so whoever runs it finds its inputs by
name: an adapter is made once, however many merges need it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import product
from typing import Any, TypeVar

from b4m.errors import B4MError
from b4m.methods import method

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


@dataclass(frozen=True)
class TrainJob:
    """Train an adapter of a concept; `kind` is content, style or joint."""

    kind: str
    concept: str
    training: str

    @property
    def key(self) -> str:
        """Name of the adapter."""
        return f"{self.kind}-{self.concept}-{self.training}"


@dataclass(frozen=True)
class MergeJob:
    """Make one adapter of two."""

    content: str
    style: str
    method: str

    @property
    def key(self) -> str:
        """Name of the merged adapter."""
        return f"merged-{self.content}+{self.style}-{self.method}"

    @property
    def inputs(self) -> tuple[str, str]:
        """Keys of the content's and the style's adapter."""
        training = method(self.method).training
        return (
            TrainJob("content", self.content, training).key,
            TrainJob("style", self.style, training).key,
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
        methods: names of methods.
        pairing: `every` content with every style, or `matching`: first with first, and so on.
    """

    contents: tuple[str, ...]
    styles: tuple[str, ...]
    methods: tuple[str, ...]
    pairing: str = "every"

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
        for name in self.methods:
            method(name)

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
    def rows(self) -> list[str]:
        """The methods with the reference method, which comes last if it was not asked for."""
        return list(dict.fromkeys([*self.methods, REFERENCE_METHOD]))


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
                _job(SampleJob, {**job, "adapters": tuple(job["adapters"])})
                for job in values["samples"]
            ),
        )


J = TypeVar("J", TrainJob, MergeJob, SampleJob)


def _job(form: type[J], values: Mapping[str, Any]) -> J:
    """A job from its JSON values, without the derived ones."""
    return form(**{field.name: values[field.name] for field in fields(form)})


def plan(comparison: Comparison) -> Plan:
    """All jobs of a comparison, each once."""
    trainings = [
        TrainJob(kind, concept, training)
        for training in _trainings(comparison.rows)
        for kind, concepts in (("content", comparison.contents), ("style", comparison.styles))
        for concept in concepts
    ]
    merges: list[MergeJob] = []
    samples: list[SampleJob] = []
    for content, style in comparison.pairs:
        samples += _baselines(content, style)
    for name, (content, style) in product(comparison.rows, comparison.pairs):
        row = method(name)
        merge = MergeJob(content, style, name)
        if row.result == "file":
            merges.append(merge)
            samples.append(SampleJob(name, content, style, (merge.key,)))
        elif row.result == "images":
            samples.append(SampleJob(name, content, style, merge.inputs, combine=name))
        else:
            both = TrainJob(row.training, f"{content}+{style}", row.training)
            trainings.append(both)
            samples.append(SampleJob(name, content, style, (both.key,)))
    return Plan(tuple(trainings), tuple(merges), tuple(samples))


def _trainings(methods: Sequence[str]) -> list[str]:
    """Ways of training the single concepts, the baselines' first."""
    rows = [method(name) for name in methods]
    return list(dict.fromkeys([PLAIN, *(r.training for r in rows if r.result != "adapter")]))


def _baselines(content: str, style: str) -> Iterator[SampleJob]:
    concepts = {"content": content, "style": style}
    for baseline in BASELINES:
        files = tuple(TrainJob(kind, concepts[kind], PLAIN).key for kind in baseline.kinds)
        yield SampleJob(baseline.label, content, style, files)
