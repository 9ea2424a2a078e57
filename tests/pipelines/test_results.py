"""What a run leaves for people is whole, or the run says what is missing."""

import json
from pathlib import Path

import pytest

from b4m.plan import Comparison, plan
from pipelines.results import Results, clear

ONE = Comparison(("cat",), ("ink",), ("b4m", "direct", "klora", "joint"))
TABLE = "key,state,seconds,error\r\na,made,1.0,\r\nb,kept,0.1,\r\nc,failed,2.0,no memory\r\n"


def _task(run: Path, task: str, **artifacts: str | list[str]) -> None:
    """A finished task with its artifacts: a file's text, or the names of files in a folder."""
    written = {}
    for name, content in artifacts.items():
        path = run / task / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.write_text(content)
        for file in [] if isinstance(content, str) else content:
            (path / file).parent.mkdir(parents=True, exist_ok=True)
            (path / file).write_text(f"{task} {file}")
        written[name] = {"artifacts": [{"uri": str(path), "metadata": {}}]}
    output = run / task / "executor_output.json"
    output.write_text(json.dumps({"artifacts": written}))


def _whole_run(run: Path, comparison: Comparison) -> None:
    jobs = plan(comparison)
    _task(run, "collect", adapters=[f"{job.key}.safetensors" for job in jobs.trainings])
    for job in jobs.merges:
        _task(run, f"for-loop-1-iteration-0/{job.key}", merged=[f"{job.key}.safetensors"])
    for place, job in enumerate(jobs.samples):
        folder = f"{place:06d}-{job.key}"
        files = [f"{folder}/samples.csv", f"{folder}/images/000-s0.png"]
        _task(run, f"for-loop-2-iteration-{place}/sample", samples=files)
    _task(run, "evaluate", scores=["scores.csv"])
    _task(run, "report", page="<html>", sheet="png", outcomes=TABLE)
    _task(run, "publish", model=["README.md", "image.png"])


def _results(folder: Path, comparison: Comparison = ONE) -> Results:
    return Results(folder / "run", folder / "out", comparison)


def _adapters(results: Results) -> list[str]:
    """Name and job of each adapter."""
    files = sorted((results.out / "adapters").iterdir())
    return [f"{f.stem}={f.read_text().split()[-1].removesuffix('.safetensors')}" for f in files]


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        ("b4m", ["content=content-cat-b4m", "merged=merged-cat+ink-b4m", "style=style-ink-b4m"]),
        (
            "direct",
            ["content=content-cat-lora", "merged=merged-cat+ink-direct", "style=style-ink-lora"],
        ),
        ("klora", ["content=content-cat-lora", "style=style-ink-lora"]),
        ("joint", ["joint=joint-cat+ink-joint"]),
    ],
)
def test_the_adapters_are_those_of_the_first_method(
    tmp_path: Path, first: str, expected: list[str]
) -> None:
    others = [method for method in ONE.methods if method != first]
    results = _results(tmp_path, Comparison(("cat",), ("ink",), (first, *others)))
    _whole_run(results.run, results.comparison)
    results.collect()
    assert _adapters(results) == expected
    assert results.missing() == []


def test_images_of_one_pair_are_called_by_their_method(tmp_path: Path) -> None:
    results = _results(tmp_path)
    _whole_run(results.run, ONE)
    results.collect()
    images = {path.name for path in (results.out / "images").iterdir()}
    methods = ("base", "content-only", "style-only", "b4m", "direct", "klora", "joint")
    assert images == {f"{method}-000-s0.png" for method in methods}


def test_images_of_several_pairs_are_called_by_method_and_pair(tmp_path: Path) -> None:
    comparison = Comparison(("cat", "dog"), ("ink",), ("direct",))
    results = _results(tmp_path, comparison)
    _whole_run(results.run, comparison)
    results.collect()
    assert results.missing() == []
    images = {path.name for path in (results.out / "images").iterdir()}
    assert {"direct-cat+ink-000-s0.png", "direct-dog+ink-000-s0.png"} <= images
    assert "content-cat-lora=content-cat-lora" in _adapters(results)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    results = _results(tmp_path)
    _task(results.run, "report", page="<html>", outcomes=TABLE)
    results.collect()
    assert results.missing() == [
        "contact.png",
        "scores.csv",
        "model/README.md",
        "adapters/merged.safetensors",
        "adapters/content.safetensors",
        "adapters/style.safetensors",
        "images/*.png",
    ]


def test_the_summary_counts_the_jobs_and_names_those_that_failed(tmp_path: Path) -> None:
    results = _results(tmp_path)
    _whole_run(results.run, ONE)
    results.collect()
    assert results.summary().splitlines() == [
        "Jobs:   1 made, 1 kept, 1 failed",
        "failed  c: no memory",
    ]


def test_results_of_an_earlier_run_are_never_taken_for_new(tmp_path: Path) -> None:
    results = _results(tmp_path)
    _whole_run(results.run, ONE)
    results.collect()
    clear(results.out)
    assert list(results.out.iterdir()) == []
