"""Jobs in shards: done once, kept between runs, and those that fail take along what needs them."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from b4m import jobs as engine
from b4m.data.prepare import prepare
from b4m.errors import B4MError
from b4m.io import sha256
from b4m.jobs import Jobs, Task
from b4m.plan import Comparison
from b4m.shards import LISTS, shards
from tests.data.worlds import write_user_folder

COMPARISON = Comparison(("teapot",), ("stripes", "dots"), ("b4m", "svd", "klora"))
ONE_STEP = {"steps": "1"}
QUICK = {**ONE_STEP, "rank": "2"}


@pytest.fixture(scope="module")
def two_styles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    return prepare(write_user_folder(folder / "own"), folder / "data", "teapot", "stripes,dots")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("B4M_WORK", str(tmp_path / "work"))
    monkeypatch.setenv("B4M_TRACKING", "off")
    return tmp_path / "work"


class Run:
    """A run of all tasks, one after the other, as a pipeline wires them."""

    def __init__(self, folder: Path, base: Path, data: Path, bulk: bool, most: int = 1) -> None:
        self.folder, self.base, self.data, self.bulk, self.most = folder, base, data, bulk, most

    def __call__(self, comparison: Comparison, merge: Mapping[str, str] = ONE_STEP) -> "Run":
        file = self.folder / "jobs"
        self.jobs = Jobs.of(comparison, QUICK, merge, ONE_STEP)
        self.jobs.write(file)
        trained = []
        for number, task in enumerate(self._tasks("trainings")):
            trained.append(self.folder / f"trained{number}")
            engine.train_shard(task, trained[-1])
        self.adapters = self.folder / "adapters"
        engine.collect(trained, self.adapters)
        self.samples, self.merged = [], []
        for of in LISTS[1:]:
            for number, task in enumerate(self._tasks(of)):
                source = self.adapters
                if of != "samples":
                    source = self.folder / f"{of}{number}"
                    engine.merge_shard(task, self.adapters, source)
                    self.merged.append(source)
                self.samples.append(self.folder / f"{of}{number}-images")
                engine.sample_shard(task, source, self.samples[-1], [0.0, 1.0])
        return self

    def _tasks(self, of: str) -> list[Task]:
        parts = [
            {"name": s.name, "of": s.of, "first": float(s.first), "end": float(s.end)}
            for s in shards(self.jobs.plan, of, self.most)
        ]
        given = (str(self.base), str(self.data), self.bulk)
        return [Task.read(str(self.folder / "jobs"), part, *given) for part in parts]

    @property
    def states(self) -> dict[str, str]:
        return {one.key: one.state for one in engine.outcomes([self.adapters, *self.samples])}

    @property
    def images(self) -> dict[str, str]:
        """Hashes of all images by job and file."""
        return {
            f"{folder.name}/{file.name}": sha256(file)
            for folder in engine.sample_folders(self.samples)
            for file in folder.glob("images/*.png")
        }


def _closed_form(run: Run) -> set[str]:
    return {job.key for job in run.jobs.plan.merges if not job.learned}


def test_a_second_run_makes_only_closed_form_merges_and_the_same_images(
    work: Path, tmp_path: Path, tiny_base: Path, two_styles: Path
) -> None:
    first = Run(tmp_path / "first", tiny_base, two_styles, bulk=True)(COMPARISON)
    jobs = first.jobs.plan
    assert len(first.states) == len(jobs.trainings) + len(jobs.merges) + len(jobs.samples)
    assert set(first.states.values()) == {"made"}
    assert len(first.images) == 2 * len(jobs.samples)
    second = Run(tmp_path / "second", tiny_base, two_styles, bulk=True, most=3)(COMPARISON)
    made = {key for key, state in second.states.items() if state == "made"}
    assert made == _closed_form(second)
    assert second.images == first.images


def test_one_more_style_makes_only_its_own_jobs(
    work: Path, tmp_path: Path, tiny_base: Path, two_styles: Path
) -> None:
    fewer = Comparison(("teapot",), ("stripes",), ("direct", "duolora"))
    Run(tmp_path / "first", tiny_base, two_styles, bulk=True)(fewer)
    more = Comparison(("teapot",), ("stripes", "dots"), ("direct", "duolora"))
    second = Run(tmp_path / "second", tiny_base, two_styles, bulk=True)(more)
    made = {key for key, state in second.states.items() if state == "made"} - _closed_form(second)
    trained = {job.key for job in second.jobs.plan.trainings} & made
    assert trained == {"style-dots-lora"}
    assert all("dots" in key for key in made)


def test_a_job_that_fails_takes_along_what_needs_it_and_nothing_else(
    work: Path, tmp_path: Path, tiny_base: Path, two_styles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = engine.train_once

    def fails(kind: str, data: Path, concept: str, *rest: object, **settings: object) -> object:
        if concept == "dots":
            raise RuntimeError("out of memory")
        return train(kind, data, concept, *rest, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(engine, "train_once", fails)
    run = Run(tmp_path / "run", tiny_base, two_styles, bulk=True)(COMPARISON)
    failed = {key for key, state in run.states.items() if state == "failed"}
    plain = {"base-teapot+dots", "content-only-teapot+dots"}  # these need no adapter of dots
    assert failed == {key for key in run.states if "dots" in key} - plain
    errors = {one.key: one.error for one in engine.outcomes(run.samples)}
    assert errors["b4m-teapot+dots"] == (
        "merged-teapot+dots-b4m was not made: style-dots-b4m was not made: out of memory"
    )
    table = tmp_path / "outcomes.csv"
    assert engine.write_table([run.adapters, *run.samples], table) == len(failed)
    engine.check_table(table, fail=False)
    with pytest.raises(B4MError, match=rf"{len(failed)} of {len(run.states)} jobs failed"):
        engine.check_table(table, fail=True)


def test_without_bulk_the_first_failure_ends_the_task(
    work: Path, tmp_path: Path, tiny_base: Path, two_styles: Path
) -> None:
    run = Run(tmp_path / "run", tiny_base, tmp_path / "nowhere", bulk=False)
    with pytest.raises(B4MError, match="has no manifest"):
        run(COMPARISON)


def test_many_adapters_stay_in_the_working_folder_and_few_travel(
    work: Path, tmp_path: Path, tiny_base: Path, two_styles: Path
) -> None:
    comparison = Comparison(("teapot",), ("stripes",), ("duolora", "direct"))
    many = Run(tmp_path / "many", tiny_base, two_styles, bulk=True)(comparison)
    few = Run(tmp_path / "few", tiny_base, two_styles, bulk=False)(comparison)
    assert not list(many.adapters.glob("*.safetensors"))
    assert len(list(few.adapters.glob("*.safetensors"))) == 2
    for key in ("content-teapot-lora", "style-stripes-lora"):
        kept = engine.adapter_file(many.adapters, key)
        assert kept.is_relative_to(work)
        assert sha256(kept) == sha256(engine.adapter_file(few.adapters, key))
    # the folder in which all are collected holds links, not copies
    (trained,) = few.folder.glob("trained0/content-*.safetensors")
    assert trained.samefile(few.adapters / trained.name)
    assert many.images == few.images


def test_a_working_folder_that_is_not_shared_is_told(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "adapters"
    folder.mkdir()
    (folder / "content-cat-lora.json").write_text(json.dumps({"work": "adapters/0.safetensors"}))
    with pytest.raises(B4MError, match=r"must share one working folder \(B4M_WORK\)"):
        engine.adapter_file(folder, "content-cat-lora")


def test_settings_are_checked_before_anything_is_made() -> None:
    with pytest.raises(B4MError, match="'stepps'"):
        Jobs.of(COMPARISON, {"stepps": "3"}, {}, {})
    with pytest.raises(B4MError, match="density"):
        Jobs.of(COMPARISON, {}, {"density": "5"}, {})


def test_jobs_come_back_from_their_file_as_they_were(tmp_path: Path) -> None:
    jobs = Jobs.of(COMPARISON, {"b4m.rank": "4"}, {}, {"steps": "3"})
    jobs.write(tmp_path / "jobs")
    assert Jobs.read(tmp_path / "jobs") == jobs
    assert jobs.settings.train["b4m"] == {"b4m.rank": "4"}
    assert jobs.settings.train["lora"] == {}


def test_no_images_at_all_are_told_with_the_first_reason(tmp_path: Path) -> None:
    outcome = {"key": "a", "state": "failed", "seconds": 1.0, "error": "no such base"}
    (tmp_path / "outcomes.json").write_text(json.dumps([outcome]))
    with pytest.raises(B4MError, match="there are no images: no such base"):
        engine.sample_folders([tmp_path])
