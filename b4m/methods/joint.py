"""Joint training: one LoRA on the content's and the style's pictures together, no merge.

The baseline that ZipLoRA and B4M compare with under this name. Both concepts are shown equally
often, however many pictures each has.
"""

from itertools import cycle, islice
from pathlib import Path

from b4m.adapters.adapter import Adapter
from b4m.bases.sdxl.load import Base
from b4m.config import TrainSettings
from b4m.data.manifest import training_rows
from b4m.errors import B4MError
from b4m.train.loop import Tracker
from b4m.train.plain import train_pairs
from b4m.train.run import Run


def train(
    kind: str,
    data_dir: Path,
    concept: str,
    base: Base,
    settings: TrainSettings,
    workdir: Path,
    tracker: Tracker | None = None,
) -> Adapter:
    """Train one adapter of a content and a style.

    Args:
        kind: "joint".
        data_dir: prepared data folder.
        concept: "content+style", both names as in the folder.
        base: the model to adapt.
        settings: rank, steps, learning rate and so on.
        workdir: for caches and the checkpoint.
        tracker: gets losses and sample pictures.

    Raises:
        B4MError: if the concept is no such pair or the data lacks one of the two.
    """
    content, plus, style = concept.partition("+")
    if kind != "joint" or not plus or not content or not style:
        raise B4MError(
            f"joint training needs kind joint and a concept content+style, not {kind} {concept!r}"
        )
    run = Run.open("joint", kind, concept, data_dir, base, settings, workdir)
    both = training_rows(run.rows, "content", content), training_rows(run.rows, "style", style)
    longest = max(len(rows) for rows in both)
    rows = [row for part in both for row in islice(cycle(part), longest)]
    return train_pairs(run, rows, run.linears(), tracker)
