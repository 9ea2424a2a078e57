"""The end of a run: the best adapter with a card, as others load it."""

import io
from pathlib import Path

import pytest
import yaml
from PIL import Image

from b4m import verbs
from b4m.errors import B4MError
from b4m.io import sha256
from b4m.jobs import sample_folders
from b4m.plan import Comparison
from b4m.publish import publish, write_pages
from b4m.tracking import pipeline_step
from tests.test_jobs import Run

MODEL = "teapot-in-stripes"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_base: Path,
    tiny_evaluator: Path,
    prepared: Path,
) -> Run:
    """Everything before the end of a run, scores included."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("B4M_WORK", str(folder / "work"))
        patch.setenv("B4M_TRACKING", "off")
        comparison = Comparison(("teapot",), ("stripes",), ("svd",))
        done = Run(folder / "run", tiny_base, prepared, bulk=False)(comparison, {})
        images = [path for part in done.samples for path in part.glob("*-*")]
        verbs.evaluate(images, prepared, folder / "scores", str(tiny_evaluator))
    done.scores = folder / "scores"
    return done


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.delenv("B4M_TRACKING", raising=False)
    return uri


def _publish(run: Run, out: Path, name: str = "", minimum: float = 0.0) -> str:
    adapters = [*run.merged, run.adapters]
    return publish(
        run.folder / "jobs", run.data, run.samples, run.scores, adapters, out, name, minimum
    )


def test_the_card_is_one_that_the_hub_and_people_read(run: Run, tmp_path: Path) -> None:
    verdict = _publish(run, tmp_path / "model")
    best = verdict.split()[0]
    assert best in ("svd", "direct")
    text = (tmp_path / "model/README.md").read_text(encoding="utf-8")
    _, front, body = text.split("---\n", 2)
    facts = yaml.safe_load(front)
    assert facts["base_model"] == str(run.base)
    assert facts["library_name"] == "diffusers"
    assert facts["license_name"] == "CC0-1.0"
    assert facts["instance_prompt"] == facts["widget"][0]["text"]
    assert "snq" in facts["instance_prompt"]
    Image.open(tmp_path / "model" / facts["widget"][0]["output"]["url"]).load()
    assert "`snq` and `w@z`" in body
    assert "1 of the content, 5 of the style." in body
    for row in ("Base model", "Content adapter", "Style adapter"):
        assert f"| {row} | " in body
    tables = [line.count("|") for line in body.split("## Scores")[1].splitlines() if "|" in line]
    assert len(set(tables)) == 1  # no row is broken
    assert "{{" not in text
    assert "{%" not in text


def test_the_folder_is_one_that_diffusers_loads(run: Run, tmp_path: Path) -> None:
    from diffusers import StableDiffusionXLPipeline

    _publish(run, tmp_path / "model")
    pipeline = StableDiffusionXLPipeline.from_pretrained(str(run.base))
    pipeline.load_lora_weights(str(tmp_path / "model"))
    assert pipeline.get_active_adapters()


@pytest.mark.filterwarnings("ignore:`torch_dtype`:FutureWarning")  # MLflow's own call of diffusers
def test_a_registered_version_generates_images_through_mlflow(
    run: Run, tmp_path: Path, store: str
) -> None:
    import mlflow

    verdict = _publish(run, tmp_path / "model", MODEL)
    assert verdict.endswith(f"version 1 is the first champion of {MODEL}")
    mlflow.set_tracking_uri(store)
    loaded = mlflow.pyfunc.load_model(f"models:/{MODEL}@champion")
    (png,) = loaded.predict(
        {"prompt": ["a snq teapot in w@z style"]}, params={"num_inference_steps": 2}
    )
    assert Image.open(io.BytesIO(png)).size == (32, 32)
    adapter = mlflow.diffusers.load_model(f"models:/{MODEL}@candidate")
    assert Path(adapter.base_model) == run.base.resolve()
    assert loaded.get_raw_model().get_active_adapters() == ["default_0"]
    registered = Path(adapter.adapter_path)
    for name in ("README.md", "pytorch_lora_weights.safetensors"):
        assert sha256(registered / name) == sha256(tmp_path / "model" / name)


def test_what_is_below_the_minimum_is_not_registered(run: Run, tmp_path: Path, store: str) -> None:
    from mlflow import MlflowClient

    verdict = _publish(run, tmp_path / "model", MODEL, minimum=2.0)
    assert "is below 2.0, so it is not registered" in verdict
    assert (tmp_path / "model/verdict.txt").read_text().strip() == verdict
    assert MlflowClient(tracking_uri=store).search_registered_models() == []


def test_registering_where_nothing_is_recorded_is_refused(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("B4M_TRACKING", "off")
    with pytest.raises(B4MError, match="MLflow does not record"):
        _publish(run, tmp_path / "model", MODEL)


def test_the_runs_page_in_mlflow_shows_its_results(
    run: Run, tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("B4M_KFP_RUN_ID", "run-1")
    page, sheet = tmp_path / "page", tmp_path / "sheet"
    with pipeline_step() as parent:
        images = sample_folders(run.samples)
        write_pages(run.folder / "jobs", images, run.scores, run.data, page, sheet, parent)
    client = MlflowClient(tracking_uri=store)
    found = client.get_run(parent.run_id).data
    best = found.tags["b4m.best"]
    assert found.metrics[f"score/{best}"] == found.metrics["best/harmonic"]
    rows = {"base", "content only", "style only", "svd", "direct"}
    assert {name for name in found.metrics if name.startswith("score/")} == {
        f"score/{row}" for row in rows
    }
    note = found.tags["mlflow.note.content"]
    assert "holds content and style together best here" in note
    assert f"get-artifact?path=report%2Fcontact.png&run_uuid={parent.run_id}" in note
    (report,) = client.list_artifacts(parent.run_id)
    files = {each.path for each in client.list_artifacts(parent.run_id, report.path)}
    assert files == {"report/report.html", "report/contact.png"}
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    Image.open(sheet).load()
