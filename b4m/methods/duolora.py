"""DuoLoRA (arXiv 2504.13206, ICCV 2025): rank masks, layer priors and a cycle between adapters.

ZipRank.   dW = U_c diag(m_c) D_c + U_s diag(m_s) D_s, both pairs in their own singular basis, as
the paper's U_r M_r Sigma_r V_r^T says; the released code masks the factors as trained. It matters:
cutting ranks is at least as good as cutting rows only in that basis (Eckart-Young).

Layer prior.   In SDXL low-resolution layers draw content, the others style (`Family.role_of`); all
linears have a role, in the released code 320 of 560 have none. With a the mask of a layer's own
role, b the other one, r the larger rank and the mean over layers that both adapters have,

    start   a = 1; b = 1 on the leading half of its singular directions, 0 on the others
    prior   mean_layers ( ||a||_1 + lambda max(0, ||b||_* - ||a||_*) ) / r

The nuclear norm of diag(m) is the L1 norm of m (the released code takes the L2 norm, has no hinge,
and its sign at the all-ones start shrinks the wrong mask). The paper's lambda is not known to us;
it must exceed 1, or an active hinge could not raise a against its own L1 term, and is 2 here.

Constyle.   With one noise eps and one timestep for all, p_x = "content in style", D the denoiser
with the adapter of its index, and re-noising x~ = x - sqrt(1 - abar) (e - eps):

    cc  = D_c(x_c, p_c)     cs = D_s(x_c, p_x)     csc = D_c(x~_cs, p_c)
    ss  = D_s(x_s, p_s)     sc = D_c(x_s, p_x)     scs = D_s(x~_sc, p_s)
    L   = |e_c - cc| + |e_s - ss| + l_cycle (|e_c - csc| + |e_s - scs|) + l_prior prior

with e_c, e_s the merged predictions for x_c, x_s. The content adapter removes the style again, as
the paper reads; the released code exchanges the two. The paper's MSE(I_cc, I_csc) holds no mask if
both are single-adapter pictures, so as in the code the merged prediction stands for the first.
Cycle terms compare noise, whatever the base predicts. Distances are Euclidean norms, as in ZipLoRA,
on whose objective the method builds; the released code takes mean squares, which are so much
smaller that the prior's gradient exceeds all others (about a hundredfold, by an estimate for SDXL)
and the masks merely shrink. Paper weights: cycle 0.01, prior 0.1, Adam, lr 0.01, 100 steps; the
released script exchanges the weights and stops after one step per epoch, see `mask_learning`.
Layers of the text encoders are added up.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from b4m.adapters.adapter import Adapter
from b4m.bases.base import Base
from b4m.errors import B4MError
from b4m.merging.context import MergeContext
from b4m.merging.layerwise import Pairs
from b4m.merging.mask_learning import Losses, MaskedMerge, learn_masks
from b4m.merging.recording import start_by_least_squares
from b4m.merging.teacher_bank import Bank, BankHalf
from b4m.methods import Merge
from b4m.settings import MaskSettings

HINGE = 2.0
MINOR_SHARE = 0.5


class Settings(MaskSettings):
    """What DuoLoRA reads."""

    cycle: float = Field(0.01, ge=0, description="weight of the Constyle loss")
    prior: float = Field(0.1, ge=0, description="weight of the layer prior")
    init: Literal["prior", "ones", "lstsq"] = Field(
        "prior", description="what the masks start from"
    )


def merge(content: Adapter, style: Adapter, context: MergeContext[Settings]) -> Adapter:
    """Rank masks under layer priors, learned with the cycle on both concepts' images.

    Raises:
        B4MError: without the base or the concepts' data, or for a base without layer priors.
    """
    settings = context.settings
    check(context.base)

    def start(state: MaskedMerge, bank: Bank) -> None:
        if settings.init == "prior":
            start_by_prior(state)
        elif settings.init == "lstsq":
            start_by_least_squares(state, bank)

    return learn_masks(
        "duolora",
        content,
        style,
        context,
        axis="rank",
        start=start,
        loss=lambda state, bank: DuoLoss(state, bank, settings.cycle, settings.prior),
        rotate=singular_bases,
    )


def check(base: Base) -> None:
    """Refuse a base some of whose linears have no role.

    Raises:
        B4MError: naming its family.
    """
    family = base.family
    if not all(map(family.role_of, base.linears())):
        raise B4MError(f"DuoLoRA's layer prior is not known for {family.title}; use another method")


def singular_bases(pairs: Pairs) -> Pairs:
    """Every pair in its own singular basis; the same dW."""
    return {
        name: (first.svd_basis(), second.svd_basis()) for name, (first, second) in pairs.items()
    }


@torch.no_grad()
def start_by_prior(merge: MaskedMerge) -> None:
    """Give each layer's own role all of its ranks and the other one the leading half."""
    for name, masked in merge.masks.items():
        content_leads = merge.base.family.role_of(name) == "content"
        own = masked.m_content if content_leads else masked.m_style
        other = masked.m_style if content_leads else masked.m_content
        own.fill_(1.0)
        other.fill_(1.0)
        if own.numel():
            other[int(len(other) * MINOR_SHARE) :] = 0.0


def layer_prior(merge: MaskedMerge, hinge: float = HINGE) -> Tensor:
    """The prior, a scalar >= 0, of no shared layer 0; see the module's equation."""
    content_L, style_L = merge.l1_norms()
    device = content_L.device
    masks = [merge.masks[name] for name in merge.shared]
    rank_L = torch.tensor([max(len(m.m_content), len(m.m_style)) for m in masks], device=device)
    roles = [merge.base.family.role_of(name) == "content" for name in merge.shared]
    content_leads_L = torch.tensor(roles, dtype=torch.bool, device=device)
    own_L = torch.where(content_leads_L, content_L, style_L)
    other_L = torch.where(content_leads_L, style_L, content_L)
    terms_L = (own_L + hinge * (other_L - own_L).clamp(min=0.0)) / rank_L
    return terms_L.sum() / max(len(masks), 1)


def renoised(
    base: Base, output_BCHW: Tensor, x_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor
) -> Tensor:
    """The picture that an output implies, noised again: x - sqrt(1 - abar) (e - eps).

    It equals sqrt(abar) x0 + sqrt(1 - abar) eps with x0 = (x - sqrt(1 - abar) e) / sqrt(abar), but
    divides by nothing; for e = eps it is x. Under flow matching the roots are 1 - t and t.
    """
    noise = base.noising.to_noise(output_BCHW, x_BCHW, t_B)
    return x_BCHW - base.noising.noise_scale(t_B) * (noise - noise_BCHW)


class DuoLoss:
    """The loss L over a bank whose six single-adapter predictions are made once, here.

    Args:
        merge: the masks and the adapters.
        bank: entries.
        cycle: weight of the Constyle terms.
        prior: weight of the layer prior.
    """

    def __init__(self, merge: MaskedMerge, bank: Bank, cycle: float, prior: float) -> None:
        self.merge, self.bank = merge, bank
        self.cycle, self.prior = cycle, prior
        self.cc = merge.teacher_prediction(
            "content", bank.content.noisy_KCHW, bank.t_K, bank.content.prompts
        )
        self.ss = merge.teacher_prediction(
            "style", bank.style.noisy_KCHW, bank.t_K, bank.style.prompts
        )
        self.csc = self._cycled(bank.content, away="style", back="content")
        self.scs = self._cycled(bank.style, away="content", back="style")

    def _cycled(self, side: BankHalf, away: str, back: str) -> Tensor:
        """The noise predicted after the other adapter has drawn and the own one draws again."""
        base, bank = self.merge.base, self.bank
        gone = self.merge.teacher_prediction(away, side.noisy_KCHW, bank.t_K, side.joint_prompt)
        again = renoised(base, gone, side.noisy_KCHW, bank.noise_KCHW, bank.t_K)
        output = self.merge.teacher_prediction(back, again, bank.t_K, side.prompts)
        return base.noising.to_noise(output, again, bank.t_K)

    def __call__(self, for_content: Tensor, for_style: Tensor, rows: list[int]) -> Losses:
        bank, base, t_B = self.bank, self.merge.base, self.bank.t_K[rows]
        content_B = _distance(for_content, self.cc[rows])
        style_B = _distance(for_style, self.ss[rows])
        noise_c = base.noising.to_noise(for_content, bank.content.noisy_KCHW[rows], t_B)
        noise_s = base.noising.to_noise(for_style, bank.style.noisy_KCHW[rows], t_B)
        cycle_B = _distance(noise_c, self.csc[rows]) + _distance(noise_s, self.scs[rows])
        prior = layer_prior(self.merge)
        return {
            "loss": content_B + style_B + self.cycle * cycle_B + self.prior * prior,
            "content": content_B,
            "style": style_B,
            "cycle": cycle_B,
            "prior": prior[None],
        }


def _distance(first_BCHW: Tensor, second_BCHW: Tensor) -> Tensor:
    return (first_BCHW - second_BCHW).flatten(1).norm(dim=1)


MERGE = Merge.pair(Settings, merge, check)
