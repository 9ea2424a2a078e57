"""Draw: prompts of a prepared folder, adapters put together, a folder of pictures."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from b4m.config import DEFAULT_BASE, SampleSettings, resolve
from b4m.data.captions import merged_caption
from b4m.data.manifest import read_manifest
from b4m.errors import B4MError
from b4m.methods import SAMPLERS
from b4m.verbs.workspace import Settings, loaded, sha256_of

if TYPE_CHECKING:
    from b4m.adapters.adapter import Adapter
    from b4m.bases.sdxl.load import Base


def sample(
    out: str | Path,
    adapter: Sequence[str | Path] = (),
    data: str | Path = "",
    prompt: Sequence[str] = (),
    seed: Sequence[int] = (0,),
    label: str = "",
    combine: str = "direct",
    base: str = DEFAULT_BASE,
    settings: Settings = None,
    content: str = "",
    style: str = "",
) -> Path:
    """Draw pictures with an adapter, with several at once, or with the base alone.

    Args:
        out: folder to write: samples.csv and images/
        adapter: adapter files; none draws with the base alone
        data: prepared folder, which gives the prompts when none is given
        prompt: what to draw
        seed: one picture per prompt and seed; the same seed is the same noise for every method
        label: name of these pictures in the report; made from the adapter if left out
        combine: how several adapters act together: direct, or klora for two (content, style)
        base: base model: a folder, a hub id or a single-file checkpoint
        settings: see the settings below
        content: of a prepared folder with several contents, draw this one
        style: of a prepared folder with several styles, draw this one

    Returns:
        `out`.

    Raises:
        B4MError: for unreadable files, an adapter of another base, or nothing to draw.
    """
    from b4m.bases.sdxl.sample import sample as draw
    from b4m.evaluate.samples import write_samples
    from b4m.files.adapter_files import read_adapter

    files = [Path(file) for file in adapter]
    adapters = [read_adapter(file) for file in files]
    given = dict(settings or {})
    jobs = [(text, *_concepts_of(adapters)) for text in prompt] or _prompts_of(data, content, style)
    model = loaded(base, given)
    wanted = resolve(SampleSettings, given, model.parameters)
    deltas, hook = _together(adapters, combine, model, wanted)
    images = draw(
        model,
        [text for text, _, _ in jobs],
        list(seed),
        deltas=deltas,
        steps=wanted.steps,
        guidance=wanted.guidance,
        negative=wanted.negative,
        step_hook=hook,
        batch_size=wanted.batch_size,
    )
    name = _method_of(adapters, combine)
    hashes = "+".join(sha256_of(file)[:16] for file in files)
    rows = [
        {
            "label": label or name,
            "method": name,
            "content": of_content,
            "style": of_style,
            "prompt": text,
            "seed": number,
            "steps": wanted.steps,
            "guidance": wanted.guidance,
            "base_id": model.id,
            "base_hash": model.hash,
            "adapter_hash": hashes,
        }
        for text, of_content, of_style in jobs
        for number in seed
    ]
    about = {hashes: {"files": [asdict(one.metadata) for one in adapters]}} if files else {}
    return write_samples(Path(out), rows, images, about)


def _concepts_of(adapters: Sequence["Adapter"]) -> tuple[str, str]:
    """Content and style that the adapters know, as far as their files say."""
    content = next((a.metadata.content for a in adapters if a.metadata.content), "")
    return content, next((a.metadata.style for a in adapters if a.metadata.style), "")


def _prompts_of(
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


def _method_of(adapters: Sequence["Adapter"], combine: str) -> str:
    """Name of what draws: "base", "content only", "direct", "b4m", ..."""
    if not adapters:
        return "base"
    if len(adapters) > 1:
        return combine
    told = adapters[0].metadata
    return f"{told.stage} only" if told.stage in {"content", "style"} else told.method or "adapter"


def _together(
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
