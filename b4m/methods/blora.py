"""B-LoRA (arXiv 2403.14572): content lives in one attention group of SDXL, style in the next.

    content   up_blocks.0.attentions.0        style   up_blocks.0.attentions.1

Training puts a LoRA on the group of its kind alone; the merge takes each group from its file and
multiplies nothing else. The released code trains both groups in either run and drops one at the
merge; training one is the same parametrization of what is kept at half the cost, but the other
group cannot absorb the rest of the picture meanwhile. Its alphas scale both factors, so dW by their
square; here a weight scales dW once.
"""

from dataclasses import replace

from b4m.adapters.adapter import Adapter
from b4m.bases import family_of
from b4m.bases.family import Family
from b4m.data.manifest import training_rows
from b4m.errors import B4MError
from b4m.merging.context import MergeContext, require_same_base
from b4m.merging.layerwise import describe, finished
from b4m.merging.weighting import weighted
from b4m.methods import Merge, Training
from b4m.settings import MergeSettings
from b4m.training.plain import train_pairs
from b4m.training.run import Run
from b4m.training.settings import PairSettings


def train(run: Run[PairSettings]) -> Adapter:
    """Train the attention group of the run's kind; `blocks` may only narrow it.

    Raises:
        B4MError: for another kind than content or style, or a base without such groups.
    """
    if run.kind not in ("content", "style"):
        raise B4MError(f"blora trains content or style, not {run.kind!r}")
    linears = run.linears(_group(run.base.family, run.kind))
    kept = run.base.family.select(linears, run.settings.blocks)
    return train_pairs(run, {name: linears[name] for name in kept})


def merge(content: Adapter, style: Adapter, context: MergeContext[MergeSettings]) -> Adapter:
    """Content's group of the content file beside style's group of the style file.

    The files may be B-LoRAs or LoRAs on all linears, whose other layers are left out.

    Raises:
        B4MError: if a file has no layer in its group, the base has no such groups, or the two are
            of different bases.
    """
    both = [content, style]
    require_same_base(both)
    settings = context.settings
    sources = []
    for kind, adapter in zip(("content", "style"), weighted(both, settings.weights), strict=True):
        group = _group(family_of(adapter.layers, adapter.metadata.family), kind)
        selected = {n: pair for n, pair in adapter.layers.items() if n.startswith(f"{group}.")}
        if not selected:
            raise B4MError(f"the {kind} adapter has no layer in {group}, which blora takes from it")
        sources.append(replace(adapter, layers=selected))
    merged = replace(sources[0] + sources[1], metadata=describe("blora", both, settings))
    return finished(merged, sources, settings)


def _group(family: Family | None, kind: str) -> str:
    """The attention group that draws this kind."""
    group = family.block_groups.get(f"blora-{kind}") if family else None
    if group is None:
        title = family.title if family else "these layers"
        raise B4MError(f"B-LoRA has found no groups in {title}; use another method")
    return group


TRAINING = Training(PairSettings, train, training_rows)
MERGE = Merge.pair(MergeSettings, merge)
