"""Score images of sampled folders against the references."""

import csv
from collections.abc import Sequence
from pathlib import Path

from b4m.settings import DEFAULT_EVALUATOR


def evaluate(
    samples: Sequence[str | Path],
    data: str | Path,
    out: str | Path,
    evaluator: str = DEFAULT_EVALUATOR,
) -> Path:
    """Score pictures: likeness to the content, to the style, and to the prompt.

    Args:
        samples: folders written by sample
        data: prepared folder with the references
        out: folder to write: scores.csv, summary.csv, differences.csv, provenance.json
        evaluator: a folder, or an open_clip MODEL:WEIGHTS; more after commas check the first

    Returns:
        `out`.

    Raises:
        B4MError: for missing pictures, unknown concepts or an evaluator that cannot be loaded.
    """
    from b4m.evaluate.score import evaluate as score
    from b4m.tracking import open_tracker

    folders = [Path(folder) for folder in samples]
    with open_tracker("evaluate", "evaluate", settings={"evaluator": evaluator}) as run:
        written = score(folders, Path(data), Path(out), evaluator)
        with (written / "summary.csv").open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                run.metrics({f"eval/{row['method']}/{row['metric']}": float(row["mean"])})
        run.files(sorted(written.iterdir()), "scores")
    return written
