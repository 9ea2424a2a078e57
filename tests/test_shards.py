"""A plan shared out among tasks: every job once, in a bounded number of tasks."""

import json
from collections import Counter
from dataclasses import asdict

import pytest

from b4m.errors import B4MError
from b4m.plan import Comparison, Plan, plan
from b4m.shards import LISTS, Shard, merges_of, samples_of, shards, trainings_of

ALL = ("b4m", "duolora", "klora", "joint", "svd")


def _plan(count: int = 3, methods: tuple[str, ...] = ALL) -> Plan:
    contents = tuple(f"content{number}" for number in range(count))
    styles = tuple(f"style{number}" for number in range(count))
    return plan(Comparison(contents, styles, methods))


def _everything(jobs: Plan, most: int) -> list[Shard]:
    return [shard for of in LISTS for shard in shards(jobs, of, most)]


@pytest.mark.parametrize("most", [0, 1, 2, 7, 1000])
def test_every_job_is_in_exactly_one_shard(most: int) -> None:
    jobs = _plan()
    parts = _everything(jobs, most)
    done = Counter(
        job
        for shard in parts
        for job in (*trainings_of(jobs, shard), *merges_of(jobs, shard), *samples_of(jobs, shard))
    )
    assert set(done.values()) == {1}
    assert set(done) == {*jobs.trainings, *jobs.merges, *jobs.samples}


@pytest.mark.parametrize("most", [0, 2])
def test_a_shard_of_merges_has_all_that_its_samples_need(most: int) -> None:
    jobs = _plan()
    trained = {job.key for job in jobs.trainings}
    for shard in _everything(jobs, most):
        there = {job.key for job in merges_of(jobs, shard)} or trained
        assert all(set(job.adapters) <= there for job in samples_of(jobs, shard))


def test_learned_and_closed_form_merges_never_share_a_task() -> None:
    jobs = _plan()
    for of in ("closed_form", "learned"):
        for shard in shards(jobs, of, 2):
            assert {job.learned for job in merges_of(jobs, shard)} == {of == "learned"}


def test_a_hundred_by_a_hundred_pairs_take_no_more_tasks_than_asked_for() -> None:
    jobs = _plan(100, ("b4m", "duolora", "direct"))
    assert len(jobs.trainings) == 400
    assert len(jobs.merges) == 30_000
    for of in LISTS:
        parts = shards(jobs, of, 64)
        sizes = {part.end - part.first for part in parts}
        assert len(parts) == 64
        assert max(sizes) - min(sizes) <= 1
        # what a server hands from task to task stays small, however many jobs there are
        assert len(json.dumps([asdict(part) for part in parts])) < 20_000


def test_one_more_style_adds_one_training_and_its_own_pairs_alone() -> None:
    methods = ("duolora", "direct")
    before = plan(Comparison(("a", "b"), ("x", "y"), methods))
    after = plan(Comparison(("a", "b"), ("x", "y", "z"), methods))
    assert [job.key for job in set(after.trainings) - set(before.trainings)] == ["style-z-lora"]
    added = set(after.merges) - set(before.merges)
    assert {(job.content, job.style) for job in added} == {("a", "z"), ("b", "z")}
    assert len(added) == 4
    assert set(before.merges) <= set(after.merges)


def test_a_list_without_jobs_gives_one_task_that_does_nothing() -> None:
    """A loop over nothing fails on a server when its outputs are collected."""
    jobs = _plan(methods=("svd",))
    assert shards(jobs, "learned") == [Shard("nothing", "learned", 0, 0)]
    assert merges_of(jobs, shards(jobs, "learned")[0]) == ()
    assert samples_of(jobs, shards(jobs, "learned")[0]) == ()


def test_a_plan_comes_back_from_json_as_it_was() -> None:
    jobs = _plan()
    assert Plan.from_dict(json.loads(json.dumps(jobs.as_dict()))) == jobs


def test_an_unknown_list_and_a_negative_number_are_refused() -> None:
    with pytest.raises(B4MError, match="unknown list of jobs 'merges'"):
        shards(_plan(), "merges")
    with pytest.raises(B4MError, match="tasks=-1 must be 0 or more"):
        shards(_plan(), "learned", -1)


@pytest.mark.parametrize("name", ['say "hi"', "a/b", "a\\b", "two\nlines"])
def test_a_name_that_breaks_a_files_name_or_a_servers_template_is_refused(name: str) -> None:
    with pytest.raises(B4MError, match="cannot be part of a file's name"):
        Comparison((name,), ("ink",), ("direct",))
    with pytest.raises(B4MError, match="cannot be part of a file's name"):
        Comparison(("cat",), (name,), ("direct",))
