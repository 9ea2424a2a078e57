"""Plain LoRA (arXiv 2106.09685) on all attention linears of the UNet: the floor of comparisons.

DreamBooth's recipe without prior preservation, as ZipLoRA, DuoLoRA and K-LoRA train the adapters
that they merge: text encoders frozen, one trigger word in every caption.
"""

from pathlib import Path

from b4m.adapters.adapter import Adapter
from b4m.bases.sdxl.load import Base
from b4m.config import TrainSettings
from b4m.data.manifest import training_rows
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
    """Train an adapter of one content or one style.

    Args:
        kind: "content" or "style".
        data_dir: prepared data folder.
        concept: name of the content or style in it.
        base: the model to adapt.
        settings: rank, steps, learning rate and so on.
        workdir: for caches and the checkpoint.
        tracker: gets losses and sample pictures.

    Raises:
        B4MError: if the data has no such concept.
    """
    run = Run.open("lora", kind, concept, data_dir, base, settings, workdir)
    return train_pairs(run, training_rows(run.rows, kind, concept), run.linears(), tracker)
