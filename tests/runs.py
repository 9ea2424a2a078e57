"""Trainings and merges with the least that they need, for tests."""

from pathlib import Path
from typing import Any

from b4m.adapters.adapter import Adapter
from b4m.bases.base import Base
from b4m.data.manifest import read_manifest
from b4m.merging.context import MergeContext
from b4m.methods import merge_rule, training
from b4m.settings import resolve
from b4m.training.report import NullTracker, Tracker
from b4m.training.run import Run


def open_run(
    way: str,
    kind: str,
    data: Path,
    concept: str,
    base: Base,
    workdir: Path,
    tracker: Tracker | None = None,
    **overrides: object,
) -> Run[Any]:
    """A training that is ready to be carried out."""
    chosen = training(way)
    rows = chosen.rows(read_manifest(data), kind, concept)
    settings = resolve(chosen.settings, overrides, method=way)
    return Run(way, kind, concept, data, rows, base, settings, workdir, tracker or NullTracker())


def train(
    way: str,
    kind: str,
    data: Path,
    concept: str,
    base: Base,
    workdir: Path,
    tracker: Tracker | None = None,
    **overrides: object,
) -> Adapter:
    """Train an adapter; what is not overridden is as in the papers."""
    run = open_run(way, kind, data, concept, base, workdir, tracker, **overrides)
    return training(way).train(run)


def merge(
    method: str,
    content: Adapter,
    style: Adapter,
    base: Base | None = None,
    data: Path | None = None,
    workdir: Path = Path("nowhere"),
    tracker: Tracker | None = None,
    **overrides: object,
) -> Adapter:
    """Merge two adapters; closed forms need neither base nor data, and write nothing."""
    rule = merge_rule(method)
    settings = resolve(rule.settings, overrides, method=method)
    context: MergeContext[Any] = MergeContext(
        settings, base, data, workdir, tracker or NullTracker()
    )
    return rule.merge([content, style], context)
