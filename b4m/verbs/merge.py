"""Make one adapter of several."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from b4m.errors import B4MError
from b4m.io import check_output
from b4m.methods import merge_rule
from b4m.methods import method as method_row
from b4m.settings import DEFAULT_BASE, Overrides, resolve
from b4m.verbs.workspace import Values, check_dtype, copy_as, load, work_folder

if TYPE_CHECKING:
    from b4m.adapters.adapter import Adapter
    from b4m.bases.base import Base
    from b4m.merging.context import MergeContext


def merge(
    adapters: Sequence[str | Path],
    out: str | Path,
    method: str = "direct",
    base: str = DEFAULT_BASE,
    data: str | Path = "",
    dtype: str = "float32",
    settings: Values = None,
) -> Path:
    """Make one adapter of a content adapter and a style adapter, or of more than two.

    The result is always one ordinary LoRA file. Files of other tools are read too (kohya, PEFT,
    ComfyUI), of any rank and alpha, and by methods that do not learn those of any base. A learned
    merge that has been made before, by the same code from the same files and images with the same
    settings, is taken from runs/work (B4M_WORK).

    Args:
        adapters: adapter files, the content first and the style last
        out: adapter file to write (.safetensors)
        method: name of the method
        base: base model; only methods that learn load it
        data: prepared folder; only methods that learn need it
        dtype: of the written file: float32, float16 or bfloat16
        settings: what the method reads, by name

    Returns:
        `out`.

    Raises:
        B4MError: for an unknown method or setting, unreadable files, or files of two bases.
    """
    merge_once(adapters, Path(out), method, base, data, dtype, settings)
    return Path(out)


def merge_once(
    adapters: Sequence[str | Path],
    out: Path | None,
    method: str,
    base: str,
    data: str | Path = "",
    dtype: str = "float32",
    settings: Values = None,
) -> tuple[Path, bool]:
    """`merge`, for callers that take a learned merge from the working folder.

    A closed-form merge is made anew each time: that takes less time than keeping it takes space.

    Args:
        adapters: as in `merge`
        out: file to write and to record; None leaves a learned merge in the working folder alone.
        method: as in `merge`
        base: as in `merge`
        data: as in `merge`
        dtype: of the written file
        settings: as in `merge`

    Returns:
        The adapter, of a learned merge that in the working folder, and whether it had been made
        before.
    """
    files = [Path(file) for file in adapters]
    rule, overrides = merge_rule(method, len(files)), dict(settings or {})
    check_dtype(dtype)
    if out is not None:
        check_output(out, ".safetensors")
    resolve(rule.settings, overrides, method=method)  # a wrong one is told before anything is read
    from b4m.files import read_together, write_adapter
    from b4m.merging.context import require_same_base
    from b4m.tracking import open_tracker
    from b4m.training.key import cache_path

    read = read_together(files)
    require_same_base(read)
    context = merge_context(method, overrides, base, data)
    values = context.settings.model_dump()
    concepts = "+".join(adapter.metadata.concept or "?" for adapter in read)
    recorded = {"settings": values, "base": base}
    name = f"{method}/{concepts}/s{values.get('seed', 0)}"
    with open_tracker(name, "merge", method, recorded) as tracker:
        context = replace(context, tracker=tracker)
        if context.loaded is None:
            reused = False
            merged = rule.merge(read, context)
            finished = write_adapter(_named(out, method), merged, dtype=dtype)
        else:
            rule.check(context.loaded)
            finished = cache_path(context.workdir, _key(method, files, read, context))
            reused = finished.is_file()
            if reused:
                tracker.tags({"b4m.reused": finished.stem})
            else:
                write_adapter(finished, rule.merge(read, context))
            if out is not None:
                copy_as(finished, out, dtype)
        if out is not None:
            tracker.files([out], "adapter")
    return finished, reused


def merge_context(
    method: str, overrides: Overrides, base: "Base | str", data: str | Path
) -> "MergeContext[Any]":
    """What a merge is given besides its adapters; loads the base if the method learns.

    Raises:
        B4MError: for an unknown method or setting, or a base that does not load.
    """
    from b4m.merging.context import MergeContext

    read, model = merge_rule(method).settings, None
    if method_row(method).learned:
        checked = resolve(read, overrides, method=method)
        model = load(base, checked) if isinstance(base, str) else base
    return MergeContext(
        settings=resolve(read, overrides, model.recipe.get("merge") if model else {}, method),
        loaded=model,
        data=Path(data) if str(data) else None,
        workdir=work_folder(),
    )


def _named(out: Path | None, method: str) -> Path:
    if out is None:
        raise B4MError(f"{method} is not kept in the working folder; say where to write it")
    return out


def _key(
    method: str, files: Sequence[Path], adapters: Sequence["Adapter"], context: "MergeContext[Any]"
) -> str:
    """Hash of all that decides a learned merge: files, images, base, settings, code."""
    from b4m.data.manifest import data_hash, read_manifest
    from b4m.io import sha256
    from b4m.merging.teacher_bank import concepts_of
    from b4m.training.key import key

    rows = [
        row
        for row in read_manifest(context.folder)
        for kind, concept in concepts_of(adapters)
        if row.role == "train" and row.kind == kind and concept in ("", row.concept)
    ]
    base = context.base
    return key(
        "merge",
        method,
        context.settings,
        [sha256(file) for file in files],
        data_hash(context.folder, rows),
        [row.class_word for row in rows],
        base.hash,
        str(base.dtype),
    )
