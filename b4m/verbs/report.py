"""Write the page that shows references, images, scores and settings."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from b4m.extras import needs
from b4m.io import check_output


def report(
    samples: Sequence[str | Path],
    scores: str | Path,
    data: str | Path,
    out: str | Path,
    title: str = "",
) -> Path:
    """Write one page that shows references, images, scores and settings.

    Args:
        samples: folders written by sample
        scores: folder written by evaluate for these samples
        data: prepared folder
        out: HTML file to write; contact.png lies beside it
        title: heading

    Returns:
        Path of the page, which needs nothing beside itself.

    Raises:
        B4MError: for missing files, or scores that are not of these samples.
    """
    with needs("evaluate", "report"):
        from b4m.report import write_report
    from b4m.tracking import open_tracker

    folders, file = [Path(folder) for folder in samples], Path(out)
    check_output(file / "report.html" if file.is_dir() else file)
    with open_tracker("report", "report") as run:
        page = write_report(folders, Path(scores), Path(data), Path(out), title)
        with tempfile.TemporaryDirectory() as folder:
            named = Path(shutil.copy(page, Path(folder) / "report.html"))
            run.files([named, page.with_name("contact.png")], "report")
    return page
