"""The registry: versions as MLflow knows them, a champion that only a better one replaces."""

import shutil
from math import nan
from pathlib import Path

import pytest

from b4m import tracking
from b4m.tracking.registry import Registered, Score, Usage, champion, register
from tests.tracking.conftest import client

MEASURE = "clip_i_truth by mini on references and prompts 0123"
USAGE = Usage("/models/base", steps=3, guidance=2.0, width=32, height=48)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database: MLflow takes seconds to make one."""
    folder = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    client(uri).create_experiment("b4m", artifact_location=(folder / "artifacts").as_uri())
    return folder / "mlflow.db"


@pytest.fixture
def store(tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    copied = shutil.copy(database, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{copied}")
    monkeypatch.delenv("B4M_TRACKING", raising=False)
    return f"sqlite:///{copied}"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with some weights and a card."""
    import torch
    from safetensors.torch import save_file

    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"weight": torch.zeros(2)}, folder / "pytorch_lora_weights.safetensors")
    (folder / "README.md").write_text("# cat in ink\n")
    return folder


def _register(model: Path, mean: float, half: float = 0.05, measure: str = MEASURE) -> Registered:
    low, high = (mean - half, mean + half) if half else (nan, nan)
    with tracking.open_tracker("register/cat", "register") as run:
        score = Score(mean, low, high, measure)
        return register(model, "cat", USAGE, score, {"b4m.licence": "CC0-1.0", "no": ""}, run)


def _champion(store: str) -> str:
    found = champion(client(store), "cat")
    assert found is not None
    return found[0]


def test_the_champion_is_replaced_only_beyond_its_interval(store: str, model: Path) -> None:
    first = _register(model, 0.70)
    assert first == Registered("1", "version 1 is the first champion of cat")
    steps = [
        (0.60, MEASURE, "1", "not above"),
        (0.74, MEASURE, "1", "0.740, which is not above its 0.700 (0.650 to 0.750)"),
        (0.99, "another measure", "1", "measured differently"),
        (0.76, MEASURE, "5", "version 5 is champion of cat after 1"),
    ]
    for mean, measure, expected, verdict in steps:
        done = _register(model, mean, measure=measure)
        assert verdict in done.verdict
        assert _champion(store) == expected
        newest = client(store).get_model_version_by_alias("cat", "candidate")
        assert str(newest.version) == done.version


def test_a_champion_without_an_interval_is_replaced_by_a_higher_mean(
    store: str, model: Path
) -> None:
    _register(model, 0.70, half=0)
    assert "stays champion" in _register(model, 0.69, half=0).verdict
    _register(model, 0.71, half=0)
    assert _champion(store) == "3"


def test_a_version_says_what_it_is_and_where_it_came_from(
    store: str, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = _register(model, 0.70).version
    found = client(store).get_model_version("cat", version)
    assert found.description == "# cat in ink\n"
    assert found.tags["b4m.licence"] == "CC0-1.0"
    assert found.tags["score.measure"] == MEASURE
    assert float(found.tags["score.mean"]) == 0.70
    run = client(store).get_run(found.run_id)
    assert run.data.tags["b4m.stage"] == "register"
    assert "no" not in found.tags


def test_a_version_generates_as_its_scored_images_were(store: str, model: Path) -> None:
    import mlflow

    _register(model, 0.70)
    signature = mlflow.models.get_model_info("models:/cat@champion").signature
    defaults = {param.name: param.default for param in signature.params.params}
    assert defaults == {
        "num_inference_steps": 3,
        "guidance_scale": 2.0,
        "height": 48,
        "width": 32,
        "negative_prompt": "",
    }


def test_a_task_that_is_tried_again_registers_nothing_twice(store: str, model: Path) -> None:
    _register(model, 0.70)
    again = _register(model, 0.70)
    assert again == Registered("1", "version 1 of cat is this adapter already")
    assert len(client(store).search_model_versions("name='cat'")) == 1
    assert _register(model, 0.71).version == "2"
