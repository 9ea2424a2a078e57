"""Generate images: prompts of a prepared folder, adapters put together, a folder of images."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import reduce
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING, Any

from b4m.data.names import canonical
from b4m.errors import B4MError
from b4m.io import sha256
from b4m.methods import names, sampler
from b4m.plan import SUM
from b4m.settings import DEFAULT_BASE, SEEDS, SampleSettings, Settings, resolve
from b4m.verbs.workspace import Values, load

if TYPE_CHECKING:
    from b4m.adapters.adapter import Adapter
    from b4m.bases.base import Base


def sample(
    out: str | Path,
    adapter: Sequence[str | Path] = (),
    data: str | Path = "",
    prompt: Sequence[str] = (),
    seed: Sequence[int] = (0,),
    label: str = "",
    combine: str = SUM,
    base: str = DEFAULT_BASE,
    settings: Values = None,
    content: str = "",
    style: str = "",
) -> Path:
    """Generate images with an adapter, with several at once, or with the base alone.

    Args:
        out: folder to write: samples.csv and images/
        adapter: adapter files; none samples the base alone
        data: prepared folder, which gives the prompts when none is given
        prompt: what to show
        seed: one image per prompt and seed; the same seed is the same noise for every method
        label: name of these images in the report; made from the adapter if left out
        combine: how several adapters act together: direct, or klora for two (content, style)
        base: base model: a folder, a hub id or a single-file checkpoint
        settings: what sampling in this way reads, by name
        content: of a prepared folder with several contents, this one
        style: of a prepared folder with several styles, this one

    Returns:
        `out`.

    Raises:
        B4MError: for unreadable files, an adapter of another base, or no prompt.
    """
    overrides = dict(settings or {})
    check_seeds(seed)
    check_each_once("prompt", prompt)
    model_of_settings = settings_of(combine)
    checked = resolve(model_of_settings, overrides, method=combine)
    from b4m.bases.sampling import sample as generate
    from b4m.evaluation.samples import check_samples_place, write_samples
    from b4m.files import read_adapter

    check_samples_place(Path(out))
    files = [Path(file) for file in adapter]
    adapters = [read_adapter(file) for file in files]
    jobs = [(text, *_concepts(adapters)) for text in prompt] or _prompts(
        data, canonical(content), canonical(style)
    )
    model = load(base, checked)
    resolved = resolve(model_of_settings, overrides, model.recipe.get("sample"), combine)
    deltas, hook = _combined(adapters, combine, model, resolved)
    images = generate(
        model,
        [text for text, _, _ in jobs],
        list(seed),
        deltas=deltas,
        steps=resolved.steps,
        guidance=resolved.guidance,
        negative=resolved.negative,
        step_hook=hook,
        batch_size=resolved.batch_size,
    )
    method = _method(adapters, combine)
    hashes = "+".join(sha256(file)[:16] for file in files)
    same = {
        "label": label or method,
        "method": method,
        "steps": resolved.steps,
        "guidance": resolved.guidance,
        "base_id": model.id,
        "base_hash": model.hash,
        "adapter_hash": hashes,
    }
    rows = [
        {**same, "content": content, "style": style, "prompt": text, "seed": number}
        for text, content, style in jobs
        for number in seed
    ]
    return write_samples(Path(out), rows, images, _about(hashes, adapters, resolved.weights))


def check_seeds(seeds: Sequence[int]) -> None:
    """Refuse seeds that make no image, or the same image twice.

    Raises:
        B4MError: for none, one out of range, or one that is given twice.
    """
    if not seeds:
        raise B4MError("no seeds were given; give at least one")
    wrong = [seed for seed in seeds if not 0 <= seed < SEEDS]
    if wrong:
        raise B4MError(f"seed {wrong[0]} must be 0 or more and less than 2^64")
    check_each_once("seed", seeds)


def check_each_once(what: str, values: Sequence[object]) -> None:
    """Refuse a value that is given twice: its images would count twice in the scores."""
    twice = [value for number, value in enumerate(values) if value in values[:number]]
    if twice:
        raise B4MError(f"{what} {twice[0]!r} is given twice; give it once")


def settings_of(combine: str) -> type[SampleSettings]:
    """What sampling reads when adapters act together in this way.

    Raises:
        B4MError: for an unknown way.
    """
    if combine == SUM:
        return SampleSettings
    if combine not in names("images"):
        known = ", ".join([SUM, *names("images")])
        raise B4MError(f"unknown way to combine {combine!r}; known: {known}")
    model: type[Settings] = sampler(combine).settings
    assert issubclass(model, SampleSettings)
    return model


def _concepts(adapters: Sequence["Adapter"]) -> tuple[str, str]:
    """Content and style that the adapters know, as far as their files say."""
    content = next((a.metadata.content for a in adapters if a.metadata.content), "")
    return content, next((a.metadata.style for a in adapters if a.metadata.style), "")


def _prompts(
    data: str | Path, content_name: str = "", style_name: str = ""
) -> list[tuple[str, str, str]]:
    """Prompt, content and style of every pair in a prepared folder, or of the pairs asked for."""
    from b4m.data.captions import merged_caption
    from b4m.data.manifest import read_manifest

    if not str(data):
        raise B4MError("nothing to sample: give a prompt, or a prepared folder that has them")
    rows = [row for row in read_manifest(Path(data)) if row.role == "train"]
    contents = {row.concept: row.class_word for row in rows if row.kind == "content"}
    styles = {row.concept: row.class_word for row in rows if row.kind == "style"}
    if not contents or not styles:
        raise B4MError(f"{data} holds no pair of a content and a style; give a prompt")
    jobs = [
        (merged_caption(word, style_words), content, style)
        for content, word in contents.items()
        for style, style_words in styles.items()
        if content_name in ("", content) and style_name in ("", style)
    ]
    if not jobs:
        pair = f"{content_name or 'any content'} in {style_name or 'any style'}"
        raise B4MError(
            f"{data} has no {pair}; it has {', '.join(contents)} and {', '.join(styles)}"
        )
    return jobs


def _method(adapters: Sequence["Adapter"], combine: str) -> str:
    """Name of what generates: "base", "content only", "direct", "b4m", ..."""
    if not adapters:
        return "base"
    metadata = adapters[0].metadata
    if len(adapters) > 1 and (combine != SUM or metadata.stage not in {"merged", "joint"}):
        return combine
    if metadata.stage in {"content", "style"}:
        return f"{metadata.stage} only"
    return metadata.method or "adapter"


def _about(
    hashes: str, adapters: Sequence["Adapter"], weights: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """What adapters.json says of them; nothing for the base alone."""
    used: dict[str, Any] = {"files": [asdict(adapter.metadata) for adapter in adapters]}
    return {hashes: used | ({"weights": list(weights)} if weights else {})} if adapters else {}


def _combined(
    adapters: Sequence["Adapter"], combine: str, base: "Base", settings: SampleSettings
) -> tuple[Any, Any]:
    """What hangs on the base while it generates, and the hook that changes it step by step."""
    if combine != SUM and len(adapters) != 2:
        raise B4MError(f"{combine} needs two adapters, content and style, not {len(adapters)}")
    if not adapters:
        if settings.weights:
            raise B4MError("setting weights is of adapters and there are none; leave it out")
        return None, None
    from b4m.bases.sampling import check_base
    from b4m.merging.context import require_same_base
    from b4m.merging.weighting import weighted

    for adapter in adapters:
        check_base(base, adapter)
    require_same_base(adapters, base)
    own = weighted(adapters, settings.weights)
    if combine != SUM:
        return sampler(combine).sampler(*own, base, settings)
    return reduce(add, own).scale(settings.scale), None
