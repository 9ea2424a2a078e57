"""What a run leaves for people is whole, or the run says what is missing."""

import json
from pathlib import Path

from pipelines.results import EXPECTED, clear, collect, missing


def _task(run: Path, task: str, **artifacts: tuple[str | list[str], dict[str, str]]) -> None:
    """A finished task with its artifacts: a file's text, or the names of files in a folder."""
    written = {}
    for name, (content, metadata) in artifacts.items():
        path = run / task / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.write_text(content)
        else:
            for file in content:
                (path / file).parent.mkdir(parents=True, exist_ok=True)
                (path / file).write_text(f"{task} {file}")
        written[name] = {"artifacts": [{"uri": str(path), "metadata": metadata}]}
    output = run / task / "executor_output.json"
    output.write_text(json.dumps({"artifacts": written}))


def _whole_run(run: Path) -> None:
    shelf = [f"{k}-{m}.safetensors" for k in ("content", "style") for m in ("b4m", "lora")]
    _task(run, "shelve-adapters", adapters=(shelf, {"alone": "lora"}))
    for number, (method, pair) in enumerate([("direct", "lora"), ("b4m", "b4m")]):
        loop = f"for-loop-1-iteration-{number}"
        merged = (["adapter.safetensors"], {"method": method, "pair": pair})
        _task(run, f"{loop}/merge-{method}", merged=merged)
        _task(run, f"{loop}/sample", samples=(["images/0.png"], {"label": method}))
    _task(run, "sample", samples=(["images/0.png"], {"label": "content only"}))
    _task(run, "evaluate", scores=(["scores.csv"], {}))
    _task(run, "report", page=("<html>", {}))


def test_the_adapters_are_those_of_the_first_method(tmp_path: Path) -> None:
    _whole_run(tmp_path / "run")
    collect(tmp_path / "run", tmp_path / "out", "b4m")
    adapters = tmp_path / "out/adapters"
    assert "merge-b4m" in (adapters / "merged.safetensors").read_text()
    assert (adapters / "content.safetensors").read_text().endswith("content-b4m.safetensors")
    collect(tmp_path / "run", tmp_path / "out", "direct")
    assert "merge-direct" in (adapters / "merged.safetensors").read_text()
    assert (adapters / "style.safetensors").read_text().endswith("style-lora.safetensors")


def test_a_whole_run_lacks_nothing(tmp_path: Path) -> None:
    _whole_run(tmp_path / "run")
    collect(tmp_path / "run", tmp_path / "out", "b4m")
    assert missing(tmp_path / "out") == []
    images = {path.name for path in (tmp_path / "out/images").iterdir()}
    assert images == {"b4m-0.png", "direct-0.png", "content-only-0.png"}


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    _task(tmp_path / "run", "report", page=("<html>", {}))
    collect(tmp_path / "run", tmp_path / "out", "b4m")
    assert missing(tmp_path / "out") == [*EXPECTED[1:], "images/*.png"]


def test_results_of_an_earlier_run_are_never_taken_for_new(tmp_path: Path) -> None:
    _whole_run(tmp_path / "run")
    collect(tmp_path / "run", tmp_path / "out", "b4m")
    clear(tmp_path / "out")
    assert len(missing(tmp_path / "out")) == len(EXPECTED) + 1
