"""What the library says while it works: `-v` on stderr, `--log-file` in a file."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from b4m.io import check_output


@contextmanager
def messages(verbose: int, file: Path | None) -> Iterator[None]:
    """Send the library's log and Python's warnings to stderr and to a file for the block's time.

    Args:
        verbose: 0 leaves stderr as it is, 1 shows what happens, 2 all details.
        file: gets the same, or what happens where `verbose` is 0.

    Raises:
        B4MError: for a file that cannot be written.
    """
    handlers: list[logging.Handler] = [logging.StreamHandler()] if verbose else []
    if file is not None:
        check_output(file)
        file.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(file, encoding="utf-8"))
    if not handlers:
        yield
        return
    level = logging.DEBUG if verbose > 1 else logging.INFO
    loggers = [logging.getLogger("b4m"), logging.getLogger("py.warnings")]
    levels = [logger.level for logger in loggers]
    form = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S")
    for handler in handlers:
        handler.setFormatter(form)
        for logger in loggers:
            logger.addHandler(handler)
            logger.setLevel(level)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for logger, before in zip(loggers, levels, strict=True):
            logger.setLevel(before)
            for handler in handlers:
                logger.removeHandler(handler)
        for handler in handlers:
            handler.close()
