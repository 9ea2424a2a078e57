"""One self-contained HTML page about generated images and their scores."""

from collections.abc import Sequence
from pathlib import Path

from b4m.evaluation.times import Spent
from b4m.io import replacing, write_whole
from b4m.report.images import contact_sheet
from b4m.report.load import load
from b4m.report.page import render
from b4m.report.results import write_results

__all__ = ["write_report", "write_results"]


def write_report(
    samples: Sequence[Path],
    scores: Path,
    data: Path,
    out: Path,
    title: str = "",
    spent: Spent | None = None,
) -> Path:
    """Write the report, and contact.png beside it.

    Args:
        samples: folders written by `b4m sample`. A folder may hold adapters.json: metadata of
            the used adapters by their hash.
        scores: folder written by `b4m evaluate` for these samples.
        data: the prepared data folder.
        out: the HTML file, of whatever name; a folder that exists gets report.html.
        title: heading; made from the content and the style if left out.
        spent: what the comparison cost, where it is known.

    Returns:
        Path of the HTML file.

    Raises:
        B4MError: for missing files, or scores that are not of these samples.
    """
    report = load([Path(folder) for folder in samples], Path(scores), Path(data))
    out = Path(out)
    file = out / "report.html" if out.is_dir() else out
    page, sheet = render(report, title, spent), contact_sheet(report)
    with replacing(file.with_name("contact.png")) as partial:
        sheet.save(partial, "PNG", optimize=True)
    return write_whole(file, page)
