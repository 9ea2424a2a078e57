"""The engine of learned merges: frozen factors, masks as the only parameters.

One denoiser carries three sets of deltas (merged, content, style). Single-adapter predictions, the
teachers, are made once per entry of a bank and kept; a step sends content and style through the
merged denoiser in one batch; the forward is factored, so no O x I matrix exists at any time. A
method gives the loss of those predictions; `ziplora` and `duolora` do.

Every run makes exactly `steps` updates. ZipLoRA's paper stops early once the similarity is zero,
and the public codes test that at the end of the first batch of an epoch, where a similarity weight
of 0 ends it; real-valued masks never make it exactly zero, so there is no early stop here.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from b4m.adapters.adapter import Adapter
from b4m.adapters.attach import AdaptedModel
from b4m.adapters.deltas import FrozenDelta
from b4m.bases.base import Base, Conditioning
from b4m.merging.context import MergeContext, require_same_base
from b4m.merging.layerwise import Layers, Pairs, describe, finished, paired
from b4m.merging.masks import MaskedSum, apply_mask
from b4m.merging.teacher_bank import Bank, build_bank, read_concept_images
from b4m.merging.weighting import weighted
from b4m.settings import BankSettings, MaskSettings
from b4m.training.key import key
from b4m.training.loop import Batch, fit
from b4m.training.run import checkpointed, loop_config, tensors_hash
from b4m.training.state import ParameterGroup

Losses = dict[str, Tensor]
Loss = Callable[[Tensor, Tensor, list[int]], Losses]

_TEACHERS_AT_ONCE = 2


class MaskedMerge:
    """Two adapters on one base, to be merged by masks.

    Args:
        base: the base; its denoiser gets hooks until `close`.
        pairs: content's and style's pair of every layer, see `layerwise.paired`.
        axis: what the masks act on: "rank", "rows" or "columns".

    Attributes:
        masks: the merged delta of every layer.
        adapted: the denoiser with the sets "merged", "content" and "style".
        shared: the layers that both adapters have.
    """

    def __init__(self, base: Base, pairs: Pairs, axis: str) -> None:
        self.base, self.pairs, self.axis = base, pairs, axis
        self.masks: dict[str, MaskedSum] = {}
        for name, both in pairs.items():
            content, style = (pair.to(dtype=base.dtype, device=base.device) for pair in both)
            self.masks[name] = MaskedSum(content, style, axis)
        self.adapted = AdaptedModel(base.model, self.masks)
        for kind in ("content", "style"):
            pairs_of_kind = {name: getattr(one, kind) for name, one in self.masks.items()}
            self.adapted.add(
                kind, {n: FrozenDelta(pair) for n, pair in pairs_of_kind.items() if pair.rank}
            )
        self.adapted.use("merged")
        self.shared = [name for name, both in pairs.items() if both[0].rank and both[1].rank]

    def l1_norms(self) -> tuple[Tensor, Tensor]:
        """L1 norms of content's and of style's masks, (L,) each, over the `shared` layers."""
        if not self.shared:
            return (nothing := torch.zeros(0, device=self.base.device)), nothing
        return (
            _sums([self.masks[name].m_content.abs() for name in self.shared]),
            _sums([self.masks[name].m_style.abs() for name in self.shared]),
        )

    def overlaps(self) -> Tensor:
        """Mean |m_c m_s| of every `shared` layer, (L,); masks on rows or columns."""
        if not self.shared:
            return torch.zeros(0, device=self.base.device)
        masks = [self.masks[name] for name in self.shared]
        content = torch.cat([one.m_content for one in masks])
        style = torch.cat([one.m_style for one in masks])
        sizes = [one.m_content.numel() for one in masks]
        sums_L = _sums((content * style).abs().split(sizes))
        return sums_L / torch.tensor(sizes, device=sums_L.device)

    def parameters(self) -> dict[str, nn.Parameter]:
        """The masks by name, content's before style's; every entry is a storage of its own."""
        return {
            f"{name}.{kind}": parameter
            for name, masked in self.masks.items()
            for kind, parameter in (("content", masked.m_content), ("style", masked.m_style))
        }

    @torch.no_grad()
    def teacher_prediction(
        self, kind: str, noisy_KCHW: Tensor, t_K: Tensor, prompts: Conditioning
    ) -> Tensor:
        """What the single adapter "content" or "style" predicts, (K, C, H, W) in float32."""
        with self.using(kind):
            return torch.cat(
                [
                    self.base.predict(self.adapted, noisy_KCHW[rows], t_K[rows], prompts[rows])
                    for rows in chunks(len(t_K), _TEACHERS_AT_ONCE)
                ]
            )

    def predictions(self, model: nn.Module, bank: Bank, rows: list[int]) -> tuple[Tensor, Tensor]:
        """The merged predictions for the content and the style half of entries, in one batch."""
        noisy = torch.cat([bank.content.noisy_KCHW[rows], bank.style.noisy_KCHW[rows]])
        prompts = Conditioning.cat(
            [bank.content.merged_prompts[rows], bank.style.merged_prompts[rows]]
        )
        output = self.base.predict(model, noisy, bank.t_K[rows].repeat(2), prompts)
        return output[: len(rows)], output[len(rows) :]

    @contextmanager
    def using(self, kind: str) -> Iterator[None]:
        """Put a single adapter to work for the block's time."""
        self.adapted.use(kind)
        try:
            yield
        finally:
            self.adapted.use("merged")

    def layers(self) -> Layers:
        """The merged pairs in the adapters' own precision, exact, on the CPU."""
        merged: Layers = {}
        for name, both in self.pairs.items():
            content, style = (pair.to(device="cpu") for pair in both)
            masked = self.masks[name]
            first = apply_mask(content, masked.m_content.detach().cpu(), self.axis)
            merged[name] = first + apply_mask(style, masked.m_style.detach().cpu(), self.axis)
        return merged

    def close(self) -> None:
        """Take the deltas off the base's denoiser."""
        self.adapted.remove()


def learn_masks(
    method: str,
    content: Adapter,
    style: Adapter,
    context: MergeContext[MaskSettings],
    *,
    axis: str,
    start: "Callable[[MaskedMerge, Bank], None]",
    loss: "Callable[[MaskedMerge, Bank], Loss]",
    rotate: Callable[[Pairs], Pairs] = lambda pairs: pairs,
) -> Adapter:
    """Merge two adapters by masks that are learned on both concepts' images.

    Masks act on the denoiser; layers of the text encoders are added up. The teachers are the
    adapters times their weights.

    Args:
        method: name that the file carries.
        content: content adapter.
        style: style adapter.
        context: base, data and settings; its `steps` may be 0, which keeps the start.
        axis: what the masks act on: "rank", "rows" or "columns".
        start: sets the masks before the first step.
        loss: of the merged predictions; made once, after the start.
        rotate: another form of the same pairs, e.g. their singular basis.

    Raises:
        B4MError: for adapters of two bases, or without the base or the concepts' data.
    """
    settings = context.settings
    content, style = weighted([content, style], settings.weights)
    with opened(content, style, context, axis=axis, rotate=rotate) as (merge, bank):
        start(merge, bank)
        if settings.steps:
            learn(merge, bank, loss(merge, bank), context, method)
        merged = Adapter(
            merge.layers(),
            describe(method, [content, style], settings),
            (content + style).text_layers,
        )
    return finished(merged, [content, style], settings)


@contextmanager
def opened(
    content: Adapter,
    style: Adapter,
    context: "MergeContext[BankSettings]",
    *,
    axis: str,
    rotate: Callable[[Pairs], Pairs] = lambda pairs: pairs,
) -> "Iterator[tuple[MaskedMerge, Bank]]":
    """Both adapters on the base under masks of one, and a bank of both concepts' images.

    Raises:
        B4MError: for adapters of two bases, or without the base or the concepts' data.
    """
    settings, base = context.settings, context.base
    require_same_base([content, style], base)
    images = read_concept_images(base, context.folder, content, style, context.workdir)
    bank = build_bank(base, *images, settings.bank, settings.seed)
    merge = MaskedMerge(base, rotate(paired(content.layers, style.layers)), axis)
    try:
        yield merge, bank
    finally:
        merge.close()


def learn(
    merge: MaskedMerge, bank: Bank, loss: Loss, context: MergeContext[MaskSettings], name: str
) -> None:
    """Move the masks by Adam for exactly `steps` updates.

    Args:
        merge: the masks and the denoiser they act in.
        bank: entries; every one is used once before any is used again.
        loss: of the merged predictions for content and style, (n, C, H, W) each, and the entries'
            indices; "loss" is minimised, other numbers are reported.
        context: settings, and where a checkpoint lies while the run is unfinished.
        name: of the method, for progress and metrics.
    """
    settings = context.settings
    parameters = merge.parameters()
    group = ParameterGroup(parameters, torch.optim.Adam(parameters.values(), lr=settings.lr))

    def step(model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        return loss(*merge.predictions(model, bank, batch.rows), batch.rows)

    with checkpointed(merge.base, settings.gradient_checkpointing):
        fit(
            step,
            merge.adapted,
            [group],
            len(bank),
            loop_config(settings),
            workdir=context.workdir,
            fingerprint=_key(merge, bank, settings, name),
            tracker=context.tracker,
            name=name,
        )


def _sums(parts: Sequence[Tensor]) -> Tensor:
    """The sum of each vector, (L,), in a few large operations instead of L small ones."""
    flat = torch.cat(list(parts))
    sizes = torch.tensor([part.numel() for part in parts])
    owner = torch.arange(len(parts)).repeat_interleave(sizes).to(flat.device)
    return flat.new_zeros(len(parts)).index_add(0, owner, flat)


def chunks(total: int, size: int) -> Iterator[slice]:
    """Slices of at most this size that cover a range."""
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


def _key(merge: MaskedMerge, bank: Bank, settings: MaskSettings, name: str) -> str:
    """Hash of all that decides the masks: method, settings, base, factors, bank and start."""
    halves = (bank.content, bank.style)
    tensors = [bank.t_K, bank.noise_KCHW, *(half.noisy_KCHW for half in halves)]
    for half in halves:
        for prompts in (half.prompts, half.merged_prompts, half.joint_prompt):
            tensors += [*prompts.tensors.values()]
    tensors += [factor for both in merge.pairs.values() for p in both for factor in (p.up, p.down)]
    start = tensors_hash([*tensors, *merge.parameters().values()])
    return key(name, settings, merge.axis, merge.base.hash, str(merge.base.dtype), start)
