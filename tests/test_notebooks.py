"""The notebooks run from top to bottom as they are, only with smaller numbers."""

import json
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).resolve().parent.parent / "docs/notebooks"
SMALL = {
    "library": "STEPS, SEEDS = 2, [0, 1]",
    "pipeline": (
        "METHODS, SEEDS = 'direct', [0]\nTRAIN_SETTINGS, MERGE_SETTINGS = 'steps=2', 'rank=8'"
    ),
}


@pytest.mark.parametrize("name", SMALL)
def test_no_results_are_kept_in_git(name: str) -> None:
    for cell in json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]:
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None


def test_every_notebook_is_run_by_a_test() -> None:
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == set(SMALL)


@pytest.mark.notebook
@pytest.mark.parametrize("name", SMALL)
def test_a_notebook_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    tags = [cell.metadata.get("tags", []) for cell in notebook.cells]
    place = tags.index(["parameters"])
    notebook.cells.insert(
        place + 1, nbformat.v4.new_code_cell(f"{SMALL[name]}\nOUT = {str(tmp_path)!r}")
    )
    monkeypatch.setenv("B4M_WORK", str(tmp_path / "work"))
    resources = {"metadata": {"path": str(NOTEBOOKS)}}
    nbclient.NotebookClient(notebook, timeout=500, resources=resources).execute()
    assert all(cell.outputs for cell in notebook.cells[-1:])
