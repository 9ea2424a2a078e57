"""What a run leaves for people: the report, scores, pictures and adapters, in one folder."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List

EXPECTED = (
    "report.html",
    "scores.csv",
    "adapters/content.safetensors",
    "adapters/style.safetensors",
    "adapters/merged.safetensors",
)


@dataclass(frozen=True)
class Artifact:
    """One output of one task."""

    name: str
    path: Path
    metadata: Dict[str, Any]


def artifacts(run: Path) -> List[Artifact]:
    """All artifacts that the tasks under a local run's folder have written."""
    found = []
    for output in sorted(run.rglob("executor_output.json")):
        written = json.loads(output.read_text(encoding="utf-8")).get("artifacts", {})
        for name, listed in written.items():
            for artifact in listed["artifacts"]:
                metadata = artifact.get("metadata") or {}
                found.append(Artifact(name, Path(artifact["uri"]), metadata))
    return found


def clear(out: Path) -> None:
    """Remove the results of an earlier run, so that nothing old is taken for new."""
    for name in ("report.html", "scores.csv", "contact.png"):
        (out / name).unlink(missing_ok=True)
    for name in ("images", "adapters", "pipeline"):
        shutil.rmtree(out / name, ignore_errors=True)


def collect(run: Path, out: Path, method: str) -> None:
    """Copy the results of a run into `out`; `method` is the one whose adapter is the result."""
    found = artifacts(run)
    pages = [a.path for a in found if a.name == "page"]
    scores = [a.path / "scores.csv" for a in found if a.name == "scores"]
    merged = [a for a in found if a.name == "merged" and a.metadata.get("method") == method]
    shelves = [a.path for a in found if a.name == "adapters"]
    for source in pages:
        _copy(source, out / "report.html")
        _copy(source.with_name("contact.png"), out / "contact.png")
    for source in scores:
        _copy(source, out / "scores.csv")
    for artifact in merged:
        _copy(artifact.path / "adapter.safetensors", out / "adapters/merged.safetensors")
        for kind in ("content", "style"):
            for shelf in shelves:
                source = shelf / f"{kind}-{artifact.metadata['pair']}.safetensors"
                _copy(source, out / f"adapters/{kind}.safetensors")
    for artifact in found:
        if artifact.name == "samples":
            label = str(artifact.metadata.get("label", artifact.path.parent.name))
            for image in sorted(artifact.path.glob("images/*.png")):
                _copy(image, out / "images" / f"{label.replace(' ', '-')}-{image.name}")


def missing(out: Path) -> List[str]:
    """The results that `out` lacks, by name."""
    lacking = [name for name in EXPECTED if not (out / name).is_file()]
    if not any((out / "images").glob("*.png")):
        lacking.append("images/*.png")
    return lacking


def _copy(source: Path, target: Path) -> None:
    if source.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        shutil.copyfile(source, partial)
        os.replace(partial, target)
