"""Direct merge: the weighted sum of both adapters, layer by layer.

    dW = w_c C + w_s S  =  [w_c U_c, w_s U_s] [D_c; D_s]

The concatenated pair has rank r_c + r_s and is exact; PEFT calls it "cat". PEFT's "linear" adds the
factors instead, (U_c + U_s)(D_c + D_s), which brings in the cross terms U_c D_s and U_s D_c
(huggingface/peft#3004): it is no sum of adapters. `dare` with density 1 is that rule.
"""

from b4m.adapters.adapter import Adapter
from b4m.adapters.lowrank import LowRank
from b4m.merging.context import MergeContext
from b4m.merging.layerwise import merge_layers
from b4m.methods import Merge
from b4m.settings import MergeSettings


def merge(content: Adapter, style: Adapter, context: MergeContext[MergeSettings]) -> Adapter:
    """The sum of both adapters, weighted by `content_weight` and `style_weight`; exact."""
    settings = context.settings

    def weighted_sum(content: LowRank, style: LowRank) -> LowRank:
        return content.scale(settings.content_weight) + style.scale(settings.style_weight)

    return merge_layers("direct", content, style, settings, weighted_sum)


MERGE = Merge(MergeSettings, merge)
