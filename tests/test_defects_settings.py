"""Settings: what a review found wrong (D1, D3, D8); each test failed on the code of that day."""

import json
import shutil
from pathlib import Path

import diffusers
import pytest

from b4m import verbs
from b4m.bases.base import Base
from b4m.errors import B4MError
from b4m.files import read_adapter
from b4m.methods import TRAININGS, merge_rule, names, training
from b4m.plan import Comparison, plan
from b4m.verbs.compare import job_settings
from b4m.verbs.sample import settings_of

FAST = {"rank": 2, "steps": 2, "batch_size": 1, "accumulation": 1}


@pytest.fixture(autouse=True)
def _here(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("B4M_WORK", str(tmp_path_factory.mktemp("work")))
    monkeypatch.setenv("B4M_TRACKING", "off")


# D1


@pytest.fixture(params=["hub id", "single file"])
def place(
    request: pytest.FixtureRequest,
    tiny_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[str, Path]:
    """A base that is no folder: what a user calls it, and where diffusers finds its parts."""
    folder = Path(shutil.copytree(tiny_base, tmp_path / "tiny"))
    if request.param == "hub id":
        monkeypatch.setattr(diffusers.DiffusionPipeline, "download", lambda name: str(folder))
        return f"somebody/{tmp_path.name}", folder
    file = tmp_path / "tiny.safetensors"
    shutil.copyfile(next((folder / "unet").glob("*.safetensors")), file)
    pipeline = diffusers.StableDiffusionXLPipeline
    monkeypatch.setattr(
        pipeline, "from_single_file", lambda *_, **__: pipeline.from_pretrained(folder)
    )
    return str(file), folder


@pytest.mark.parametrize("recipe", [None, {"merge": {"b4m.lr": 0.5, "accumulation": 3}}])
def test_d1_a_merge_takes_the_recipe_that_the_loaded_base_brings(
    place: tuple[str, Path], prepared: Path, tmp_path: Path, recipe: dict | None
) -> None:
    name, folder = place
    if recipe is None:
        (folder / "b4m.json").unlink(missing_ok=True)
    else:
        (folder / "b4m.json").write_text(json.dumps({"recipe": recipe}))
    halves = [
        verbs.train(
            kind, prepared, concept, tmp_path / f"{kind}.safetensors", "b4m", name, settings=FAST
        )
        for kind, concept in (("content", "teapot"), ("style", "stripes"))
    ]
    out = tmp_path / "merged.safetensors"
    verbs.merge(halves, out, "b4m", base=name, data=prepared, settings={"steps": 0})
    settings = read_adapter(out).metadata.config["settings"]
    found = (settings["accumulation"], settings["batch_size"], settings["lr"])
    brought = (
        recipe is not None and "/" in name and not Path(name).exists()
    )  # a single file has no place for one
    assert found == ((3, 1, 0.5) if brought else (4, 1, 1e-4))


def test_d1_the_tiny_base_brings_only_settings_that_some_method_reads(base: Base) -> None:
    models = {
        "train": {way: training(way).settings for way in TRAININGS},
        "merge": {name: merge_rule(name).settings for name in names("file")},
        "sample": {way: settings_of(way) for way in ("direct", *names("images"))},
    }
    assert base.recipe.keys() <= models.keys()
    for verb, values in base.recipe.items():
        for key in values:
            scope, _, name = key.rpartition(".")
            read_by = [scope] if scope in models[verb] else list(models[verb])
            assert any(name in models[verb][each].model_fields for each in read_by), key


# D3, D8: before any file or base is looked for, so that none is needed here


NOWHERE = {"base": "nowhere", "data": "nowhere"}


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("b4m", {"rank": 4}),
        ("b4m", {"weights": "1, 0.5"}),
        ("direct", {"density": 0.3}),
        ("direct", {"steps": 10}),
        ("blora", {"similarity": 0.1}),
        ("ziplora", {"damping": 0.1}),
        ("svd", {"projection": "hard"}),
    ],
)
def test_d3_a_setting_that_a_merge_does_not_read_is_refused(
    method: str, settings: dict[str, object]
) -> None:
    (name,) = settings
    with pytest.raises(B4MError, match=f"^{method} has no setting '{name}'; "):
        verbs.merge(["a", "b"], "c.safetensors", method, settings=settings, **NOWHERE)


def test_d3_the_nearest_name_is_told() -> None:
    with pytest.raises(B4MError, match="'wieghts'; the nearest is weights"):
        verbs.merge(["a", "b"], "c.safetensors", "direct", settings={"wieghts": 1})
    with pytest.raises(B4MError, match="'batchsize'; the nearest is batch_size"):
        verbs.train("content", "d", "cat", "a.safetensors", settings={"batchsize": 1})


def test_d3_a_comparison_refuses_what_none_of_its_jobs_reads() -> None:
    jobs = plan(Comparison(("cat",), ("ink",), ("svd", "klora")))
    with pytest.raises(B4MError, match="no setting 'density'"):
        job_settings(jobs, {}, {"density": "0.5"}, {})
    with pytest.raises(B4MError, match="there is no 'b4m' here"):
        job_settings(jobs, {"b4m.lr_other": "1"}, {}, {})
    assert job_settings(jobs, {}, {"svd.rank": "3"}, {"klora.beta": "2"}).sample["klora"]


WRONG = [float("nan"), float("inf"), -1, "nan", "-inf", "1e999"]


@pytest.mark.parametrize("value", WRONG)
@pytest.mark.parametrize("way", TRAININGS)
def test_d8_wrong_numbers_of_a_training_are_told_before_a_base_is_loaded(
    way: str, value: object
) -> None:
    kind, concept = ("joint", "a+b") if way == "joint" else ("content", "a")
    for name in ("lr", "rank", "steps", "weight_decay"):
        with pytest.raises(B4MError, match=rf"^setting {name}=\S+ must be [^\n]+$"):
            verbs.train(
                kind, "nowhere", concept, "x.safetensors", way, "nowhere", settings={name: value}
            )


@pytest.mark.parametrize("method", names("file"))
def test_d8_wrong_numbers_of_a_merge_are_told_before_anything_is_read(method: str) -> None:
    fields = merge_rule(method).settings.model_fields
    numbers = [name for name, field in fields.items() if field.annotation in (int, float)]
    assert numbers
    for name in numbers:
        for value in WRONG:
            if name.endswith("_weight") and value == -1:
                continue  # the only numbers that may be negative
            with pytest.raises(B4MError, match=rf"^setting {name}=\S+ must be [^\n]+$"):
                verbs.merge(["a", "b"], "c.safetensors", method, settings={name: value}, **NOWHERE)


@pytest.mark.parametrize("way", ["direct", *names("images")])
def test_d8_wrong_numbers_of_sampling_are_told_before_a_base_is_loaded(way: str) -> None:
    for name in ("steps", "guidance", "batch_size"):
        for value in WRONG:
            with pytest.raises(B4MError, match=rf"^setting {name}=\S+ must be [^\n]+$"):
                verbs.sample("x", ["a", "b"], combine=way, settings={name: value}, base="nowhere")
