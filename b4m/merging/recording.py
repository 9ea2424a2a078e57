"""A least-squares start of the masks, from what the layers see under each teacher.

The inputs are recorded in the teachers' forwards for the first few entries of the bank; see
`b4m.merging.least_squares` for the equations.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from b4m.merging import least_squares
from b4m.merging.mask_learning import MaskedMerge
from b4m.merging.masks import MaskedSum
from b4m.merging.teacher_bank import Bank

ENTRIES = 8
TOKENS = 256
DAMPING = 1e-3
_TEACHERS_AT_ONCE = 2
_LAYERS_AT_ONCE = 32


class _Record:
    """What one linear saw under each teacher: second moments of D x, or a sample of x."""

    def __init__(self, masked: MaskedSum, axis: str) -> None:
        self.down_RI = masked.down.float()
        self.axis = axis
        self.inputs: dict[str, list[Tensor]] = {"content": [], "style": []}
        self.sums_RR: dict[str, Tensor] = {}
        self.tokens: dict[str, int] = {"content": 0, "style": 0}

    def see(self, kind: str, x: Tensor) -> None:
        x_NI = x.detach().flatten(end_dim=-2)
        if self.axis == "columns":
            stride = max(1, len(x_NI) * ENTRIES // (_TEACHERS_AT_ONCE * TOKENS))
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


def recorded_moments(merge: MaskedMerge, bank: Bank) -> dict[str, least_squares.Moments]:
    """Second moments of D x of every layer under each teacher; masks on ranks or rows."""
    return {name: record.moments() for name, record in _teachers(merge, bank, len(bank)).items()}


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
    with _recording(merge) as records:
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
def _recording(merge: MaskedMerge) -> Iterator[dict[str, _Record]]:
    """Watch the inputs of all adapted linears while teachers run."""
    records = {name: _Record(masked, merge.axis) for name, masked in merge.masks.items()}
    handles = []
    for name, module in merge.base.model.named_modules():
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
