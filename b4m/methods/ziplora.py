"""ZipLoRA (arXiv 2311.13600, ECCV 2024): masks that keep each adapter's behaviour apart.

    dW = C diag(m_c) + S diag(m_s)                  axis "columns": one number per input, the paper
    dW = diag(m_c) C + diag(m_s) S                  axis "rows": one number per output, "1.33M"

    L  = ||e_m(x_c, p_c) - e_c(x_c, p_c)||_2 + ||e_m(x_s, p_s) - e_s(x_s, p_s)||_2
         + lambda sum_layers mean |m_c m_s|

e_m, e_c, e_s are what the denoiser outputs with the merged, the content and the style adapter.
Masks start at one (the direct merge) and take 100 Adam steps.

Deviations. The paper writes the overlap as |m_c . m_s|; as in the public implementation it is the
mean over the entries of a layer, summed over layers, because the plain inner product of 1280
entries outweighs both norms by orders of magnitude and only shrinks all masks together. That
implementation (ziplora-pytorch) takes mean squares for the norms; the overlap's gradient then
exceeds theirs, about a thousandfold by an estimate for SDXL. Its lr of 5e-5 moves a mask by at most
0.005 in 100 steps; the paper's text states none, and 0.01 is what LoRA.rar and DuoLoRA use. About
stopping see `mask_learning`. Layers of the text encoders, which no mask acts on, are added up.
"""

from typing import Literal

from pydantic import Field
from torch import Tensor

from b4m.adapters.adapter import Adapter
from b4m.merging.context import MergeContext
from b4m.merging.mask_learning import Losses, MaskedMerge, learn_masks
from b4m.merging.recording import start_by_least_squares
from b4m.merging.teacher_bank import Bank
from b4m.methods import Merge
from b4m.settings import MaskSettings


class Settings(MaskSettings):
    """What ZipLoRA reads."""

    axis: Literal["columns", "rows"] = Field("columns", description="what the masks act on")
    similarity: float = Field(0.01, ge=0, description="weight of the mask overlap")
    init: Literal["ones", "lstsq"] = Field("ones", description="what the masks start from")


def merge(content: Adapter, style: Adapter, context: MergeContext[Settings]) -> Adapter:
    """Masks on the columns or rows of both adapters, learned on both concepts' images.

    Raises:
        B4MError: without the base or the concepts' data.
    """
    settings = context.settings

    def start(state: MaskedMerge, bank: Bank) -> None:
        if settings.init == "lstsq":
            start_by_least_squares(state, bank)

    return learn_masks(
        "ziplora",
        content,
        style,
        context,
        axis=settings.axis,
        start=start,
        loss=lambda state, bank: ZipLoss(state, bank, settings.similarity),
    )


class ZipLoss:
    """The loss L over a bank whose two teachers' predictions are made once, here.

    Args:
        merge: the masks and the adapters.
        bank: entries.
        similarity: lambda.
    """

    def __init__(self, merge: MaskedMerge, bank: Bank, similarity: float) -> None:
        content, style = bank.content, bank.style
        self.merge = merge
        self.similarity = similarity
        self.of_content = merge.teacher_prediction(
            "content", content.noisy_KCHW, bank.t_K, content.prompts
        )
        self.of_style = merge.teacher_prediction("style", style.noisy_KCHW, bank.t_K, style.prompts)

    def __call__(self, for_content: Tensor, for_style: Tensor, rows: list[int]) -> Losses:
        content_B = (for_content - self.of_content[rows]).flatten(1).norm(dim=1)
        style_B = (for_style - self.of_style[rows]).flatten(1).norm(dim=1)
        overlap = self.merge.overlaps().sum()
        return {
            "loss": content_B + style_B + self.similarity * overlap,
            "content": content_B,
            "style": style_B,
            "overlap": overlap[None],
        }


MERGE = Merge.pair(Settings, merge)
