"""Say what an adapter file is."""

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
    from b4m.files import describe

    facts = describe(Path(file))
    if "problem" in facts:
        raise B4MError(f"{file}: {facts['problem']}")
    return facts
