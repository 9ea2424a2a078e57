"""Make one adapter of two."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from b4m.io import check_output
from b4m.methods import merge_rule
from b4m.methods import method as method_row
from b4m.settings import DEFAULT_BASE, Overrides, resolve
from b4m.verbs.workspace import Values, load, work_folder

if TYPE_CHECKING:
    from b4m.bases.base import Base
    from b4m.merging.context import MergeContext


def merge(
    content: str | Path,
    style: str | Path,
    out: str | Path,
    method: str = "direct",
    base: str = DEFAULT_BASE,
    data: str | Path = "",
    dtype: str = "float32",
    settings: Values = None,
) -> Path:
    """Make one adapter of a content adapter and a style adapter.

    The result is always one ordinary LoRA file. Files of other tools are read too (kohya, PEFT,
    ComfyUI), of any rank and alpha, and by methods that do not learn those of any base.

    Args:
        content: content adapter
        style: style adapter
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
    rule, overrides = merge_rule(method), dict(settings or {})
    check_output(Path(out), ".safetensors")
    resolve(rule.settings, overrides, method=method)  # a wrong one is told before anything is read
    from b4m.files import read_together, write_adapter
    from b4m.merging.context import require_same_base
    from b4m.tracking import open_tracker

    first, second = read_together([content, style])
    require_same_base(first, second)
    context = merge_context(method, overrides, base, data)
    values = context.settings.model_dump()
    concepts = "+".join(adapter.metadata.concept or "?" for adapter in (first, second))
    recorded = {"settings": values, "base": base}
    name = f"{method}/{concepts}/s{values.get('seed', 0)}"
    with open_tracker(name, "merge", method, recorded) as tracker:
        merged = rule.merge(first, second, replace(context, tracker=tracker))
        write_adapter(Path(out), merged, dtype=dtype)
        tracker.files([Path(out)], "adapter")
    return Path(out)


def merge_context(
    method: str, overrides: Overrides, base: "Base | str", data: str | Path
) -> "MergeContext[Any]":
    """What a merge is given besides its adapters; loads the base if the method learns.

    Raises:
        B4MError: for an unknown method or setting, or a base that does not load.
    """
    from b4m.merging.context import MergeContext

    model = None
    if method_row(method).learned:
        model = load(base, overrides) if isinstance(base, str) else base
    recipe = model.recipe.get("merge") if model else {}
    return MergeContext(
        settings=resolve(merge_rule(method).settings, overrides, recipe, method),
        loaded=model,
        data=Path(data) if str(data) else None,
        workdir=work_folder(),
    )
