"""B-LoRA (arXiv 2403.14572): content lives in one attention group of SDXL, style in the next.

    content   up_blocks.0.attentions.0        style   up_blocks.0.attentions.1

Training puts a LoRA on the group of its kind alone; the merge takes each group from its file and
multiplies nothing else. The released code trains both groups in either run and drops one at the
merge; training one is the same parametrization of what is kept at half the cost, but the other
group cannot absorb the rest of the picture meanwhile. Its alphas scale both factors, so dW by their
square; here a weight scales dW once.
"""

from pathlib import Path

from b4m.adapters.adapter import Adapter
from b4m.adapters.lowrank import LowRank
from b4m.bases.sdxl.blocks import BLORA, select
from b4m.bases.sdxl.load import Base
from b4m.config import TrainSettings
from b4m.data.manifest import training_rows
from b4m.errors import B4MError
from b4m.merging.context import MergeContext, require_same_base
from b4m.merging.layerwise import describe, truncated
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
    """Train the attention group of this kind.

    Args:
        kind: "content" or "style".
        data_dir: prepared data folder.
        concept: name of the content or style in it.
        base: the model to adapt.
        settings: rank, steps, learning rate and so on; `blocks` may only narrow the group.
        workdir: for caches and the checkpoint.
        tracker: gets losses and sample pictures.

    Raises:
        B4MError: if the data has no such concept, or the kind is another.
    """
    if kind not in BLORA:
        raise B4MError(f"blora trains content or style, not {kind!r}")
    run = Run.open("blora", kind, concept, data_dir, base, settings, workdir)
    rows = training_rows(run.rows, kind, concept)
    linears = run.linears(f"blora-{kind}")
    chosen = select(linears, settings.blocks)
    return train_pairs(run, rows, {name: linears[name] for name in chosen}, tracker)


def merge(content: Adapter, style: Adapter, context: MergeContext) -> Adapter:
    """Content's group of the content file beside style's group of the style file.

    The files may be B-LoRAs or LoRAs on all linears, whose other layers are left out.

    Raises:
        B4MError: if a file has no layer in its group, or the two are of different bases.
    """
    require_same_base(content, style)
    settings = context.settings
    layers: dict[str, LowRank] = {}
    for kind, adapter, weight in (
        ("content", content, settings.content_weight),
        ("style", style, settings.style_weight),
    ):
        group = BLORA[kind]
        found = [name for name in adapter.layers if name.startswith(f"{group}.")]
        if not found:
            raise B4MError(f"the {kind} adapter has no layer in {group}, which blora takes from it")
        layers |= {name: adapter.layers[name].scale(weight) for name in found}
    merged = Adapter(layers, describe("blora", content, style, settings))
    return truncated(merged, dict.fromkeys(layers, settings.rank))
