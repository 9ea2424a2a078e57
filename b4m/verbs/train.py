"""Train one adapter."""

from dataclasses import asdict
from pathlib import Path

from b4m.config import DEFAULT_BASE, TrainSettings, resolve
from b4m.errors import B4MError
from b4m.verbs.workspace import Settings, copy_whole, loaded, work_folder


def train(
    kind: str,
    data: str | Path,
    concept: str,
    out: str | Path,
    method: str = "lora",
    base: str = DEFAULT_BASE,
    settings: Settings = None,
) -> Path:
    """Train one low-rank adapter of a content or of a style.

    A training that was killed goes on where it stopped when the same command is given again. One
    that has been made before, by the same code from the same pictures with the same settings, is
    taken from runs/work (B4M_WORK) instead of being made again.

    Args:
        kind: what is learned: content, style or joint
        data: prepared folder (see prepare)
        concept: name of the content or style in it; for joint CONTENT+STYLE
        out: adapter file to write (.safetensors)
        method: lora, b4m (the break stage), blora or joint
        base: base model: a folder, a hub id or a single-file checkpoint
        settings: see the settings below

    Returns:
        `out`, which diffusers' `load_lora_weights` reads.

    Raises:
        B4MError: for an unknown method, kind, concept or setting, or unusable data.
    """
    from b4m.methods import TRAINERS

    if kind not in {"content", "style", "joint"}:
        raise B4MError(f"unknown kind {kind!r}; choose content, style or joint")
    if (kind == "joint") != (method == "joint"):
        raise B4MError(f"kind {kind} does not go with method {method}; joint goes with joint")
    trainer = TRAINERS[method]
    from b4m.data.manifest import data_hash, read_manifest
    from b4m.files.adapter_files import write_adapter
    from b4m.tracking import open_tracker
    from b4m.train.adapter_cache import place, rows_used

    folder = Path(data)
    images = data_hash(folder, rows_used(read_manifest(folder), kind, concept, method))
    given = dict(settings or {})
    resolve(TrainSettings, given)  # a wrong setting is told before the base is loaded
    model = loaded(base, given)
    wanted = resolve(TrainSettings, given, model.parameters)
    shelf = place(
        work_folder(), method, kind, concept, asdict(wanted), model.hash, str(model.dtype), images
    )
    told = {"settings": asdict(wanted), "base": base, "concept": concept}
    with open_tracker(f"{method}/{concept}/s{wanted.seed}", kind, method, told) as tracker:
        if shelf.is_file():
            tracker.tags({"b4m.reused": shelf.stem})
        else:
            made = trainer(kind, folder, concept, model, wanted, work_folder(), tracker)
            write_adapter(shelf, made)
        copy_whole(shelf, Path(out))
        tracker.files([Path(out)], "adapter")
    return Path(out)
