"""Merging for library users: adapters in, an adapter out, no files needed.

    content, style = b4m.read_adapter("mug.safetensors"), b4m.read_adapter("ink.safetensors")
    merged = b4m.merge(content, style, method="nplora", mu=0.5)

The command `b4m merge` is this with files at both ends and a record of the run.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from b4m.methods import merge_rule
from b4m.settings import DEFAULT_BASE, resolve
from b4m.verbs.merge import merge_context

if TYPE_CHECKING:
    from b4m.adapters.adapter import Adapter
    from b4m.bases.base import Base


def merge(
    content: Adapter | str | Path,
    style: Adapter | str | Path,
    method: str = "direct",
    *,
    base: Base | str = DEFAULT_BASE,
    data: str | Path = "",
    **settings: object,
) -> Adapter:
    """Make one adapter of a content adapter and a style adapter.

    Args:
        content: an adapter, or a file of any tool.
        style: an adapter, or a file.
        method: direct, svd, ties, dare, nplora or blora, in closed form; ziplora, duolora or b4m,
            which learn.
        base: base model, or where it lies; only methods that learn need it.
        data: prepared folder with the images of both; only methods that learn need it.
        settings: what the method reads, by name: `rank=32`, `content_weight=0.8`.
            `b4m merge --method METHOD --help` lists them.

    Returns:
        The merged adapter: low-rank pairs again, with the settings in its metadata.

    Raises:
        B4MError: in one sentence, for an unknown method or setting, a value out of range, an
            unreadable file, adapters of two bases, or a method that learns without base or data.
    """
    rule = merge_rule(method)
    resolve(rule.settings, settings, method=method)  # a wrong one is refused before reading files
    adapters = _adapter(content), _adapter(style)
    from b4m.merging.context import require_same_base

    require_same_base(*adapters)
    return rule.merge(*adapters, merge_context(method, settings, base, data))


def _adapter(source: Adapter | str | Path) -> Adapter:
    from b4m.files import read_adapter

    return read_adapter(source) if isinstance(source, str | Path) else source
