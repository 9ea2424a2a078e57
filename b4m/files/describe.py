"""Say what an adapter file is."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from b4m.errors import B4MError
from b4m.files.read import load_tensors, locate, parse_file


def describe(path: str | Path) -> dict[str, Any]:
    """What a file is, for `b4m inspect`: size, style, ranks, where its energy sits, metadata.

    A file that holds something else than low-rank pairs is described too, with the reason under
    "problem"; a damaged one raises.
    """
    file = locate(Path(path))
    tensors, header = load_tensors(file)
    facts: dict[str, Any] = {
        "file": str(file),
        "bytes": file.stat().st_size,
        "tensors": len(tensors),
        "dtypes": sorted({str(t.dtype).removeprefix("torch.") for t in tensors.values()}),
    }
    own = {k: v for k, v in header.items() if k.startswith("b4m.")}
    facts["metadata"] = dict(sorted((own or header).items()))
    try:
        parsed = parse_file(file, tensors, header)
    except B4MError as problem:
        return facts | {"problem": str(problem)}
    family, pairs = parsed.family, parsed.pairs
    denoiser = parsed.adapter().layers
    energy: dict[str, float] = {}
    for module, pair in denoiser.items():
        role = family.role_of(module)
        energy[role] = energy.get(role, 0.0) + pair.inner(pair)
    return facts | {
        "base": family.title,
        "key_style": parsed.style,
        "layers": len(denoiser),
        "text_layers": len(pairs) - len(denoiser),
        "ranks": dict(sorted(Counter(pair.rank for pair in pairs.values()).items())),
        "groups": dict(sorted(Counter(family.group_of(module) for module in denoiser).items())),
        "norm": sum(energy.values()) ** 0.5,
        "norm_by_role": {role: value**0.5 for role, value in sorted(energy.items()) if role},
    }
