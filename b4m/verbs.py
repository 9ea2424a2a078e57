"""The verbs: each works on files alone and writes one file or folder that stands alone.

    prepare -> train (content, style) -> merge -> sample -> evaluate -> report
    compare: all of these for contents x styles x methods
    inspect, convert: look at an adapter file, or write it for another tool

The command line, the Kubeflow components and library users call these same functions. Everything
heavy is imported inside them, so that `b4m --help` needs no torch.
"""

import csv
import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from b4m.config import (
    DEFAULT_BASE,
    DEFAULT_EVALUATOR,
    MergeSettings,
    SampleSettings,
    TrainSettings,
    resolve,
)
from b4m.errors import B4MError

if TYPE_CHECKING:
    from b4m.sdxl.load import Base

Settings = Mapping[str, object] | None


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
    model = _load(base, given)
    wanted = resolve(TrainSettings, given, model.parameters)
    shelf = place(
        _work(), method, kind, concept, asdict(wanted), model.hash, str(model.dtype), pictures
    )
    told = {"settings": asdict(wanted), "base": base, "concept": concept}
    with open_tracker(f"{method}/{concept}/s{wanted.seed}", kind, method, told) as tracker:
        if shelf.is_file():
            tracker.tags({"b4m.reused": shelf.stem})
        else:
            made = trainer(kind, folder, concept, model, wanted, _work(), tracker)
            write_adapter(shelf, made)
        _copy(shelf, Path(out))
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
    wanted = resolve(MergeSettings, dict(settings or {}), _parameters(base))
    names = [part.metadata.concept or "?" for part in parts]
    told = {"settings": asdict(wanted), "base": base}
    with open_tracker(f"{method}/{'+'.join(names)}/s{wanted.seed}", "merge", method, told) as run:
        context = MergeContext(
            base_id=base,
            settings=wanted,
            data_dir=Path(data) if str(data) else None,
            workdir=_work(),
            tracker=run,
        )
        write_adapter(Path(out), merging(*parts, context))
        run.files([Path(out)], "adapter")
    return Path(out)


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
    from b4m.adapters.files import read_adapter
    from b4m.drawing import concepts_of, method_of, prompts_of, together
    from b4m.evaluate.samples import write_samples
    from b4m.sdxl.sample import sample as draw

    files = [Path(file) for file in adapter]
    adapters = [read_adapter(file) for file in files]
    given = dict(settings or {})
    jobs = [(text, *concepts_of(adapters)) for text in prompt] or prompts_of(data, content, style)
    model = _load(base, given)
    wanted = resolve(SampleSettings, given, model.parameters)
    deltas, hook = together(adapters, combine, model, wanted)
    pictures = draw(
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
    name = method_of(adapters, combine)
    hashes = "+".join(_sha256(file)[:16] for file in files)
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
    return write_samples(Path(out), rows, pictures, about)


def evaluate(
    samples: Sequence[str | Path],
    data: str | Path,
    out: str | Path,
    evaluator: str = DEFAULT_EVALUATOR,
) -> Path:
    """Score pictures: likeness to the content, to the style, and to the prompt.

    Args:
        samples: folders written by sample
        data: prepared folder with the references
        out: folder to write: scores.csv, summary.csv, differences.csv, provenance.json
        evaluator: a folder, or an open_clip MODEL:WEIGHTS; more after commas check the first

    Returns:
        `out`.

    Raises:
        B4MError: for missing pictures, unknown concepts or an evaluator that cannot be loaded.
    """
    from b4m.evaluate.score import evaluate as score
    from b4m.tracking import open_tracker

    folders = [Path(folder) for folder in samples]
    with open_tracker("evaluate", "evaluate", settings={"evaluator": evaluator}) as run:
        written = score(folders, Path(data), Path(out), evaluator)
        with (written / "summary.csv").open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                run.metrics({f"eval/{row['method']}/{row['metric']}": float(row["mean"])})
        run.files(sorted(written.iterdir()), "scores")
    return written


def report(
    samples: Sequence[str | Path],
    scores: str | Path,
    data: str | Path,
    out: str | Path,
    title: str = "",
) -> Path:
    """Write one page that shows references, pictures, scores and settings.

    Args:
        samples: folders written by sample
        scores: folder written by evaluate for these samples
        data: prepared folder
        out: HTML file to write; contact.png lies beside it
        title: heading

    Returns:
        Path of the page, which needs nothing beside itself.

    Raises:
        B4MError: for missing files, or scores that are not of these samples.
    """
    from b4m.report import write_report
    from b4m.tracking import open_tracker

    folders = [Path(folder) for folder in samples]
    with open_tracker("report", "report") as run:
        page = write_report(folders, Path(scores), Path(data), Path(out), title)
        with tempfile.TemporaryDirectory() as folder:
            named = Path(shutil.copy(page, Path(folder) / "report.html"))
            run.files([named, page.with_name("contact.png")], "report")
    return page


def compare(
    source: str | Path,
    out: str | Path,
    content: Sequence[str],
    style: Sequence[str],
    method: Sequence[str] = ("b4m", "direct"),
    seed: Sequence[int] = (0, 1),
    style_pictures: int = 5,
    pairing: str = "every",
    base: str = DEFAULT_BASE,
    evaluator: str = DEFAULT_EVALUATOR,
    train_with: Sequence[str] = (),
    merge_with: Sequence[str] = (),
    sample_with: Sequence[str] = (),
) -> Path:
    """Compare methods on every pair of some contents and styles, in one report.

    Beside the methods stand the base and each adapter alone. Every method starts from the same
    noise. A comparison that was killed goes on where it stopped when the same command is given
    again.

    Args:
        source: folder of an EmojiGrid, or your own folder with content/NAME and style/NAME
        out: folder for data, adapters, pictures, scores and report.html
        content: names of contents
        style: names of styles
        method: merges (see merge), klora or joint
        seed: one picture per pair, method and seed
        style_pictures: pictures that a style is trained on
        pairing: every content with every style, or matching: first with first, and so on
        base: base model: a folder, a hub id or a single-file checkpoint
        evaluator: a folder, or an open_clip MODEL:WEIGHTS; more after commas check the first
        train_with: settings of train, as NAME=VALUE
        merge_with: settings of merge, as NAME=VALUE
        sample_with: settings of sample, as NAME=VALUE

    Returns:
        Path of the report.

    Raises:
        B4MError: for unknown names, methods or settings, or an `out` that answers another question.
    """
    from b4m import comparing
    from b4m.tracking import open_tracker

    question = comparing.Question(
        source=str(source),
        contents=tuple(content),
        styles=tuple(style),
        methods=tuple(method),
        seeds=tuple(seed),
        base=base,
        evaluator=evaluator,
        style_pictures=style_pictures,
        pairing=pairing,
        train=_pairs_of(TrainSettings, train_with),
        merge=_pairs_of(MergeSettings, merge_with),
        sample=_pairs_of(SampleSettings, sample_with),
    )
    with open_tracker(f"compare/{Path(out).name}", "compare", settings=asdict(question)) as run:
        if run.run_id:
            os.environ["B4M_PARENT_RUN"] = run.run_id
        try:
            return comparing.compare(question, Path(out))
        finally:
            os.environ.pop("B4M_PARENT_RUN", None)


def _pairs_of(kind: type, given: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE texts as settings, checked before anything is made."""
    values = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise B4MError(f"{text!r} is no setting; write NAME=VALUE")
        values[name.replace("-", "_")] = value
    resolve(kind, values)
    return values


def inspect(file: str | Path) -> dict[str, Any]:
    """Say what an adapter file is: its key style, ranks, layers, energy and metadata.

    Args:
        file: adapter file of any tool

    Returns:
        The facts by name.

    Raises:
        B4MError: if the file cannot be read, or holds something else than low-rank pairs.
    """
    from b4m.adapters.files import describe

    facts = describe(Path(file))
    if "problem" in facts:
        raise B4MError(f"{file}: {facts['problem']}")
    return facts


def convert(file: str | Path, out: str | Path, form: str = "kohya") -> Path:
    """Write an adapter for another tool.

    Args:
        file: adapter file of any tool
        out: file to write; for peft its adapter_config.json lies beside it
        form: diffusers, peft, or kohya (A1111, ComfyUI)

    Returns:
        Path of the written weights.

    Raises:
        B4MError: for an unreadable file or an unknown form.
    """
    from b4m.adapters.files import read_adapter, write_adapter

    return write_adapter(Path(out), read_adapter(Path(file)), form)


def _work() -> Path:
    """Caches, checkpoints and finished adapters; shared by all runs of a checkout or a volume."""
    return Path(os.environ.get("B4M_WORK", "runs/work"))


def _load(base: str, given: Mapping[str, object]) -> "Base":
    from b4m.sdxl.load import shared_base

    return shared_base(base, str(given.get("precision", "auto")))


def _parameters(base: str) -> int:
    """Size of the base's UNet from its weights' size on disk; 0, which means SDXL, if not there."""
    files = list((Path(base) / "unet").glob("*.safetensors"))
    return sum(file.stat().st_size for file in files) // 2


def _copy(file: Path, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.{os.getpid()}")
    shutil.copyfile(file, partial)
    os.replace(partial, out)


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
