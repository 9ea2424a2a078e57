"""Adapters in MLflow's model registry: ordinary versions, and which one is the champion.

A version loads with `mlflow.pyfunc.load_model` and `mlflow.diffusers.load_model`. The newest one
has the alias `candidate`. The alias `champion` moves only to a version whose mean score lies above
the champion's interval, by the same measure; what cannot be compared moves nothing.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isnan
from pathlib import Path
from typing import Any

from b4m.io import sha256
from b4m.tracking.store import connect
from b4m.tracking.tracker import LONGEST_TAG, Tracker, cut

CANDIDATE, CHAMPION = "candidate", "champion"
_FILE = "b4m.adapter_sha256"


@dataclass(frozen=True)
class Score:
    """How good a version is.

    Attributes:
        mean: the larger the better.
        low: lower end of its interval; NaN without one.
        high: upper end.
        measure: what was measured, by which evaluator, on which data: equal texts can be compared.
    """

    mean: float
    low: float
    high: float
    measure: str

    def beats(self, champion: "Score") -> bool:
        """Whether it is better by more than the champion's interval."""
        top = champion.mean if isnan(champion.high) else champion.high
        return self.measure == champion.measure and self.mean > top


@dataclass(frozen=True)
class Usage:
    """How a version generates when its caller does not say: what its images were made with.

    Attributes:
        base: base model: a folder or a hub id.
        steps: sampling steps.
        guidance: scale of classifier-free guidance.
        width: of an image, in pixels.
        height: of an image, in pixels.
    """

    base: str
    steps: int
    guidance: float
    width: int
    height: int


@dataclass(frozen=True)
class Registered:
    """A version in the registry, and what became of the champion, in a sentence."""

    version: str
    verdict: str


def register(
    model: Path, name: str, usage: Usage, score: Score, tags: Mapping[str, str], run: Tracker
) -> Registered:
    """Make a version of a registered model; a candidate with these weights and score is kept.

    Args:
        model: folder with one adapter and its README.md.
        name: of the registered model; made if it is not there.
        usage: base and the defaults of generating.
        score: of this adapter.
        tags: further tags of the version; empty ones are left out.
        run: the run that it comes from.

    Raises:
        B4MError: if MLflow cannot be reached.
    """
    client, _ = connect()
    (weights,) = model.glob("*.safetensors")
    scored = {f"score.{key}": str(value) for key, value in asdict(score).items()}
    known = {**scored, _FILE: sha256(weights)}
    present = _alias(client, name, CANDIDATE)
    if present is not None and known.items() <= present.tags.items():
        version = str(present.version)
        return Registered(version, f"version {version} of {name} is this adapter already")
    source = _log(client, model, usage, run)
    _ensure(client, name)
    labels = {key: cut(value, LONGEST_TAG) for key, value in {**tags, **known}.items() if value}
    made = client.create_model_version(
        name,
        source.artifact_location,  # a models: address would be looked up in the global store
        run.run_id,
        tags=labels,
        description=(model / "README.md").read_text(encoding="utf-8"),
        model_id=source.model_id,
    )
    version = str(made.version)
    client.set_registered_model_alias(name, CANDIDATE, version)
    return Registered(version, _crown(client, name, version, score))


def champion(client: Any, name: str) -> tuple[str, Score] | None:
    """The champion's version and score; None if there is none yet."""
    found = _alias(client, name, CHAMPION)
    if found is None:
        return None
    numbers = {key: float(found.tags.get(f"score.{key}", "nan")) for key in ("mean", "low", "high")}
    return str(found.version), Score(**numbers, measure=found.tags.get("score.measure", ""))


def _log(client: Any, model: Path, usage: Usage, run: Tracker) -> Any:
    """The adapter as an MLflow model, the outcome of its run."""
    from b4m import torchvision_guard

    torchvision_guard.install()  # MLflow imports peft
    import mlflow.diffusers
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    # MLflow takes a path for a hub's id unless it begins at the root
    base = str(Path(usage.base).resolve()) if Path(usage.base).exists() else usage.base
    experiment = client.get_run(run.run_id).info.experiment_id
    logged = client.create_logged_model(experiment, "adapter", run.run_id, model_type="LoRA")
    saved = Model(logged.artifact_location, run.run_id, model_id=logged.model_id)
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/model"
        mlflow.diffusers.save_model(
            str(model), path, base, mlflow_model=saved, signature=_signature(usage)
        )
        client.log_model_artifacts(logged.model_id, path)
    client.finalize_logged_model(logged.model_id, "READY")
    client.log_outputs(run.run_id, [LoggedModelOutput(logged.model_id, step=0)])
    return logged


def _signature(usage: Usage) -> Any:
    """Prompts in, PNG files out; parameters default to what the scored images were made with."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    return ModelSignature(
        inputs=Schema([ColSpec(DataType.string, "prompt")]),
        outputs=Schema([ColSpec(DataType.binary, "image")]),
        params=ParamSchema(
            [
                ParamSpec("num_inference_steps", DataType.integer, usage.steps),
                ParamSpec("guidance_scale", DataType.double, usage.guidance),
                ParamSpec("height", DataType.integer, usage.height),
                ParamSpec("width", DataType.integer, usage.width),
                ParamSpec("negative_prompt", DataType.string, ""),
            ]
        ),
    )


def _ensure(client: Any, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _alias(client: Any, name: str, alias: str) -> Any:
    """The version with an alias; None if there is none, or no such model."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None


def _crown(client: Any, name: str, version: str, score: Score) -> str:
    """Move the champion's alias if the version has earned it, and say so or why not."""
    present = champion(client, name)
    if present is None:
        client.set_registered_model_alias(name, CHAMPION, version)
        return f"version {version} is the first champion of {name}"
    former, other = present
    if score.measure != other.measure:
        return f"version {former} stays champion of {name}: {version} was measured differently"
    if not score.beats(other):
        return (
            f"version {former} stays champion of {name}: {version} has {score.mean:.3f}, which is "
            f"not above its {other.mean:.3f} ({other.low:.3f} to {other.high:.3f})"
        )
    client.set_registered_model_alias(name, CHAMPION, version)
    return f"version {version} is champion of {name} after {former}"
