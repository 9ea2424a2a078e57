"""The pipeline runs on this machine, from pictures to the report."""

import csv
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from kfp import dsl
from PIL import Image

from b4m.errors import B4MError
from components.plan_jobs import plan_jobs
from pipelines import cli

# What a task may find around it; none of it may lie anywhere afterwards
SECRETS = (
    *("B4M_MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"),
    *("KFP_TOKEN", "KFP_COOKIES", "HF_TOKEN", "B4M_AWS_SECRET_ACCESS_KEY", "AWS_SECRET_ACCESS_KEY"),
)


def _run(
    repo_root: Path, out: Path, pipeline: str, *flags: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipelines", "run", pipeline, "--out", str(out), *flags],
        cwd=repo_root,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def _table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def _tags(database: Path) -> dict[str, dict[str, str]]:
    """Tags of all MLflow runs by run."""
    found: dict[str, dict[str, str]] = {}
    with sqlite3.connect(database) as connection:
        for run, key, value in connection.execute("select run_uuid, key, value from tags"):
            found.setdefault(run, {})[key] = value
    return found


def test_a_failed_task_fails_the_run_and_says_which_and_why(
    repo_root: Path, tmp_path: Path
) -> None:
    missing = tmp_path / "no-pictures"
    done = _run(
        repo_root, tmp_path / "out", "customize", "--source", str(missing), B4M_TRACKING="off"
    )
    assert done.returncode == 1
    assert "Task failed: prepare data" in done.stdout
    assert f"{missing} does not exist" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert "Traceback" in (tmp_path / "out/pipeline.log").read_text(encoding="utf-8")
    assert not (tmp_path / "out/report.html").exists()


def test_a_folder_with_other_things_is_not_taken_for_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "mine/images/holiday.png"
    image.parent.mkdir(parents=True)
    image.write_bytes(b"picture")
    assert cli.main(["run", "customize", "--out", str(tmp_path / "mine")]) == 2
    assert "give another folder" in capsys.readouterr().err
    assert image.read_bytes() == b"picture"


def test_a_wrong_setting_is_told_before_anything_is_trained(
    repo_root: Path, tmp_path: Path, own_pictures: Path
) -> None:
    flags = ("--source", str(own_pictures), "--content", "cat", "--style", "ink")
    settings = ("--train-settings", "stepps=3")
    done = _run(repo_root, tmp_path / "out", "customize", *flags, *settings, B4M_TRACKING="off")
    assert done.returncode == 1
    assert "Task failed: plan" in done.stdout
    assert "no setting 'stepps'; the nearest is steps" in done.stdout
    assert "train" not in done.stdout.replace("train_settings", "")


def test_no_method_at_all_is_told_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line wants one; a form of a server does not."""
    monkeypatch.setenv("B4M_TRACKING", "off")
    jobs = dsl.Dataset(uri=str(tmp_path / "jobs"))
    with pytest.raises(B4MError, match="nothing to compare: no methods were given"):
        plan_jobs.python_func("customize", [], {}, {}, {}, 0, jobs, content="cat", style="ink")
    assert not (tmp_path / "jobs").exists()


@pytest.mark.slow
def test_customize_runs_from_own_pictures_to_the_report(
    repo_root: Path, tmp_path: Path, own_pictures: Path, tiny_base: Path, tiny_evaluator: Path
) -> None:
    out, database = tmp_path / "out", tmp_path / "mlflow.db"
    done = _run(
        repo_root,
        out,
        "customize",
        *("--source", str(own_pictures), "--content", "cat", "--style", "ink"),
        *("--base", str(tiny_base), "--evaluator", str(tiny_evaluator)),
        *("--methods", "b4m", "klora", "joint", "--seeds", "0", "1", "--tasks", "1"),
        *("--train-settings", "steps=2", "rank=4", "--merge-settings", "b4m.steps=2"),
        *("--sample-settings", "steps=2", "--register-as", "cat-in-ink"),
        MLFLOW_TRACKING_URI=f"sqlite:///{database}",
        B4M_WORK=str(tmp_path / "work"),
        **dict.fromkeys(SECRETS, "planted-secret"),
    )
    assert "planted-secret" not in done.stdout + done.stderr
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in written if b"planted-secret" in path.read_bytes()] == []
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Report:" in done.stdout
    assert "data:image/" in (out / "report.html").read_text(encoding="utf-8")
    rows = _table(out / "scores.csv")
    assert {"method", "content", "style", "seed", "metric", "value", "encoder"} <= set(rows[0])
    labels = {"base", "content only", "style only", "b4m", "klora", "joint", "direct"}
    assert labels <= {row["method"] for row in rows}
    images = {file.name for file in (out / "images").glob("*.png")}
    assert images == {f"{m.replace(' ', '-')}-00{s}-s{s}.png" for m in labels for s in (0, 1)}
    for image in images:
        Image.open(out / "images" / image).load()
    Image.open(out / "contact.png").load()
    for name in ("content", "style", "merged"):
        assert (out / f"adapters/{name}.safetensors").stat().st_size > 0
    assert {row["state"] for row in _table(out / "outcomes.csv")} == {"made"}
    assert "first champion of cat-in-ink" in (out / "model/verdict.txt").read_text()
    _check_runs(database, parent="customize/cat+ink", children=4 + 1 + 2 + 1 + 1)


def _check_runs(database: Path, parent: str, children: int) -> None:
    """One finished parent, whose children are all other runs; all know the pipeline's run."""
    tags = _tags(database)
    parents = [run for run, known in tags.items() if "mlflow.parentRunId" not in known]
    assert [tags[run]["mlflow.runName"] for run in parents] == [parent]
    assert {known.get("mlflow.parentRunId") for known in tags.values()} == {None, parents[0]}
    assert len(tags) - 1 == children  # trainings, joint, merges, evaluation, registry
    assert len({known["kfp.run_id"] for known in tags.values()}) == 1
    with sqlite3.connect(database) as connection:
        states = {row[0] for row in connection.execute("select status from runs")}
    assert states == {"FINISHED"}


@pytest.mark.slow
def test_compare_keeps_what_does_not_fail_and_does_only_what_is_missing(
    repo_root: Path, tmp_path: Path, own_pictures: Path, tiny_base: Path, tiny_evaluator: Path
) -> None:
    flags = (
        *("--source", str(own_pictures), "--contents", "cat", "car", "--styles", "ink"),
        *("--base", str(tiny_base), "--evaluator", str(tiny_evaluator)),
        *("--methods", "b4m", "direct", "--seeds", "0", "--tasks", "2"),
        # halves of different ranks cannot be made one, other adapters can
        *("--train-settings", "steps=2", "rank=4", "style.rank=2"),
        *("--sample-settings", "steps=2"),
    )
    environment = {"B4M_TRACKING": "off", "B4M_WORK": str(tmp_path / "work")}
    done = _run(repo_root, tmp_path / "first", "compare", *flags, **environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    first = {row["key"]: row for row in _table(tmp_path / "first/outcomes.csv")}
    failed = {key for key, row in first.items() if row["state"] == "failed"}
    pairs = ("cat+ink", "car+ink")
    merges, images = {f"merged-{p}-b4m" for p in pairs}, {f"b4m-{p}" for p in pairs}
    assert failed == merges | images
    assert "4 failed" in done.stdout
    scored = {row["method"] for row in _table(tmp_path / "first/scores.csv")}
    assert {"base", "content only", "style only", "direct"} <= scored
    assert "b4m" not in scored

    done = _run(repo_root, tmp_path / "second", "compare", *flags, "--fail", **environment)
    assert done.returncode == 1
    assert "Task failed: check outcomes" in done.stdout
    assert f"4 of {len(first)} jobs failed" in done.stdout
