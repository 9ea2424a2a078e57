"""ZipLoRA (arXiv 2311.13600, ECCV 2024): masks that keep each adapter's behaviour apart.

    dW = C diag(m_c) + S diag(m_s)                  axis "columns": one number per input, the paper
    dW = diag(m_c) C + diag(m_s) S                  axis "rows": one number per output, "1.33M"

    L  = ||e_m(x_c, p_c) - e_c(x_c, p_c)||_2 + ||e_m(x_s, p_s) - e_s(x_s, p_s)||_2
         + lambda sum_layers mean |m_c m_s|

e_m, e_c, e_s are what the UNet outputs with the merged, the content and the style adapter. Masks
start at one (the direct merge) and take 100 Adam steps.

Deviations. The paper writes the overlap as |m_c . m_s|; as in the public implementation it is the
mean over the entries of a layer, summed over layers, because the plain inner product of 1280
entries outweighs both norms by orders of magnitude and only shrinks all masks together. That
implementation (ziplora-pytorch) takes mean squares for the norms; the overlap's gradient then
exceeds theirs, about a thousandfold by an estimate for SDXL. Its lr of 5e-5 moves a mask by at most
0.005 in 100 steps; the paper's text states none, and 0.01 is what LoRA.rar and DuoLoRA use. About
stopping see `mask_learning`. Layers of the text encoders, which no mask acts on, are added up.
"""

from torch import Tensor

from b4m.adapters.adapter import Adapter
from b4m.errors import B4MError
from b4m.merging.context import MergeContext, require_same_base
from b4m.merging.layerwise import paired
from b4m.merging.mask_learning import (
    Losses,
    MaskedMerge,
    finish,
    learn,
    start_by_least_squares,
    weighted,
)
from b4m.merging.teacher_bank import Bank, build_bank, read_concept_images


def merge(content: Adapter, style: Adapter, context: MergeContext) -> Adapter:
    """Masks on the columns or rows of both adapters, learned on both concepts' pictures.

    Raises:
        B4MError: for `init="prior"`, or without the concepts' data.
    """
    settings = context.settings
    if settings.init == "prior":
        raise B4MError("init=prior is DuoLoRA's; ziplora starts from ones or lstsq")
    base = context.load()
    require_same_base(content, style, base)
    content, style = weighted(content, style, settings)
    images = read_concept_images(base, context.data_dir, content, style, context.workdir)
    bank = build_bank(base, *images, settings.bank, settings.seed)
    state = MaskedMerge(base, paired(content.layers, style.layers), settings.axis)
    try:
        if settings.init == "lstsq":
            start_by_least_squares(state, bank)
        if settings.steps:
            loss = ZipLoss(state, bank, settings.similarity)
            learn(
                state,
                bank,
                loss,
                settings,
                workdir=context.workdir,
                tracker=context.tracker,
                name="ziplora",
            )
        return finish("ziplora", content, style, settings, state)
    finally:
        state.close()


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
