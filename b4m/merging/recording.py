"""A least-squares start of the masks, from what the layers see under each teacher.

The inputs are recorded in the teachers' forwards for the first few entries of the bank; see
`b4m.merging.least_squares` for the equations.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from b4m.adapters.attach import AdaptedModel
from b4m.adapters.deltas import FrozenDelta
from b4m.bases.base import Base
from b4m.merging import least_squares
from b4m.merging.layerwise import Parts, aligned
from b4m.merging.mask_learning import MaskedMerge, chunks
from b4m.merging.teacher_bank import Bank, OwnEntries

ENTRIES = 8
TOKENS = 256
DAMPING = 1e-3
_TEACHERS_AT_ONCE = 2
_LAYERS_AT_ONCE = 32


class _Record:
    """What one linear saw under each teacher: second moments of D x, or a sample of x."""

    def __init__(self, down_RI: Tensor, axis: str) -> None:
        self.down_RI = down_RI.float()
        self.axis = axis
        self.inputs: dict[str, list[Tensor]] = defaultdict(list)
        self.sums_RR: dict[str, Tensor] = {}
        self.tokens: Counter[str] = Counter()

    def see(self, teacher: str, x: Tensor) -> None:
        x_NI = x.detach().flatten(end_dim=-2)
        if self.axis == "columns":
            stride = max(1, len(x_NI) * ENTRIES // (_TEACHERS_AT_ONCE * TOKENS))
            offset = len(self.inputs[teacher]) % stride
            self.inputs[teacher].append(x_NI[offset::stride].clone())
            return
        low_NR = x_NI.float() @ self.down_RI.T
        self.sums_RR[teacher] = self.sums_RR.get(teacher, 0.0) + low_NR.T @ low_NR
        self.tokens[teacher] += len(x_NI)

    def sample(self) -> tuple[Tensor, Tensor]:
        return torch.cat(self.inputs["content"]), torch.cat(self.inputs["style"])

    def means_RR(self) -> dict[str, Tensor]:
        return {teacher: total / self.tokens[teacher] for teacher, total in self.sums_RR.items()}

    def moments(self) -> least_squares.Moments:
        means_RR = self.means_RR()
        return least_squares.Moments(means_RR["content"], means_RR["style"])


@torch.no_grad()
def moments_alone(
    base: Base, adapters: Parts, entries: Sequence[OwnEntries], t_K: Tensor
) -> dict[str, list[Tensor]]:
    """Second moments of D x of every layer while each adapter alone is active, R x R each.

    D (R x I) are the down factors of all adapters, one below the other; a layer that none of them
    has does not occur, and the moments of an adapter that lacks the layer count as the others'.

    Args:
        base: the base; its denoiser has hooks meanwhile.
        adapters: pairs of the denoiser's layers of each adapter.
        entries: what each adapter is shown.
        t_K: their timesteps.
    """
    layers = {
        name: [pair.to(dtype=base.dtype, device=base.device) for pair in every]
        for name, every in aligned(adapters).items()
    }
    records = {
        name: _Record(torch.cat([pair.down for pair in every]), "rank")
        for name, every in layers.items()
    }
    teachers = list(map(str, range(len(adapters))))
    adapted = AdaptedModel(base.model, {})
    try:
        for k, teacher in enumerate(teachers):
            own = {name: FrozenDelta(every[k]) for name, every in layers.items() if every[k].rank}
            adapted.add(teacher, own)
        with _recording(base.model, adapted, records):
            for teacher, half in zip(teachers, entries, strict=True):
                adapted.use(teacher)
                for rows in chunks(len(t_K), _TEACHERS_AT_ONCE):
                    base.predict(adapted, half.noisy_KCHW[rows], t_K[rows], half.prompts[rows])
    finally:
        adapted.remove()
    return {
        name: [record.means_RR()[teacher] for teacher in teachers]
        for name, record in records.items()
    }


def start_by_least_squares(merge: MaskedMerge, bank: Bank, damping: float = DAMPING) -> None:
    """Set all masks to the least-squares solution of their layer, see `b4m.merging.least_squares`.

    The inputs are those that the layers see in the teachers' forwards for the first few entries.
    """
    records = _teachers(merge, bank, min(len(bank), ENTRIES))
    solve = _solve_columns if merge.axis == "columns" else _solve_exactly
    with torch.no_grad():
        for name, (content, style) in solve(merge, records, damping).items():
            merge.masks[name].m_content.copy_(content)
            merge.masks[name].m_style.copy_(style)


def _teachers(merge: MaskedMerge, bank: Bank, entries: int) -> dict[str, _Record]:
    """What every layer sees in the teachers' forwards for the first entries."""
    records = {name: _Record(masked.down, merge.axis) for name, masked in merge.masks.items()}
    with _recording(merge.base.model, merge.adapted, records):
        for kind, half in (("content", bank.content), ("style", bank.style)):
            merge.teacher_prediction(
                kind, half.noisy_KCHW[:entries], bank.t_K[:entries], half.prompts
            )
    return records


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
        shapes = (masked.content.up.shape, masked.style.up.shape, *(x.shape for x in samples[name]))
        alike.setdefault(shapes, []).append(name)
    solved: dict[str, least_squares.Masks] = {}
    for names in alike.values():
        for first in range(0, len(names), _LAYERS_AT_ONCE):
            part = names[first : first + _LAYERS_AT_ONCE]
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
def _recording(
    model: nn.Module, adapted: AdaptedModel, records: Mapping[str, _Record]
) -> Iterator[None]:
    """Watch the inputs of linears while teachers run."""
    handles = [
        module.register_forward_pre_hook(_watch(adapted, records[name]))
        for name, module in model.named_modules()
        if name in records
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _watch(
    adapted: AdaptedModel, record: _Record
) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def see(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert adapted.active is not None
        record.see(adapted.active, inputs[0])

    return see
