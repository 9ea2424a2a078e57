"""SSR-Merge, anchored (2606.10617, ICML 2026): a least-squares router between up and down.

With U = [U_c U_s], D = [D_c; D_s], J_k the diagonal that is 1 on the ranks of k, and K_k the mean
of z z^T, z = D x, over the inputs x that a layer sees while adapter k alone is active under its own
prompt:

    M  = (w_c J_c K_c + w_s J_s K_s + a J P) (K_c + K_s + a P)^-1,     J = w_c J_c + w_s J_s
    dW = U M D

M minimises sum_k ||U M D x - w_k U_k D_k x||^2 over the recorded inputs, plus a times the distance
to the direct merge on inputs whose second moments are P. a = 0 is the paper, a -> infinity is
`direct`. The result is one LoRA of rank r_c + r_s.

Why an anchor. Where both adapters see the same inputs, K_c = K_s, the paper's router is I / 2, the
average, which is weaker than the sum in both; a content and a style prompt share most of what they
see. And the paper's ridge lambda I depends on the factorisation of the adapters: (U G^-1, G D)
gives another merge. With P = D D^T, white inputs, both ends are met: the router is regular wherever
D has full rank, and the merge depends on both dW alone. `anchor` is in units of output energy,
a = anchor tr(U (K_c + K_s) U^T) / tr(U P U^T), which does not depend on the factorisation either.

The paper records one step of pure noise and no images; here the bank's noisy latents of both
concepts' training images are used, as for the learned merges.
"""

import torch
from pydantic import Field
from torch import Tensor

from b4m.adapters.adapter import Adapter
from b4m.adapters.lowrank import LowRank
from b4m.merging.context import MergeContext
from b4m.merging.layerwise import describe, paired, truncated
from b4m.merging.least_squares import Moments
from b4m.merging.mask_learning import opened
from b4m.merging.recording import recorded_moments
from b4m.methods import Merge
from b4m.settings import BankSettings


class Settings(BankSettings):
    """What SSR-Merge reads."""

    anchor: float = Field(
        0.5, ge=0, description="pull towards the direct merge, in units of output energy"
    )
    bank: int = Field(8, ge=1, description="(latent, t, noise) entries that inputs are taken from")


def merge(content: Adapter, style: Adapter, context: MergeContext[Settings]) -> Adapter:
    """Both adapters with their ranks routed by least squares; layers of one adapter are kept.

    Raises:
        B4MError: for adapters of two bases, or without the base or the concepts' data.
    """
    settings = context.settings
    weights = settings.content_weight, settings.style_weight
    with opened(content, style, context, axis="rank") as (state, bank):
        moments = recorded_moments(state, bank)
    layers = {
        name: routed(*both, moments[name], weights, settings.anchor).to(device="cpu")
        for name, both in paired(content.layers, style.layers).items()
    }
    text = content.scale(weights[0]) + style.scale(weights[1])
    merged = Adapter(layers, describe("ssr", content, style, settings), text.text_layers)
    return truncated(merged, dict.fromkeys([*layers, *text.text_layers], settings.rank))


def routed(
    content: LowRank,
    style: LowRank,
    moments: Moments,
    weights: tuple[float, float],
    anchor: float,
) -> LowRank:
    """U M D of one layer; a layer that only one adapter has is kept as it is."""
    if not (content.rank and style.rank):
        return content.scale(weights[0]) + style.scale(weights[1])
    router_RR = router(content, style, moments, weights, anchor)
    both = content + style
    return LowRank((both.up.double() @ router_RR.to(both.up.device)).to(both.up.dtype), both.down)


def router(
    content: LowRank,
    style: LowRank,
    moments: Moments,
    weights: tuple[float, float],
    anchor: float,
) -> Tensor:
    """The router M (R x R) in float64 on the CPU, R = r_c + r_s.

    Args:
        content: content's pair.
        style: style's pair.
        moments: of D x under each teacher.
        weights: w_c, w_s.
        anchor: in units of output energy.
    """
    both = (content + style).to(dtype=torch.float64, device="cpu")
    of_content, of_style = (k.double().cpu() for k in (moments.content_RR, moments.style_RR))
    of_white = both.down @ both.down.T
    gram_RR = both.up.T @ both.up
    energy = float((gram_RR * (of_content + of_style)).sum())
    white = float((gram_RR * of_white).sum())
    amount = anchor * energy / white if white > 0 else 0.0
    split = content.rank
    goal_R = torch.ones(both.rank, dtype=torch.float64)
    goal_R[:split] *= weights[0]
    goal_R[split:] *= weights[1]
    is_content_R = (torch.arange(both.rank) < split).double()
    right_RR = (
        (goal_R * is_content_R)[:, None] * of_content
        + (goal_R * (1 - is_content_R))[:, None] * of_style
        + amount * goal_R[:, None] * of_white
    )
    system_RR = of_content + of_style + amount * of_white
    return right_RR @ torch.linalg.pinv(system_RR, hermitian=True)


MERGE = Merge(Settings, merge)
