"""NP-LoRA: null-space projection of content against style (arXiv 2511.11051).

    hard:  dW = S + C (I - Q Q^T)
    soft:  dW = S + C (I - mu / (1 + mu) Q Q^T)          mu -> infinity is hard; mu = 0 is direct

Q (I x K) is an orthonormal basis of the style's row space, so only content's down factor changes:
down_c (I - a Q Q^T). The result has rank r_c + r_s and is exact. Soft projection minimises ||X -
C||^2 + mu ||X Q||^2 over X, which gives the factor above. The paper takes Q from a thin QR of the
style's down^T; here it also leaves out directions that the style's up factor cancels, which is
the same wherever up has full column rank. Weights scale the adapters and do not change Q. The
paper names mu = 0.5; no released code was found.
"""

from typing import Literal

from pydantic import Field

from b4m.adapters.adapter import Adapter
from b4m.adapters.lowrank import LowRank
from b4m.merging.context import MergeContext
from b4m.merging.layerwise import merge_layers
from b4m.methods import Merge
from b4m.settings import MergeSettings


class Settings(MergeSettings):
    """What NP-LoRA reads."""

    mu: float = Field(0.5, ge=0, description="strength of the soft projection")
    projection: Literal["soft", "hard"] = Field("soft", description="kind of projection")


def merge(content: Adapter, style: Adapter, context: MergeContext[Settings]) -> Adapter:
    """Content without its part in the style's row space, plus style."""
    settings = context.settings
    amount = 1.0 if settings.projection == "hard" else settings.mu / (1.0 + settings.mu)

    def projected_sum(content: LowRank, style: LowRank) -> LowRank:
        weighted = style.scale(settings.style_weight)
        if content.rank and style.rank:
            content = content.project_out(style.row_space(), amount)
        return content.scale(settings.content_weight) + weighted

    return merge_layers("nplora", content, style, settings, projected_sum)


MERGE = Merge(Settings, merge)
