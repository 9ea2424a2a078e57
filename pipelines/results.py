"""What a run leaves for people: the report, scores, images and adapters, in one folder."""

import csv
import json
import shutil
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Dict, Iterator, List

from b4m.io import copy_whole
from b4m.plan import Comparison, plan

FILES = ("report.html", "contact.png", "scores.csv", "outcomes.csv")
FOLDERS = ("images", "adapters", "model", "pipeline")


def clear(out: Path) -> None:
    """Remove the results of an earlier run, so that nothing old is taken for new."""
    for name in FILES:
        (out / name).unlink(missing_ok=True)
    for name in FOLDERS:
        shutil.rmtree(out / name, ignore_errors=True)


@dataclass(frozen=True)
class Results:
    """The results of a local run.

    Attributes:
        run: folder in which the tasks wrote.
        out: folder for people.
        comparison: what was compared; the first method of a single pair gives the adapters.
    """

    run: Path
    out: Path
    comparison: Comparison

    @cached_property
    def artifacts(self) -> Dict[str, List[Path]]:
        """Paths of all artifacts that tasks have written, by their names."""
        found: Dict[str, List[Path]] = {}
        for output in sorted(self.run.rglob("executor_output.json")):
            written = json.loads(output.read_text(encoding="utf-8")).get("artifacts", {})
            for name, listed in written.items():
                found.setdefault(name, []).extend(Path(a["uri"]) for a in listed["artifacts"])
        return found

    @property
    def adapters(self) -> Dict[str, str]:
        """Names of the adapters that people get, with the keys of the jobs that made them."""
        jobs = plan(self.comparison)
        if len(self.comparison.pairs) > 1:
            return {job.key: job.key for job in jobs.trainings}
        first = self.comparison.rows[0]
        names = {}
        for merge in (job for job in jobs.merges if job.method == first.method):
            names = {
                "merged": merge.key,
                **dict(zip(("content", "style"), merge.inputs, strict=True)),
            }
        for sample in (job for job in jobs.samples if job.label == first.label and not names):
            kinds = {job.key: job.kind for job in jobs.trainings}
            names = {kinds[key]: key for key in sample.adapters}
        return names

    def collect(self) -> None:
        """Copy what people want into `out`."""
        found = self.artifacts
        for name, target in (("page", "report.html"), ("sheet", "contact.png")):
            for path in found.get(name, []):
                copy_whole(path, self.out / target)
        for path in found.get("outcomes", []):
            copy_whole(path, self.out / "outcomes.csv")
        for path in found.get("scores", []):
            copy_whole(path / "scores.csv", self.out / "scores.csv")
        for path in found.get("model", []):
            for file in path.iterdir():
                copy_whole(file, self.out / "model" / file.name)
        folders = [*found.get("adapters", []), *found.get("merged", [])]
        for name, key in self.adapters.items():
            for path in (file for folder in folders for file in folder.glob(f"{key}.safetensors")):
                copy_whole(path, self.out / "adapters" / f"{name}.safetensors")
        for folder in self._samples():
            name = folder.name.partition("-")[2]
            if len(self.comparison.pairs) == 1:
                name = name.removesuffix(f"-{'+'.join(self.comparison.pairs[0])}")
            for image in sorted(folder.glob("images/*.png")):
                copy_whole(image, self.out / "images" / f"{name}-{image.name}")

    def missing(self) -> List[str]:
        """The results that `out` lacks, by name."""
        names = [*FILES]
        if len(self.comparison.pairs) == 1:
            names.append("model/README.md")
            names += [f"adapters/{name}.safetensors" for name in self.adapters]
        lacking = [name for name in names if not (self.out / name).is_file()]
        if not any((self.out / "images").glob("*.png")):
            lacking.append("images/*.png")
        return lacking

    def summary(self) -> str:
        """How the jobs went, and which failed."""
        with (self.out / "outcomes.csv").open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        states = Counter(row["state"] for row in rows)
        lines = ["Jobs:   " + ", ".join(f"{states[s]} {s}" for s in ("made", "kept", "failed"))]
        lines += [f"failed  {r['key']}: {r['error']}" for r in rows if r["state"] == "failed"]
        return "\n".join(lines)

    def _samples(self) -> Iterator[Path]:
        for folder in self.artifacts.get("samples", []):
            yield from sorted(path.parent for path in folder.glob("*/samples.csv"))
