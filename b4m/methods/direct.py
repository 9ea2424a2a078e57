"""Direct merge: the weighted sum of the adapters, layer by layer.

    dW = sum_k w_k dW_k  =  [w_1 U_1, w_2 U_2, ...] [D_1; D_2; ...]

The concatenated pair has the sum of the ranks and is exact; PEFT calls it "cat". PEFT's "linear"
adds the factors instead, (U_1 + U_2)(D_1 + D_2), which brings in the cross terms U_1 D_2 and
U_2 D_1 (huggingface/peft#3004): it is no sum of adapters. `dare` with density 1 is that rule.
"""

from collections.abc import Sequence

from b4m.adapters.adapter import Adapter
from b4m.merging.context import MergeContext
from b4m.merging.layerwise import merge_layers, weighted_sum
from b4m.methods import Merge
from b4m.settings import MergeSettings


def merge(adapters: Sequence[Adapter], context: MergeContext[MergeSettings]) -> Adapter:
    """The sum of the adapters times their `weights`; exact."""
    return merge_layers("direct", adapters, context.settings, weighted_sum, known=sum)


MERGE = Merge(MergeSettings, merge)
