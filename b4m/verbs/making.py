"""Make adapters: prepare pictures, train, merge."""

from dataclasses import asdict
from pathlib import Path

from b4m.config import DEFAULT_BASE, MergeSettings, TrainSettings, resolve
from b4m.errors import B4MError
from b4m.verbs.places import Settings, copy_whole, loaded, parameters_of, work_folder


def prepare(
    source: str | Path,
    out: str | Path,
    content: str = "",
    style: str = "",
    style_pictures: int = 5,
    partners: int = 3,
    seed: int = 0,
) -> Path:
    """Choose and caption the pictures of a content and a style.

    A user's folder has content/NAME and style/NAME with pictures, and beside a picture optionally
    its caption in a .txt file of the same name, which must hold the trigger word.

    Args:
        source: folder of an EmojiGrid, or your own folder with content/NAME and style/NAME
        out: folder to write: pictures and manifest.csv
        content: name of the content; several separated by commas; empty takes all of your own
        style: name of the style; several separated by commas; empty takes all of your own
        style_pictures: pictures that a style is trained on; further ones become references
        partners: pictures of the other kind that B4M's training is accompanied by
        seed: of every choice among pictures

    Returns:
        `out`.

    Raises:
        B4MError: for unknown names, damaged pictures, captions without their trigger.
    """
    from b4m.data.prepare import prepare as build

    return build(Path(source), Path(out), content, style, style_pictures, partners, seed)


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
    from b4m.adapters.files import write_adapter
    from b4m.data.manifest import data_hash, read_manifest
    from b4m.tracking import open_tracker
    from b4m.train.shelf import place, used_rows

    folder = Path(data)
    pictures = data_hash(folder, used_rows(read_manifest(folder), kind, concept, method))
    given = dict(settings or {})
    resolve(TrainSettings, given)  # a wrong setting is told before the base is loaded
    model = loaded(base, given)
    wanted = resolve(TrainSettings, given, model.parameters)
    shelf = place(
        work_folder(), method, kind, concept, asdict(wanted), model.hash, str(model.dtype), pictures
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


def merge(
    content: str | Path,
    style: str | Path,
    out: str | Path,
    method: str = "direct",
    base: str = DEFAULT_BASE,
    data: str | Path = "",
    settings: Settings = None,
) -> Path:
    """Make one adapter of a content adapter and a style adapter.

    The result is always one ordinary LoRA file. Files of other tools are read too (kohya, PEFT,
    ComfyUI), of any rank and alpha.

    Args:
        content: content adapter
        style: style adapter
        out: adapter file to write (.safetensors)
        method: direct, svd, ties, dare, nplora, blora, ziplora, duolora or b4m (the make stage)
        base: base model; only methods that learn load it
        data: prepared folder; only methods that learn need it
        settings: see the settings below

    Returns:
        `out`.

    Raises:
        B4MError: for an unknown method or setting, unreadable files, or files of two bases.
    """
    from b4m.methods import MERGES, SAMPLERS

    if method in SAMPLERS:
        raise B4MError(
            f"{method} chooses anew at every step, so it has no file: give both adapters to "
            f"`b4m sample --adapter CONTENT STYLE --combine {method}`"
        )
    merging = MERGES[method]
    from b4m.adapters.files import read_adapter, write_adapter
    from b4m.methods.context import MergeContext, require_same_base
    from b4m.tracking import open_tracker

    parts = read_adapter(Path(content)), read_adapter(Path(style))
    require_same_base(*parts)
    wanted = resolve(MergeSettings, dict(settings or {}), parameters_of(base))
    names = [part.metadata.concept or "?" for part in parts]
    told = {"settings": asdict(wanted), "base": base}
    with open_tracker(f"{method}/{'+'.join(names)}/s{wanted.seed}", "merge", method, told) as run:
        context = MergeContext(
            base_id=base,
            settings=wanted,
            data_dir=Path(data) if str(data) else None,
            workdir=work_folder(),
            tracker=run,
        )
        write_adapter(Path(out), merging(*parts, context))
        run.files([Path(out)], "adapter")
    return Path(out)
