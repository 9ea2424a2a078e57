"""What `b4m sample` draws, and with what: prompts of a prepared folder, adapters put together."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from b4m.config import SampleSettings
from b4m.data.captions import merged_caption
from b4m.data.manifest import read_manifest
from b4m.errors import B4MError
from b4m.methods import SAMPLERS

if TYPE_CHECKING:
    from b4m.adapters.files import Adapter
    from b4m.sdxl.load import Base


def concepts_of(adapters: Sequence["Adapter"]) -> tuple[str, str]:
    """Content and style that the adapters know, as far as their files say."""
    content = next((a.metadata.content for a in adapters if a.metadata.content), "")
    return content, next((a.metadata.style for a in adapters if a.metadata.style), "")


def prompts_of(
    data: str | Path, content_name: str = "", style_name: str = ""
) -> list[tuple[str, str, str]]:
    """Prompt, content and style of every pair in a prepared folder, or of the pairs asked for."""
    if not str(data):
        raise B4MError("nothing to draw: give a prompt, or a prepared folder that has them")
    rows = [row for row in read_manifest(Path(data)) if row.role == "train"]
    contents = {row.concept: row.class_word for row in rows if row.kind == "content"}
    styles = list(dict.fromkeys(row.concept for row in rows if row.kind == "style"))
    if not contents or not styles:
        raise B4MError(f"{data} holds no pair of a content and a style; give a prompt")
    jobs = [
        (merged_caption(word), content, style)
        for content, word in contents.items()
        for style in styles
        if content_name in ("", content) and style_name in ("", style)
    ]
    if not jobs:
        asked = f"{content_name or 'any content'} in {style_name or 'any style'}"
        raise B4MError(
            f"{data} has no {asked}; it has {', '.join(contents)} and {', '.join(styles)}"
        )
    return jobs


def method_of(adapters: Sequence["Adapter"], combine: str) -> str:
    """Name of what draws: "base", "content only", "direct", "b4m", ..."""
    if not adapters:
        return "base"
    if len(adapters) > 1:
        return combine
    told = adapters[0].metadata
    return f"{told.stage} only" if told.stage in {"content", "style"} else told.method or "adapter"


def together(
    adapters: Sequence["Adapter"], combine: str, base: "Base", settings: SampleSettings
) -> tuple[Any, Any]:
    """What hangs on the UNet while drawing, and the hook that changes it step by step."""
    if combine in SAMPLERS:
        if len(adapters) != 2:
            raise B4MError(f"{combine} needs two adapters, content and style, not {len(adapters)}")
        return SAMPLERS[combine](adapters[0], adapters[1], base, settings)
    if combine != "direct":
        known = ", ".join(["direct", *SAMPLERS])
        raise B4MError(f"unknown way to combine {combine!r}; known: {known}")
    if not adapters:
        return None, None
    scaled = [
        replace(one, layers={name: pair.scale(settings.scale) for name, pair in one.layers.items()})
        for one in adapters
    ]
    total = scaled[0]
    for other in scaled[1:]:
        layers = dict(total.layers)
        for name, pair in other.layers.items():
            layers[name] = layers[name] + pair if name in layers else pair
        total = replace(total, layers=layers)
    return total, None
