"""What the report shows: samples, scores and the prepared data, joined and ordered."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from b4m.errors import B4MError
from b4m.evaluation.checks import blind_styles
from b4m.evaluation.provenance import check_provenance
from b4m.evaluation.references import Prepared, read_prepared
from b4m.evaluation.samples import Sample, read_samples
from b4m.evaluation.statistics import PAIR, Estimate
from b4m.evaluation.tables import Scores, read_scores
from b4m.io import read_json
from b4m.plan import REFERENCE_METHOD, row_and_strength
from b4m.report.names import BASELINES

Pair = tuple[str, str]


@dataclass(frozen=True)
class ReportData:
    """Everything that a report shows."""

    samples: Sequence[Sample]
    prepared: Prepared
    scores: Scores
    adapters: Mapping[str, Sequence[Mapping[str, Any]]]
    """Metadata of the used adapters' files by hash, where the samples folders carry them."""

    @cached_property
    def labels(self) -> list[str]:
        """Sampled rows: baselines, the direct merge, the others as they came, b4m last.

        What was drawn at further strengths belongs to the frontier alone.
        """
        labels = dict.fromkeys(
            sample.label for sample in self.samples if not row_and_strength(sample.label)[1]
        )
        rank = {name: place for place, name in enumerate((*BASELINES, REFERENCE_METHOD))}
        return sorted(labels, key=lambda name: (rank.get(name, len(rank)), name == "b4m"))

    @property
    def merged(self) -> list[str]:
        """Sampled rows that are no baseline."""
        return [label for label in self.labels if label not in BASELINES]

    @cached_property
    def pairs(self) -> list[Pair]:
        """(content, style) in the order of the samples."""
        return list(dict.fromkeys(self.pair_of(sample) for sample in self.samples))

    def pair_of(self, sample: Sample) -> Pair:
        """Names of the sample's content and style; an empty one is the only one there is."""
        return (
            self.prepared.concept("content", sample.content).name,
            self.prepared.concept("style", sample.style).name,
        )

    @cached_property
    def blind(self) -> Mapping[tuple[str, str], str]:
        """Style scores that a copy of the style does not win; see `checks.blind_styles`."""
        return blind_styles(self.scores.summary, self.labels)

    @property
    def style_part(self) -> str:
        """The primary evaluator's style score that a copy of the style wins; style if none is."""
        _, metric, encoder = self.key("", "style")
        if (metric, encoder) in self.blind and (f"{metric}_csls", encoder) not in self.blind:
            csls = any(key[1:] == (f"{metric}_csls", encoder) for key in self.scores.summary)
            return "style_csls" if csls else "style"
        return "style"

    @property
    def evaluator(self) -> Mapping[str, Any]:
        """The primary encoder: `id`, `metric`, `style_gaps` and more, see `evaluate.provenance`."""
        first: Mapping[str, Any] = self.scores.provenance["encoders"][0]
        return first

    def key(self, label: str, part: str) -> tuple[str, str, str]:
        """Where the primary evaluator's score stands in summary and differences.

        Args:
            label: the row.
            part: content, style, harmonic or truth.
        """
        return label, f"{self.evaluator['metric']}_{part}", self.evaluator["id"]

    def score(self, label: str, part: str) -> Estimate | None:
        """The primary evaluator's score of a row; see `key`."""
        return self.scores.summary.get(self.key(label, part))

    def difference(self, label: str, part: str) -> Estimate | None:
        """The row minus the direct merge on the same images; see `key`."""
        return self.scores.differences.get(self.key(label, part))

    def score_in_pair(self, label: str, pair: Pair, part: str) -> float | None:
        """The row's mean over the images of one pair; see `key`."""
        return self._pair_means.get((*self.key(label, part), *pair))

    @cached_property
    def _pair_means(self) -> Mapping[Any, float]:
        columns = ["method", "metric", "encoder", *PAIR]
        return self.scores.table.groupby(columns)["value"].mean().to_dict()

    @property
    def primary_metric(self) -> str:
        """The part that ranks: likeness to the ground truth where every pair has one, else both.

        An image that shows a bit of the content and a bit of the style is like either, so the
        harmonic mean can be won by a double exposure; the ground truth cannot.
        """
        known = all(pair in self.prepared.ground_truths for pair in self.pairs)
        return "truth" if known else "harmonic"

    def best(self, part: str = "") -> str:
        """The merged row that is best in `part`, or in the primary metric."""

        def mean(label: str) -> float:
            estimate = self.score(label, part or self.primary_metric)
            return estimate.mean if estimate else -1.0

        return max(self.merged or self.labels, key=mean)


def load(samples: Sequence[Path], scores: Path, data: Path) -> ReportData:
    """Read and join what `b4m sample`, `b4m evaluate` and `b4m prepare` have written.

    Raises:
        B4MError: for missing files, or scores of other samples than these.
    """
    report = ReportData(
        samples=read_samples(samples),
        prepared=read_prepared(data),
        scores=read_scores(scores),
        adapters={
            digest: used["files"]
            for folder in samples
            for digest, used in _adapters(folder / "adapters.json").items()
        },
    )
    check_provenance(report.scores.provenance, str(scores / "provenance.json"))
    for label in report.labels:
        if report.score(label, "content") is None:
            raise B4MError(
                f"{scores} has no score of {label!r}; run b4m evaluate on these samples first"
            )
    return report


def _adapters(path: Path) -> dict[str, dict[str, Any]]:
    return read_json(path, "generate the samples again") if path.is_file() else {}
