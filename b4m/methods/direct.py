"""Direct merge: the weighted sum of both adapters, layer by layer.

    dW = w_c C + w_s S  =  [w_c U_c, w_s U_s] [D_c; D_s]

The concatenated pair has rank r_c + r_s and is exact; PEFT calls it "cat". PEFT's "linear" adds the
factors instead, (U_c + U_s)(D_c + D_s), which brings in the cross terms U_c D_s and U_s D_c
(huggingface/peft#3004): it is no sum of adapters. `dare` with density 1 is that rule.
"""

from b4m.adapters.adapter import Adapter
from b4m.adapters.lowrank import LowRank
from b4m.merging.context import MergeContext, require_same_base
from b4m.merging.layerwise import combine


def merge(content: Adapter, style: Adapter, context: MergeContext) -> Adapter:
    """The sum of both adapters, weighted by `content_weight` and `style_weight`; exact."""
    require_same_base(content, style)
    settings = context.settings

    def weighted_sum(content: LowRank, style: LowRank) -> LowRank:
        return content.scale(settings.content_weight) + style.scale(settings.style_weight)

    return combine("direct", content, style, settings, weighted_sum)
