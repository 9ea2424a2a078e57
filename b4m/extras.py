"""The optional parts of an installation, and one sentence where a part is missing.

`pip install b4m` brings what adapters need: reading, closed-form merges, writing. Training and
sampling, evaluation, tracking and the pipelines are extras.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from b4m.errors import B4MError

_OWN = ("b4m", "components", "pipelines")


@contextmanager
def needs(extra: str, who: str) -> Iterator[None]:
    """Name the extra to install when an import in the block fails for want of a package.

    Args:
        extra: name in pyproject's optional dependencies.
        who: what the user asked for, as the subject of the sentence: "b4m report".

    Raises:
        B4MError: instead of ModuleNotFoundError, unless a module of our own is not there.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "?").split(".")[0]
        if missing in _OWN:
            raise
        raise B4MError(
            f"{who} needs the extra {extra!r}, because {missing} is not installed: "
            f"pip install 'b4m[{extra}]'"
        ) from error
