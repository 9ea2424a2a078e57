"""A second run with one new image: what depends on it is made again, below its own parent."""

from pathlib import Path

import pytest

from b4m import verbs
from b4m.plan import Comparison
from b4m.tracking import pipeline_step
from tests.data.worlds import write_user_folder
from tests.test_jobs import Run
from tests.tracking.conftest import client

COMPARISON = Comparison(("teapot",), ("stripes", "dots"), ("duolora", "direct"))
WITHOUT_STYLE = {"base-teapot+stripes", "content-only-teapot+stripes"}


@pytest.mark.long
def test_one_new_image_makes_again_exactly_what_depends_on_it(
    tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("B4M_WORK", str(tmp_path / "work"))
    done, parents = {}, {}
    for run, images in (("first", 2), ("second", 3)):
        monkeypatch.setenv("B4M_KFP_RUN_ID", run)
        source = write_user_folder(tmp_path / "own", styles=images)  # of the style "stripes"
        with pipeline_step(run, last=True) as parent:
            data = verbs.prepare(source, tmp_path / run / "data", "teapot", "stripes,dots")
            done[run] = Run(tmp_path / run, tiny_base, data, bulk=False)(COMPARISON)
        parents[run] = parent.run_id
    assert set(done["first"].states.values()) == {"made"}
    plan = done["second"].jobs.plan
    closed_form = {job.key for job in plan.merges if not job.learned}
    made = {key for key, state in done["second"].states.items() if state == "made"}
    depending = {key for key in done["second"].states if "stripes" in key} - WITHOUT_STYLE
    assert made - closed_form == depending - closed_form
    assert "style-stripes-lora" in made
    changed = {
        name.partition("/")[0].partition("-")[2]
        for name, digest in done["second"].images.items()
        if done["first"].images[name] != digest
    }
    assert changed == {key for key in depending if key in {job.key for job in plan.samples}}

    runs = client(store).search_runs(["1"])
    children: dict[str, list[dict[str, str]]] = {run: [] for run in parents}
    for tags in (one.data.tags for one in runs if one.info.run_id not in parents.values()):
        children[tags["kfp.run_id"]].append(tags)
    for run, tags in children.items():
        assert {each["mlflow.parentRunId"] for each in tags} == {parents[run]}
        assert len(tags) == len(plan.trainings) + len(plan.merges)
    assert not [tags for tags in children["first"] if "b4m.reused" in tags]
    # content, the other style, and their learned merge
    assert len([tags for tags in children["second"] if "b4m.reused" in tags]) == 3
