"""What tests of damaged files share: how many there are, and how much memory they may take."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

EXTRA = 1 << 30  # bytes that a reader may take
TIMES = [1, pytest.param(4, marks=pytest.mark.slow)]  # as many files as in the default run


@contextmanager
def little_memory() -> Iterator[None]:
    """Whatever takes more than `EXTRA` beside what is in use fails with a MemoryError."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + EXTRA
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
