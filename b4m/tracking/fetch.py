"""Bring back what a pipeline run left in MLflow."""

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from b4m.data.repository import without_credentials
from b4m.errors import B4MError
from b4m.io import copy_whole
from b4m.tracking.pipeline import parents_of
from b4m.tracking.store import connect, experiment_of

# Folders of a run's artifacts by its stage.
_FOLDERS = {
    "pipeline": ("images", "report", "model"),
    "report": ("report",),
    "evaluate": ("scores",),
    "content": ("adapter",),
    "style": ("adapter",),
    "joint": ("adapter",),
    "merge": ("adapter",),
}


def fetch(kfp_run_id: str, out: Path) -> list[Path]:
    """Download report, scores, images and adapters of a pipeline run.

    Args:
        kfp_run_id: the pipeline run's id, as `submit` prints it.
        out: folder to write: report/, scores/, images/, adapters/ and model/.

    Returns:
        The files that were written.

    Raises:
        B4MError: if MLflow cannot be reached, or knows no such run.
    """
    client, uri = connect()
    found = parents_of(client, experiment_of(client, uri), kfp_run_id)
    if not found:
        raise B4MError(
            f"{without_credentials(uri)} knows no pipeline run {kfp_run_id!r} in this experiment"
        )
    parent = found[0]
    for run in (parent, *_children(client, parent)):
        for folder in _FOLDERS.get(run.data.tags.get("b4m.stage", ""), ()):
            if any(each.path == folder for each in client.list_artifacts(run.info.run_id)):
                _download(client, run, folder, out)
    return sorted(path for path in out.rglob("*") if path.is_file())


def _download(client: Any, run: Any, folder: str, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    if folder != "adapter":
        client.download_artifacts(run.info.run_id, folder, str(out))
        return
    name = re.sub(r"[^\w+-]", "-", run.info.run_name)
    with tempfile.TemporaryDirectory() as scratch:
        for listed in client.list_artifacts(run.info.run_id, folder):
            file = Path(client.download_artifacts(run.info.run_id, listed.path, scratch))
            copy_whole(file, out / "adapters" / f"{name}{file.suffix}")


def _children(client: Any, parent: Any) -> Iterator[Any]:
    text = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    token = None
    while True:
        page = client.search_runs([parent.info.experiment_id], text, page_token=token)
        yield from page
        token = page.token
        if not token:
            return
