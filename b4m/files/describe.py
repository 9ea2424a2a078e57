"""Say what an adapter file is."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from b4m.errors import B4MError
from b4m.files.read import AdapterFile, Contents, locate

_LONG = 300  # characters of a header's value that are shown
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def describe(path: str | Path) -> dict[str, Any]:
    """What a file is, for `b4m inspect`: size, style, ranks, where its energy sits, metadata.

    A file that holds something else than low-rank pairs is described too, with the reason under
    "problem"; a damaged one raises.
    """
    file = locate(Path(path))
    contents = Contents(file)
    formats = {dtype for _, dtype in contents.tensors.values()}
    own = {k: v for k, v in contents.header.items() if k.startswith("b4m.")}
    facts: dict[str, Any] = {
        "file": str(file),
        "bytes": file.stat().st_size,
        "tensors": len(contents.tensors),
        "dtypes": sorted(_DTYPES.get(name, name.lower()) for name in formats),
        "metadata": {k: _short(v) for k, v in sorted((own or contents.header).items())},
    }
    try:
        parsed = AdapterFile(contents)
    except B4MError as problem:
        return facts | {"problem": str(problem)}
    family = parsed.family
    energy: dict[str, float] = defaultdict(float)
    ranks: Counter[int] = Counter()
    groups: Counter[str] = Counter()
    norms: dict[str, float] = defaultdict(float)
    total = 0.0
    try:
        for (network, module), pair in parsed.pairs():
            ranks[pair.rank] += 1
            if network != family.denoiser:
                continue
            square = pair.norm() ** 2
            total += square
            group = family.group_of(module)
            groups[group] += 1
            norms[group] += square
            energy[family.role_of(module)] += square
    except B4MError as problem:
        return facts | {"problem": str(problem)}
    return facts | {
        "base": " or ".join(found.title for found in parsed.families),
        "key_style": parsed.style,
        "kinds": dict(Counter(layer.kind for layer in parsed.layers.values())),
        "layers": sum(groups.values()),
        "text_layers": len(parsed.layers) - sum(groups.values()),
        "ranks": dict(sorted(ranks.items())),
        "groups": dict(sorted(groups.items())),
        "norm": total**0.5,
        "norm_by_group": {group: norms[group] ** 0.5 for group in sorted(groups)},
        "norm_by_role": {role: value**0.5 for role, value in sorted(energy.items()) if role},
    }


def _short(text: str) -> str:
    """A value of the header, of which a long one is cut."""
    return text if len(text) <= _LONG else f"{text[:_LONG]}... ({len(text)} characters)"
