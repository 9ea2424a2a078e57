"""Joint training: one LoRA on the content's and the style's pictures together, no merge.

The baseline that ZipLoRA and B4M compare with under this name. Both concepts are shown equally
often, however many pictures each has.
"""

from collections.abc import Sequence
from itertools import cycle, islice

from b4m.adapters.adapter import Adapter
from b4m.data.manifest import ManifestRow, training_rows
from b4m.data.names import cut_pair
from b4m.errors import B4MError
from b4m.methods import Training
from b4m.training.plain import train_pairs
from b4m.training.run import Run
from b4m.training.settings import PairSettings


def rows(manifest: Sequence[ManifestRow], kind: str, concept: str) -> list[ManifestRow]:
    """Both concepts' training images, those of the smaller set repeated.

    Args:
        manifest: all lines.
        kind: "joint".
        concept: "content+style", both names as in the folder.

    Raises:
        B4MError: if the concept is not such a pair, or the data lacks one of the two.
    """
    if kind != "joint":
        raise B4MError(
            f"joint training needs kind joint and a concept content+style, not {kind} {concept!r}"
        )
    known = {
        side: {row.concept for row in manifest if (row.kind, row.role) == (side, "train")}
        for side in ("content", "style")
    }
    content, style = cut_pair(concept, known["content"], known["style"])
    both = training_rows(manifest, "content", content), training_rows(manifest, "style", style)
    longest = max(len(part) for part in both)
    return [row for part in both for row in islice(cycle(part), longest)]


def train(run: Run[PairSettings]) -> Adapter:
    """Train one adapter of a content and a style."""
    return train_pairs(run, run.linears())


TRAINING = Training(PairSettings, train, rows)
