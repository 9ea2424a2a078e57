"""Make one adapter of two."""

from dataclasses import asdict
from pathlib import Path

from b4m.config import DEFAULT_BASE, MergeSettings, resolve
from b4m.errors import B4MError
from b4m.verbs.workspace import Settings, parameters_of, work_folder


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
    from b4m.files.adapter_files import read_adapter, write_adapter
    from b4m.merging.context import MergeContext, require_same_base
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
