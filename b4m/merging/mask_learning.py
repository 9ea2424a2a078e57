"""The engine of learned merges: frozen factors, masks as the only parameters.

One UNet carries three sets of deltas (merged, content, style). Single-adapter predictions, the
teachers, are made once per entry of a bank and kept; a step sends content and style through the
merged UNet in one batch; the forward is factored, so no O x I matrix exists at any time. A method
gives the loss of those predictions; `ziplora` and `duolora` do.

Every run makes exactly `steps` updates. ZipLoRA's paper stops early once the similarity is zero,
and the public codes test that at the end of the first batch of an epoch, where a similarity weight
of 0 ends it; real-valued masks never make it exactly zero, so there is no early stop here.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from b4m.adapters.adapter import Adapter
from b4m.adapters.attach import AdaptedModel
from b4m.adapters.deltas import FrozenDelta
from b4m.adapters.lowrank import LowRank
from b4m.bases.sdxl import Base, Conditioning, predict
from b4m.config import MergeSettings
from b4m.merging import least_squares
from b4m.merging.layerwise import Layers, Pairs, describe, paired, truncated
from b4m.merging.masks import Masked, apply_mask
from b4m.merging.teacher_bank import Bank
from b4m.train.loop import Batch, LoopConfig, ParameterGroup, Tracker, fit
from b4m.train.run import checkpointed, fingerprint, tensors_hash

Losses = dict[str, Tensor]
Loss = Callable[[Tensor, Tensor, list[int]], Losses]

LSTSQ_ENTRIES = 8
LSTSQ_TOKENS = 256
LSTSQ_DAMPING = 1e-3
_TEACHERS_AT_ONCE = 2
_LAYERS_AT_ONCE = 32


class Merged(Masked):
    """`Masked` with both adapters in one pass: masks meet the small factors, not the activations.

    Both adapters' factors lie side by side, so that two matrix products do the work. Column masks
    multiply D (r x I) instead of x (tokens x I), row masks multiply U instead of y. `content` and
    `style` are views of the joint factors.
    """

    up: Tensor
    down: Tensor

    def __init__(self, content: LowRank, style: LowRank, axis: str = "rank") -> None:
        joint, split = content + style, content.rank
        first = LowRank(joint.up[:, :split], joint.down[:split])
        super().__init__(first, LowRank(joint.up[:, split:], joint.down[split:]), axis)
        self.register_buffer("up", joint.up)
        self.register_buffer("down", joint.down)

    def forward(self, x: Tensor) -> Tensor:
        dtype = x.dtype
        up_OR, down_RI = self.up.to(dtype), self.down.to(dtype)
        m_content, m_style = (m.to(dtype) for m in (self.m_content, self.m_style))
        if self.axis == "rank":
            return linear(linear(x, down_RI) * torch.cat([m_content, m_style]), up_OR)
        split = self.down_content.shape[0]
        if self.axis == "columns":
            masked = [down_RI[:split] * m_content, down_RI[split:] * m_style]
            return linear(linear(x, torch.cat(masked)), up_OR)
        masked = [up_OR[:, :split] * m_content[:, None], up_OR[:, split:] * m_style[:, None]]
        return linear(linear(x, down_RI), torch.cat(masked, dim=1))


class MaskedMerge:
    """Two adapters on one UNet, to be merged by masks.

    Args:
        base: the base; its UNet gets hooks until `close`.
        pairs: content's and style's pair of every layer, see `combine.paired`.
        axis: what the masks act on: "rank", "rows" or "columns".

    Attributes:
        masks: the merged delta of every layer.
        adapted: the UNet with the sets "merged", "content" and "style".
        shared: the layers that both adapters have.
    """

    def __init__(self, base: Base, pairs: Pairs, axis: str) -> None:
        self.base, self.pairs, self.axis = base, pairs, axis
        self.masks: dict[str, Merged] = {}
        for name, both in pairs.items():
            content, style = (pair.to(dtype=base.dtype, device=base.device) for pair in both)
            self.masks[name] = Merged(content, style, axis)
        self.adapted = AdaptedModel(base.unet, self.masks)
        for kind in ("content", "style"):
            pairs_of_kind = {name: getattr(one, kind) for name, one in self.masks.items()}
            self.adapted.add(
                kind, {n: FrozenDelta(pair) for n, pair in pairs_of_kind.items() if pair.rank}
            )
        self.adapted.use("merged")
        self.shared = [name for name, both in pairs.items() if both[0].rank and both[1].rank]

    def l1_norms(self) -> tuple[Tensor, Tensor]:
        """L1 norms of content's and of style's masks, (L,) each, over the `shared` layers."""
        return (
            _sums([self.masks[name].m_content.abs() for name in self.shared]),
            _sums([self.masks[name].m_style.abs() for name in self.shared]),
        )

    def overlaps(self) -> Tensor:
        """Mean |m_c m_s| of every `shared` layer, (L,); masks on rows or columns."""
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
                    predict(self.adapted, self.base, noisy_KCHW[rows], t_K[rows], prompts[rows])
                    for rows in _chunks(len(t_K), _TEACHERS_AT_ONCE)
                ]
            )

    def predictions(self, model: nn.Module, bank: Bank, rows: list[int]) -> tuple[Tensor, Tensor]:
        """The merged predictions for the content and the style half of entries, in one batch."""
        noisy = torch.cat([bank.content.noisy_KCHW[rows], bank.style.noisy_KCHW[rows]])
        prompts = Conditioning.cat([bank.content.prompts[rows], bank.style.prompts[rows]])
        output = predict(model, self.base, noisy, bank.t_K[rows].repeat(2), prompts)
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
        """Take the deltas off the base's UNet."""
        self.adapted.remove()


def learn(
    merge: MaskedMerge,
    bank: Bank,
    loss: Loss,
    settings: MergeSettings,
    *,
    workdir: Path,
    tracker: Tracker | None = None,
    name: str,
) -> None:
    """Move the masks by Adam for exactly `settings.steps` updates; 0 leaves them as they are.

    Args:
        merge: the masks and the UNet they act in.
        bank: entries; every one is used once before any is used again.
        loss: of the merged predictions for content and style, (n, C, H, W) each, and the entries'
            indices; "loss" is minimised, other numbers are reported.
        settings: steps, lr, clip, checkpoint_every, seed.
        workdir: where a checkpoint lies while the run is unfinished.
        tracker: gets the losses.
        name: of the method, for progress and metrics.
    """
    if settings.steps == 0:
        return
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
            LoopConfig(
                steps=settings.steps,
                clip=settings.clip,
                checkpoint_every=settings.checkpoint_every,
                seed=settings.seed,
            ),
            workdir=workdir,
            fingerprint=_fingerprint(merge, bank, settings, name),
            tracker=tracker,
            name=name,
        )


def weighted(content: Adapter, style: Adapter, settings: MergeSettings) -> tuple[Adapter, Adapter]:
    """Both adapters times `content_weight` and `style_weight`; the teachers are those products."""
    scaled = []
    for adapter, weight in ((content, settings.content_weight), (style, settings.style_weight)):
        layers = {name: pair.scale(weight) for name, pair in adapter.layers.items()}
        text_layers = {name: pair.scale(weight) for name, pair in adapter.text_layers.items()}
        scaled.append(Adapter(layers, adapter.metadata, text_layers))
    return scaled[0], scaled[1]


def finish(
    method: str,
    content: Adapter,
    style: Adapter,
    settings: MergeSettings,
    merge: MaskedMerge,
    notes: Mapping[str, Any] | None = None,
) -> Adapter:
    """The masked sum as one adapter, cut to `settings.rank` if that is not 0.

    Masks act on the UNet; layers of the text encoders are added up.
    """
    text_pairs = paired(content.text_layers, style.text_layers)
    text_layers = {name: first + second for name, (first, second) in text_pairs.items()}
    metadata = describe(method, content, style, settings, notes)
    merged = Adapter(merge.layers(), metadata, text_layers)
    ranks = dict.fromkeys([*merged.layers, *text_layers], settings.rank)
    return truncated(merged, ranks)


class _Record:
    """What one linear saw under each teacher: second moments of D x, or a sample of x."""

    def __init__(self, masked: Masked, axis: str) -> None:
        self.down_RI = torch.cat([masked.down_content, masked.down_style]).float()
        self.axis = axis
        self.inputs: dict[str, list[Tensor]] = {"content": [], "style": []}
        self.sums_RR: dict[str, Tensor] = {}
        self.tokens: dict[str, int] = {"content": 0, "style": 0}

    def see(self, kind: str, x: Tensor) -> None:
        x_NI = x.detach().flatten(end_dim=-2)
        if self.axis == "columns":
            stride = max(1, len(x_NI) * LSTSQ_ENTRIES // (_TEACHERS_AT_ONCE * LSTSQ_TOKENS))
            offset = len(self.inputs[kind]) % stride
            self.inputs[kind].append(x_NI[offset::stride].clone())
            return
        low_NR = x_NI.float() @ self.down_RI.T
        self.sums_RR[kind] = self.sums_RR.get(kind, 0.0) + low_NR.T @ low_NR
        self.tokens[kind] += len(x_NI)

    def sample(self) -> tuple[Tensor, Tensor]:
        return torch.cat(self.inputs["content"]), torch.cat(self.inputs["style"])

    def moments(self) -> least_squares.Moments:
        means = {kind: total / self.tokens[kind] for kind, total in self.sums_RR.items()}
        return least_squares.Moments(means["content"], means["style"])


def start_by_least_squares(merge: MaskedMerge, bank: Bank, damping: float = LSTSQ_DAMPING) -> None:
    """Set all masks to the least-squares solution of their layer, see `b4m.merging.least_squares`.

    The inputs are those that the layers see in the teachers' forwards for the first few entries.
    """
    entries = min(len(bank), LSTSQ_ENTRIES)
    with _recording(merge) as records:
        for kind, side in (("content", bank.content), ("style", bank.style)):
            merge.teacher_prediction(
                kind, side.noisy_KCHW[:entries], bank.t_K[:entries], side.prompts
            )
    solve = _solve_columns if merge.axis == "columns" else _solve_exactly
    with torch.no_grad():
        for name, (content, style) in solve(merge, records, damping).items():
            merge.masks[name].m_content.copy_(content)
            merge.masks[name].m_style.copy_(style)


def _solve_exactly(
    merge: MaskedMerge, records: Mapping[str, _Record], damping: float
) -> dict[str, least_squares.Masks]:
    rule = least_squares.solve_ranks if merge.axis == "rank" else least_squares.solve_rows
    return {
        name: rule(masked.content, masked.style, records[name].moments(), damping)
        for name, masked in merge.masks.items()
    }


def _solve_columns(
    merge: MaskedMerge, records: Mapping[str, _Record], damping: float
) -> dict[str, least_squares.Masks]:
    """Layers of equal shapes together: a few large operations instead of many small ones."""
    samples = {name: record.sample() for name, record in records.items()}
    alike: dict[tuple[object, ...], list[str]] = {}
    for name, masked in merge.masks.items():
        shapes = (masked.up_content.shape, masked.up_style.shape, *(x.shape for x in samples[name]))
        alike.setdefault(shapes, []).append(name)
    solved: dict[str, least_squares.Masks] = {}
    for names in alike.values():
        for rows in _chunks(len(names), _LAYERS_AT_ONCE):
            part = names[rows]
            masks = least_squares.solve_columns(
                [merge.masks[name].content for name in part],
                [merge.masks[name].style for name in part],
                torch.stack([samples[name][0] for name in part]),
                torch.stack([samples[name][1] for name in part]),
                damping,
            )
            solved |= dict(zip(part, masks, strict=True))
    return solved


@contextmanager
def _recording(merge: MaskedMerge) -> Iterator[dict[str, _Record]]:
    """Watch the inputs of all adapted linears while teachers run."""
    records = {name: _Record(masked, merge.axis) for name, masked in merge.masks.items()}
    handles = []
    for name, module in merge.base.unet.named_modules():
        if name in records:
            handles.append(module.register_forward_pre_hook(_watch(merge, records[name])))
    try:
        yield records
    finally:
        for handle in handles:
            handle.remove()


def _watch(merge: MaskedMerge, record: _Record) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def see(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert merge.adapted.active is not None
        record.see(merge.adapted.active, inputs[0])

    return see


def _sums(parts: Sequence[Tensor]) -> Tensor:
    """The sum of each vector, (L,), in a few large operations instead of L small ones."""
    flat = torch.cat(list(parts))
    sizes = torch.tensor([part.numel() for part in parts])
    owner = torch.arange(len(parts)).repeat_interleave(sizes).to(flat.device)
    return flat.new_zeros(len(parts)).index_add(0, owner, flat)


def _chunks(total: int, size: int) -> Iterator[slice]:
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


def _fingerprint(merge: MaskedMerge, bank: Bank, settings: MergeSettings, name: str) -> str:
    """Hash of all that decides the masks: method, settings, base, factors, bank and start."""
    sides = (bank.content, bank.style)
    tensors = [bank.t_K, bank.noise_KCHW, *(side.noisy_KCHW for side in sides)]
    tensors += [
        text for side in sides for text in (side.prompts.hidden_BTD, side.joint_prompt.hidden_BTD)
    ]
    tensors += [factor for both in merge.pairs.values() for p in both for factor in (p.up, p.down)]
    start = tensors_hash([*tensors, *merge.parameters().values()])
    return fingerprint(name, settings, merge.axis, merge.base.hash, str(merge.base.dtype), start)
