"""The pipeline runs on this machine, from pictures to the report."""

import csv
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image


def _run(
    repo_root: Path, out: Path, *flags: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipelines", "run", "customize", "--out", str(out), *flags],
        cwd=repo_root,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_failed_task_fails_the_run_and_says_which_and_why(
    repo_root: Path, tmp_path: Path
) -> None:
    missing = tmp_path / "no-pictures"
    done = _run(repo_root, tmp_path / "out", "--source", str(missing), B4M_TRACKING="off")
    assert done.returncode == 1
    assert "Task failed: prepare data" in done.stdout
    assert f"{missing} does not exist" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert "Traceback" in (tmp_path / "out/pipeline.log").read_text(encoding="utf-8")
    assert not (tmp_path / "out/report.html").exists()


def test_a_folder_with_other_things_is_not_taken_for_results(
    repo_root: Path, tmp_path: Path
) -> None:
    image = tmp_path / "mine/images/holiday.png"
    image.parent.mkdir(parents=True)
    image.write_bytes(b"picture")
    done = _run(repo_root, tmp_path / "mine", B4M_TRACKING="off")
    assert done.returncode == 2
    assert "give another folder" in done.stdout
    assert image.read_bytes() == b"picture"


def test_an_unknown_method_is_told_before_anything_is_trained(
    repo_root: Path, tmp_path: Path, own_pictures: Path
) -> None:
    flags = ("--source", str(own_pictures), "--content", "cat", "--style", "ink")
    done = _run(
        repo_root, tmp_path / "out", *flags, "--methods", "direct", "magic", B4M_TRACKING="off"
    )
    assert done.returncode == 1
    assert "Task failed: prepare data" in done.stdout
    assert "unknown merge method 'magic'" in done.stdout
    assert "train" not in done.stdout


@pytest.mark.slow
def test_the_whole_pipeline_runs_from_own_pictures_to_the_report(
    repo_root: Path, tmp_path: Path, own_pictures: Path, tiny_base: Path, tiny_evaluator: Path
) -> None:
    out = tmp_path / "out"
    database = tmp_path / "mlflow.db"
    done = _run(
        repo_root,
        out,
        *("--source", str(own_pictures), "--content", "cat", "--style", "ink"),
        *("--base", str(tiny_base), "--evaluator", str(tiny_evaluator)),
        *("--methods", "b4m", "direct", "--seeds", "0", "1"),
        *("--train-settings", "steps=2", "rank=4", "--merge-settings", "steps=2"),
        *("--sample-settings", "steps=2"),
        MLFLOW_TRACKING_URI=f"sqlite:///{database}",
        B4M_WORK=str(tmp_path / "work"),
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Report:" in done.stdout
    assert "make ui" in done.stdout
    assert "data:image/" in (out / "report.html").read_text(encoding="utf-8")
    with (out / "scores.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    wanted = {"method", "content", "style", "seed", "metric", "value", "encoder"}
    assert wanted <= set(rows[0])
    assert {"base", "content only", "style only", "b4m", "direct"} <= {r["method"] for r in rows}
    for image in (out / "images").glob("*.png"):
        Image.open(image).load()
    for name in ("content", "style", "merged"):
        assert (out / f"adapters/{name}.safetensors").stat().st_size > 0
    with sqlite3.connect(database) as connection:
        query = "select run_uuid, value from tags where key = 'mlflow.parentRunId'"
        links = dict(connection.execute(query).fetchall())
        runs = {row[0] for row in connection.execute("select run_uuid from runs").fetchall()}
    parents = set(links.values())
    assert len(parents) == 1
    assert runs == parents | set(links)
    assert len(links) >= 4 + 2 + 1  # adapters, merges, evaluation
