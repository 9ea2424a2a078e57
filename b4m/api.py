"""Merging for library users: adapters in, an adapter out, no files needed.

    content, style = b4m.read_adapter("mug.safetensors"), b4m.read_adapter("ink.safetensors")
    merged = b4m.merge(content, style, method="nplora", mu=0.5)

The command `b4m merge` is this with files at both ends and a record of the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from b4m.methods import merge_rule
from b4m.settings import DEFAULT_BASE, resolve
from b4m.verbs.merge import merge_context

if TYPE_CHECKING:
    from b4m.adapters.adapter import Adapter
    from b4m.bases.base import Base


def merge(
    *adapters: Adapter | str | Path,
    method: str = "direct",
    base: Base | str = DEFAULT_BASE,
    data: str | Path = "",
    **settings: object,
) -> Adapter:
    """Make one adapter of several.

    Args:
        adapters: two or more, in memory or as files of any tool; where order matters, the content
            comes first and the style last. direct, svd, ties, dare, tsv, nplora and ssr take any
            number, the others a content and a style.
        method: direct, svd, ties, dare, tsv, nplora or blora, in closed form; ssr, ziplora, duolora
            or b4m, which learn.
        base: base model, or where it lies; only methods that learn need it.
        data: prepared folder with the images of all; only methods that learn need it.
        settings: what the method reads, by name: `rank=32`, `weights=[1, {"text_encoder": 0}]`.
            `b4m merge --method METHOD --help` lists them.

    Returns:
        The merged adapter: low-rank pairs again, with the settings in its metadata.

    Raises:
        B4MError: in one sentence, for an unknown method or setting, a value out of range, an
            unreadable file, adapters of two bases, or a method that learns without base or data.
    """
    rule = merge_rule(method, len(adapters))
    resolve(rule.settings, settings, method=method)  # a wrong one is refused before reading files
    read = _adapters(adapters)
    from b4m.merging.context import require_same_base

    require_same_base(read)
    return rule.merge(read, merge_context(method, settings, base, data))


def _adapters(sources: Sequence[Adapter | str | Path]) -> list[Adapter]:
    """The adapters; where all are files, layers that these name in different ways are matched."""
    from b4m.files import read_adapter, read_together

    files = [source for source in sources if isinstance(source, str | Path)]
    if len(files) == len(sources):
        return read_together(files)
    return [read_adapter(one) if isinstance(one, str | Path) else one for one in sources]
