"""Adapter files: say what one is, write one for another tool."""

from pathlib import Path
from typing import Any

from b4m.errors import B4MError


def inspect(file: str | Path) -> dict[str, Any]:
    """Say what an adapter file is: its key style, ranks, layers, energy and metadata.

    Args:
        file: adapter file of any tool

    Returns:
        The facts by name.

    Raises:
        B4MError: if the file cannot be read, or holds something else than low-rank pairs.
    """
    from b4m.adapters.files import describe

    facts = describe(Path(file))
    if "problem" in facts:
        raise B4MError(f"{file}: {facts['problem']}")
    return facts


def convert(file: str | Path, out: str | Path, form: str = "kohya") -> Path:
    """Write an adapter for another tool.

    Args:
        file: adapter file of any tool
        out: file to write; for peft its adapter_config.json lies beside it
        form: diffusers, peft, or kohya (A1111, ComfyUI)

    Returns:
        Path of the written weights.

    Raises:
        B4MError: for an unreadable file or an unknown form.
    """
    from b4m.adapters.files import read_adapter, write_adapter

    return write_adapter(Path(out), read_adapter(Path(file)), form)
