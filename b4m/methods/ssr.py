"""SSR-Merge, anchored (2606.10617, ICML 2026): a least-squares router between up and down.

With U = [U_1 U_2 ...], D = [D_1; D_2; ...], J_k the diagonal that is 1 on the ranks of k, and K_k
the mean of z z^T, z = D x, over the inputs x that a layer sees while adapter k alone is active
under its own prompt:

    M  = (sum_k w_k J_k K_k + a J P) (sum_k K_k + a P)^-1,     J = sum_k w_k J_k
    dW = U M D

M minimises sum_k ||U M D x - w_k U_k D_k x||^2 over the recorded inputs, plus a times the distance
to the direct merge on inputs whose second moments are P. a = 0 is the paper, a -> infinity is
`direct`. The result is one LoRA of rank sum_k r_k.

Why an anchor. Where n adapters see the same inputs, K_1 = K_2 = ..., the paper's router is I / n,
the average, which is weaker than the sum in all; a content and a style prompt share most of what
they see. And the paper's ridge lambda I depends on the factorisation of the adapters: (U G^-1, G D)
gives another merge. With P = D D^T, white inputs, both ends are met: the router is regular wherever
D has full rank, and the merge depends on the dW alone. `anchor` is in units of output energy,
a = anchor tr(U (sum_k K_k) U^T) / tr(U P U^T), which does not depend on the factorisation either.

The paper records one step of pure noise and no images; here the bank's noisy latents of all
concepts' training images are used, as for the learned merges. An adapter that is zero in a layer
takes no part in it: its inputs would only ask for silence.
"""

from collections.abc import Sequence
from functools import reduce
from operator import add

import torch
from pydantic import Field
from torch import Tensor

from b4m.adapters.adapter import Adapter
from b4m.adapters.lowrank import LowRank
from b4m.merging.context import MergeContext, require_same_base
from b4m.merging.layerwise import aligned, describe, finished, weighted_sum
from b4m.merging.recording import moments_alone
from b4m.merging.teacher_bank import own_entries
from b4m.merging.weighting import factors_of, times
from b4m.methods import Merge
from b4m.settings import BankSettings


class Settings(BankSettings):
    """What SSR-Merge reads."""

    anchor: float = Field(
        0.5, ge=0, description="pull towards the direct merge, in units of output energy"
    )
    bank: int = Field(8, ge=1, description="(latent, t, noise) entries that inputs are taken from")


def merge(adapters: Sequence[Adapter], context: MergeContext[Settings]) -> Adapter:
    """The adapters with their ranks routed by least squares; layers of one adapter are kept.

    Raises:
        B4MError: for adapters of two bases, or without the base or the concepts' data.
    """
    settings, base = context.settings, context.base
    require_same_base(adapters, base)
    factors = factors_of(settings.weights, adapters)
    entries, t_K = own_entries(
        base, context.folder, adapters, settings.bank, settings.seed, context.workdir
    )
    moments = moments_alone(base, [adapter.layers for adapter in adapters], entries, t_K)
    layers = {
        name: routed(pairs, moments[name], [own[name] for own in factors], settings.anchor).to(
            device="cpu"
        )
        for name, pairs in aligned([adapter.layers for adapter in adapters]).items()
    }
    sources = [times(one, own) for one, own in zip(adapters, factors, strict=True)]
    text = reduce(add, sources).text_layers
    return finished(Adapter(layers, describe("ssr", adapters, settings), text), sources, settings)


def routed(
    pairs: Sequence[LowRank], moments: Sequence[Tensor], weights: Sequence[float], anchor: float
) -> LowRank:
    """U M D of one layer; what only one adapter has is kept as it is. See `router`."""
    acting = [k for k, pair in enumerate(pairs) if pair.norm() > 0]
    if len(acting) < 2:
        return weighted_sum(pairs, weights)
    own = [torch.full((pair.rank,), k in acting) for k, pair in enumerate(pairs)]
    kept_R = torch.cat(own).to(moments[0].device)
    router_RR = router(
        [pairs[k] for k in acting],
        [moments[k][kept_R][:, kept_R] for k in acting],
        [weights[k] for k in acting],
        anchor,
    )
    every = reduce(add, [pairs[k] for k in acting])
    up_OR = every.up.double() @ router_RR.to(every.up.device)
    return LowRank(up_OR.to(every.up.dtype), every.down)


def router(
    pairs: Sequence[LowRank], moments: Sequence[Tensor], weights: Sequence[float], anchor: float
) -> Tensor:
    """The router M (R x R) in float64 on the CPU, R = sum_k r_k.

    Args:
        pairs: the adapters' pairs of the layer.
        moments: K_k of D x while adapter k alone is active, R x R each.
        weights: w_k.
        anchor: in units of output energy.
    """
    every = reduce(add, pairs).to(dtype=torch.float64, device="cpu")
    alone = [moments_RR.double().cpu() for moments_RR in moments]
    seen_RR = torch.stack(alone).sum(dim=0)
    white_RR = every.down @ every.down.T
    gram_RR = every.up.T @ every.up
    energy, white = float((gram_RR * seen_RR).sum()), float((gram_RR * white_RR).sum())
    amount = anchor * energy / white if white > 0 else 0.0
    owner_R = torch.arange(len(pairs)).repeat_interleave(torch.tensor([p.rank for p in pairs]))
    goal_R = torch.tensor(weights, dtype=torch.float64)[owner_R]
    right_RR = amount * goal_R[:, None] * white_RR
    for k, moments_RR in enumerate(alone):
        right_RR += (goal_R * (owner_R == k))[:, None] * moments_RR
    return right_RR @ torch.linalg.pinv(seen_RR + amount * white_RR, hermitian=True)


MERGE = Merge(Settings, merge)
