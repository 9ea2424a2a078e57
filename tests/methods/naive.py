"""The naive way of learned merges, written on its own: the oracle of the engine and of its speed.

Every adapted linear is replaced by one that multiplies dW out, O x I, at each forward, for the
merge as for the teachers; every prediction is made anew at every step, one entry and one concept at
a time. It shares nothing with `mask_learning` but the bank and the base. So ZipLoRA takes four
forwards per step (two with a gradient) and DuoLoRA eight.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from b4m.adapters.lowrank import LowRank
from b4m.bases.base import Conditioning
from b4m.bases.sdxl.model import SDXLBase
from b4m.merging.teacher_bank import Bank


class DenseMerge(nn.Module):
    """A linear plus a dense dW: merged by masks, or one adapter alone."""

    def __init__(self, linear: nn.Linear, content: LowRank, style: LowRank, axis: str) -> None:
        super().__init__()
        self.linear, self.axis, self.mode = linear, axis, "merged"
        weight = linear.weight
        self.factors = [f.to(weight) for f in (content.up, content.down, style.up, style.down)]
        if axis != "rank":
            self.content = self.factors[0] @ self.factors[1]
            self.style = self.factors[2] @ self.factors[3]
            self.factors = []
        size = {"rank": content.rank, "rows": content.out_features, "columns": content.in_features}
        self.m_content = nn.Parameter(torch.ones(size[axis], device=weight.device))
        self.m_style = nn.Parameter(torch.ones(size[axis], device=weight.device))

    def weight(self) -> Tensor:
        if self.axis == "rank":
            up_c, down_c, up_s, down_s = self.factors
            if self.mode == "content":
                return up_c @ down_c
            if self.mode == "style":
                return up_s @ down_s
            first = (up_c * self.m_content.to(up_c)) @ down_c
            return first + (up_s * self.m_style.to(up_s)) @ down_s
        if self.mode == "content":
            return self.content
        if self.mode == "style":
            return self.style
        shape = (-1, 1) if self.axis == "rows" else (1, -1)
        first = self.content * self.m_content.to(self.content).reshape(shape)
        return first + self.style * self.m_style.to(self.style).reshape(shape)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + nn.functional.linear(x, self.weight())


class NaiveMerge:
    """The UNet with its linears exchanged, four or eight forwards a step, plain Adam."""

    def __init__(
        self, base: SDXLBase, pairs: Mapping[str, tuple[LowRank, LowRank]], axis: str, bank: Bank
    ) -> None:
        self.base, self.bank = base, bank
        base.model.requires_grad_(False)
        self.layers: dict[str, DenseMerge] = {}
        for name, (content, style) in pairs.items():
            parent, _, leaf = name.rpartition(".")
            holder = base.model.get_submodule(parent)
            dense = DenseMerge(holder.get_submodule(leaf), content, style, axis)
            setattr(holder, leaf, dense)
            self.layers[name] = dense

    def restore(self) -> None:
        for name, dense in self.layers.items():
            parent, _, leaf = name.rpartition(".")
            setattr(self.base.model.get_submodule(parent), leaf, dense.linear)

    def masks(self) -> list[nn.Parameter]:
        return [m for one in self.layers.values() for m in (one.m_content, one.m_style)]

    def forward(self, mode: str, x_BCHW: Tensor, t_B: Tensor, text: Conditioning) -> Tensor:
        for one in self.layers.values():
            one.mode = mode
        dtype = self.base.dtype
        added = {
            "text_embeds": text.tensors["pooled"].to(dtype),
            "time_ids": self.base.time_ids(len(t_B)),
        }
        hidden = text.tensors["hidden"].to(dtype)
        output = self.base.model(
            x_BCHW.to(dtype), t_B, encoder_hidden_states=hidden, added_cond_kwargs=added
        )
        return output.sample.float()

    def zip_loss(self, row: int, similarity: float) -> Tensor:
        bank, rows = self.bank, [row]
        t_B = bank.t_K[rows]
        total = torch.zeros((), device=self.base.device)
        for kind, side in (("content", bank.content), ("style", bank.style)):
            x, text = side.noisy_KCHW[rows], side.prompts[rows]
            with torch.no_grad():
                teacher = self.forward(kind, x, t_B, text)
            # Last, because gradient checkpointing runs it again in the mode that is then set.
            merged = self.forward("merged", x, t_B, text)
            total = total + (merged - teacher).square().sum().sqrt()
        overlap = [(one.m_content * one.m_style).abs().mean() for one in self.layers.values()]
        return total + similarity * torch.stack(overlap).sum()

    def duo_loss(self, row: int, cycle: float, prior: float, leads: Mapping[str, str]) -> Tensor:
        bank, rows = self.bank, [row]
        t_B, noise = bank.t_K[rows], bank.noise_KCHW[rows]
        total = torch.zeros((), device=self.base.device)
        for own, other, side in (
            ("content", "style", bank.content),
            ("style", "content", bank.style),
        ):
            x, text, joint_prompt = (
                side.noisy_KCHW[rows],
                side.prompts[rows],
                side.joint_prompt[rows],
            )
            with torch.no_grad():
                single = self.forward(own, x, t_B, text)
                clean = self._clean(self.forward(other, x, t_B, joint_prompt), x, t_B)
                again = self._noisy(clean, noise, t_B)
                back = self._noise(self.forward(own, again, t_B, text), again, t_B)
            merged = self.forward("merged", x, t_B, text)
            total = total + (merged - single).square().sum().sqrt()
            total = total + cycle * (self._noise(merged, x, t_B) - back).square().sum().sqrt()
        terms = []
        for name, one in self.layers.items():
            lead, follow = one.m_content.abs().sum(), one.m_style.abs().sum()
            if leads[name] == "style":
                lead, follow = follow, lead
            hinge = follow - lead if follow >= lead else torch.zeros_like(lead)
            terms.append((lead + 2.0 * hinge) / one.m_content.numel())
        return total + prior * torch.stack(terms).mean()

    def train(self, losses: Iterator[Tensor], lr: float, clip: float) -> Iterator[float]:
        """Take one Adam step for every loss, and say its value before the step."""
        optimizer = torch.optim.Adam(self.masks(), lr=lr)
        for loss in losses:
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.masks(), clip)
            optimizer.step()
            yield float(loss.detach())

    def _abar(self, t_B: Tensor) -> Tensor:
        abar_T = self.base.scheduler.alphas_cumprod.to(self.base.device).float()
        return abar_T[t_B].reshape(-1, 1, 1, 1)

    def _clean(self, output: Tensor, x: Tensor, t_B: Tensor) -> Tensor:
        abar = self._abar(t_B)
        if self.base.prediction_type == "v_prediction":
            return abar.sqrt() * x - (1 - abar).sqrt() * output
        return (x - (1 - abar).sqrt() * output) / abar.sqrt()

    def _noisy(self, clean: Tensor, noise: Tensor, t_B: Tensor) -> Tensor:
        abar = self._abar(t_B)
        return abar.sqrt() * clean + (1 - abar).sqrt() * noise

    def _noise(self, output: Tensor, x: Tensor, t_B: Tensor) -> Tensor:
        abar = self._abar(t_B)
        if self.base.prediction_type == "v_prediction":
            return abar.sqrt() * output + (1 - abar).sqrt() * x
        return output


@contextmanager
def naive(
    base: SDXLBase, pairs: Mapping[str, tuple[LowRank, LowRank]], axis: str, bank: Bank
) -> Iterator[NaiveMerge]:
    """The naive merge for the block's time; afterwards the UNet is as before."""
    state = NaiveMerge(base, pairs, axis, bank)
    try:
        yield state
    finally:
        state.restore()
