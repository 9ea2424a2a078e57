"""Write the page that shows references, images, scores and settings."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from b4m.errors import B4MError
from b4m.extras import needs
from b4m.io import check_output
from b4m.verbs.folder import Folder, open_folder


def report(
    samples: Sequence[str | Path],
    scores: str | Path = "",
    data: str | Path = "",
    out: str | Path = "",
    title: str = "",
    results: str | Path = "",
) -> Path:
    """Write one page that shows references, images, scores and settings.

    Of a folder of b4m compare it writes the comparison's page anew, and with --results also its
    tables, scores and contact sheets as files that are small enough to be committed.

    Args:
        samples: folders written by sample; or one folder of compare, which needs nothing else
        scores: folder written by evaluate for these samples
        data: prepared folder
        out: HTML file to write; contact.png lies beside it
        title: heading
        results: folder for table.md, run.json, scores.csv and contact sheets of a comparison

    Returns:
        Path of the page, which needs nothing beside itself.

    Raises:
        B4MError: for missing files, or scores that are not of these samples.
    """
    with needs("evaluate", "report"):
        from b4m.evaluation.times import Spent, read_times
        from b4m.report import write_report, write_results
    from b4m.tracking import open_tracker

    compared = _compared(samples, scores, data, out)
    if compared is None and str(results):
        raise B4MError("results are those of a comparison; give the folder of b4m compare")
    if compared is not None:
        home = compared.path
        scores, data = home / "scores", home / "data"
        out, title = out or home / "report.html", title or compared.comparison.title
    folders = compared.samples if compared else [Path(folder) for folder in samples]
    spent = Spent(read_times(compared.path), compared.numbers) if compared else Spent()
    file = Path(out)
    check_output(file / "report.html" if file.is_dir() else file)
    with open_tracker("report", "report") as run:
        page = write_report(folders, Path(scores), Path(data), file, title, spent)
        with tempfile.TemporaryDirectory() as folder:
            named = Path(shutil.copy(page, Path(folder) / "report.html"))
            run.files([named, page.with_name("contact.png")], "report")
    if compared is not None and str(results):
        write_results(folders, Path(scores), Path(data), compared.spec, spent, Path(results))
    return page


def _compared(
    samples: Sequence[str | Path], scores: str | Path, data: str | Path, out: str | Path
) -> Folder | None:
    """The comparison whose folder was given alone; None where images are given by themselves."""
    if str(scores) and str(data) and str(out):
        return None
    if len(samples) != 1 or str(scores) or str(data):
        raise B4MError("say where scores, data and the page are: --scores, --data and --out")
    return open_folder(Path(samples[0]))
