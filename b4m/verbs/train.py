"""Train one adapter."""

import logging
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from b4m.data.names import canonical
from b4m.errors import B4MError
from b4m.io import check_output
from b4m.methods import training
from b4m.settings import DEFAULT_BASE, resolve
from b4m.training.settings import TrainSettings
from b4m.verbs.workspace import Values, check_dtype, copy_as, load, work_folder
from b4m.version import code_version

if TYPE_CHECKING:
    from b4m.training.run import Run

_log = logging.getLogger(__name__)


def train(
    kind: str,
    data: str | Path,
    concept: str,
    out: str | Path,
    method: str = "lora",
    base: str = DEFAULT_BASE,
    dtype: str = "float32",
    settings: Values = None,
) -> Path:
    """Train one low-rank adapter of a content or of a style.

    A training that was killed goes on where it stopped when the same command is given again. One
    that has been made before, by the same code from the same images with the same settings, is
    taken from runs/work (B4M_WORK) instead of being made again. Beside the adapter lies its
    resolved configuration, NAME.train.yaml, which `b4m train --config` starts again.

    Args:
        kind: what is learned: content, style or joint
        data: prepared folder (see prepare)
        concept: name of the content or style in it; for joint CONTENT+STYLE
        out: adapter file to write (.safetensors)
        method: lora, b4m (the break stage), blora or joint
        base: base model: a folder, a hub id or a single-file checkpoint
        dtype: of the written file: float32, float16 or bfloat16
        settings: what the method reads, by name

    Returns:
        `out`, which diffusers' `load_lora_weights` reads.

    Raises:
        B4MError: for an unknown method, kind, concept or setting, or unusable data.
    """
    train_once(kind, data, concept, Path(out), method, base, dtype, settings)
    return Path(out)


def train_once(
    kind: str,
    data: str | Path,
    concept: str,
    out: Path | None,
    method: str,
    base: str,
    dtype: str = "float32",
    settings: Values = None,
) -> tuple[Path, bool]:
    """`train`, for callers that take the adapter from the working folder.

    Args:
        kind: as in `train`
        data: as in `train`
        concept: as in `train`
        out: file to write and to record; None leaves the adapter in the working folder alone.
        method: as in `train`
        base: as in `train`
        dtype: of the written file
        settings: as in `train`

    Returns:
        The adapter in the working folder, and whether it had been made before.
    """
    way, overrides, folder = training(method), dict(settings or {}), Path(data)
    concept = canonical(concept)
    if kind not in {"content", "style", "joint"}:
        raise B4MError(f"unknown kind {kind!r}; choose content, style or joint")
    if (kind == "joint") != (method == "joint"):
        raise B4MError(f"kind {kind} does not go with method {method}; joint goes with joint")
    check_dtype(dtype)
    if out is not None:
        check_output(out, ".safetensors")
    check_output(work_folder() / "cache", folder=True)
    # a wrong setting is told before the base is loaded
    checked = resolve(way.settings, overrides, method=method, kind=kind)
    _check(kind, checked)
    from b4m.data.manifest import read_manifest
    from b4m.files import write_adapter
    from b4m.tracking import open_tracker
    from b4m.tracking.tracker import NullTracker
    from b4m.training.key import cache_path
    from b4m.training.memory import peak_memory
    from b4m.training.processes import is_first
    from b4m.training.run import Run

    rows = way.rows(read_manifest(folder), kind, concept)
    model = load(base, checked)
    resolved = resolve(way.settings, overrides, model.recipe.get("train"), method, kind)
    recorded = {"settings": resolved.model_dump(), "base": base, "concept": concept}
    name = f"{method}/{concept}/s{resolved.seed}"
    told = open_tracker(name, kind, method, recorded, watched=True)
    with told if is_first() else nullcontext(NullTracker()) as tracker:  # one tells for all
        run = Run(method, kind, concept, folder, rows, model, resolved, work_folder(), tracker)
        tracker.dataset(concept, run.data_hash, str(folder))
        finished = cache_path(run.workdir, run.key)
        reused = finished.is_file()
        if reused:
            _log.info("the same training was done before, %s is reused", finished)
            tracker.tags({"b4m.reused": finished.stem})
        else:
            _log.info("training %s on %s with %d images", name, model.id, len(run.trained()))
            write_adapter(finished, way.train(run))
            tracker.metrics(peak_memory())
        if out is not None:
            copy_as(finished, out, dtype)
            config = _write_config(out, run, base, dtype)
            tracker.files([out, config], "adapter")
    return finished, reused


def _check(kind: str, settings: TrainSettings) -> None:
    if kind == "style" and settings.restyle:
        raise B4MError("restyle is for contents: a style is what restyled copies would take away")


def _write_config(out: Path, run: "Run[TrainSettings]", base: str, dtype: str) -> Path:
    """What starts this training again, beside its adapter; the base's own values are in it."""
    from b4m.verbs.config import config_beside, write_config

    arguments = {
        "kind": run.kind,
        "method": run.training,
        "data": str(run.folder),
        "concept": run.concept,
        "out": str(out),
        "base": base,
        "dtype": dtype,
    }
    comments = {"b4m": code_version(), "base": run.base.hash, "data": run.data_hash}
    return write_config(config_beside(out), arguments | run.settings.model_dump(), comments)
