"""Contents x styles x methods in one process: every verb in turn, what is there already kept.

    out/data                                   prepared pictures of all contents and styles
    out/adapters/KIND-CONCEPT-TRAINING         one per concept and way of training
    out/merged/CONTENT+STYLE-METHOD            one per pair and merge
    out/samples/LABEL/CONTENT+STYLE            identity rows, then methods
    out/scores, out/report.html, out/contact.png

A comparison that was killed goes on where it stopped. A folder belongs to one question: other
arguments in the same folder are refused, because old pictures would answer them.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path

from b4m.config import (
    DEFAULT_BASE,
    DEFAULT_EVALUATOR,
    MergeSettings,
    SampleSettings,
    TrainSettings,
    resolve,
)
from b4m.errors import B4MError
from b4m.methods import MERGES, SAMPLERS, TRAINERS
from b4m.verbs.evaluate import evaluate
from b4m.verbs.merge import merge
from b4m.verbs.prepare import prepare
from b4m.verbs.report import report
from b4m.verbs.sample import sample
from b4m.verbs.train import train

QUESTION = "question.json"
PAIRINGS = ("every", "matching")
LABELS = {"content": "content only", "style": "style only"}


@dataclass(frozen=True)
class Question:
    """What is compared, on what, with which settings.

    Attributes:
        source: EmojiGrid or the user's own folder.
        contents: names of contents.
        styles: names of styles.
        methods: merges, samplers, or `joint`.
        seeds: one picture per pair, method and seed.
        base: base model.
        evaluator: encoders, the first one judges.
        style_images: pictures that teach a style.
        pairing: `every` content with every style, or `matching`: first with first, and so on.
        train: settings of training.
        merge: settings of merging.
        sample: settings of drawing.
    """

    source: str
    contents: tuple[str, ...]
    styles: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    base: str
    evaluator: str
    style_images: int = 5
    pairing: str = "every"
    train: Mapping[str, object] = field(default_factory=dict)
    merge: Mapping[str, object] = field(default_factory=dict)
    sample: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for what in ("contents", "styles", "methods", "seeds"):
            if not getattr(self, what):
                raise B4MError(f"nothing to compare: no {what} were given")
        if self.pairing not in PAIRINGS:
            raise B4MError(f"unknown pairing {self.pairing!r}; choose {' or '.join(PAIRINGS)}")
        if self.pairing == "matching" and len(self.contents) != len(self.styles):
            raise B4MError(
                f"{len(self.contents)} contents do not match {len(self.styles)} styles; "
                "give as many of both, or pair every content with every style"
            )
        known = [*MERGES, *SAMPLERS, "joint"]
        for method in self.methods:
            if method not in known:
                raise B4MError(f"unknown method {method!r} to compare; known: {', '.join(known)}")

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The pairs that are drawn."""
        if self.pairing == "matching":
            return list(zip(self.contents, self.styles, strict=True))
        return list(product(self.contents, self.styles))

    @property
    def trainings(self) -> list[str]:
        """Ways of training that the methods start from; plain adapters are the identity rows."""
        own = [m for m in self.methods if m in TRAINERS and m != "joint"]
        return list(dict.fromkeys(["lora", *own]))


def compare(
    source: str | Path,
    out: str | Path,
    content: Sequence[str],
    style: Sequence[str],
    method: Sequence[str] = ("b4m", "direct"),
    seed: Sequence[int] = (0, 1),
    style_images: int = 5,
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
        style_images: pictures that a style is trained on
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
    from b4m.tracking import open_tracker, part_of

    question = Question(
        source=str(source),
        contents=tuple(content),
        styles=tuple(style),
        methods=tuple(method),
        seeds=tuple(seed),
        base=base,
        evaluator=evaluator,
        style_images=style_images,
        pairing=pairing,
        train=_pairs_of(TrainSettings, train_with),
        merge=_pairs_of(MergeSettings, merge_with),
        sample=_pairs_of(SampleSettings, sample_with),
    )
    name = f"compare/{Path(out).name}"
    with (
        open_tracker(name, "compare", settings=asdict(question)) as run,
        part_of(run.run_id),
    ):
        return _answer(question, Path(out))


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


def _answer(question: Question, out: Path) -> Path:
    """Answer the question in `out`; returns the report's path.

    Raises:
        B4MError: if `out` holds the answer to another question, and whatever the verbs raise.
    """
    _claim(question, out)
    data = out / "data"
    if not data.exists():
        prepare(
            question.source,
            data,
            ",".join(question.contents),
            ",".join(question.styles),
            question.style_images,
        )
    _train(question, out)
    folders = [*_alone(question, out), *_merged(question, out)]
    evaluate(folders, data, out / "scores", question.evaluator)
    title = f"{len(question.pairs)} pairs, {len(question.methods)} methods"
    return report(folders, out / "scores", data, out / "report.html", title)


def _claim(question: Question, out: Path) -> None:
    file = out / QUESTION
    asked = json.loads(json.dumps(asdict(question)))
    if file.exists():
        if json.loads(file.read_text(encoding="utf-8")) != asked:
            raise B4MError(f"{out} answers another question (see {file}); give another folder")
        return
    if out.exists() and any(out.iterdir()):
        raise B4MError(f"{out} holds other things; give another folder")
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(asked, indent=1) + "\n", encoding="utf-8")


def _train(question: Question, out: Path) -> None:
    jobs = [
        (kind, concept, way)
        for kind, concepts in (("content", question.contents), ("style", question.styles))
        for concept in concepts
        for way in question.trainings
    ]
    if "joint" in question.methods:
        jobs += [("joint", "+".join(pair), "joint") for pair in question.pairs]
    for kind, concept, way in jobs:
        file = _adapter(out, kind, concept, way)
        if not file.exists():
            train(kind, out / "data", concept, file, way, question.base, question.train)


def _alone(question: Question, out: Path) -> Iterator[Path]:
    """The base, and each adapter alone: what a merge has to beat."""
    for content, style in question.pairs:
        name = f"{content}+{style}"
        yield _draw(question, out, "base", name, [], content, style)
        for kind, concept in (("content", content), ("style", style)):
            files = [_adapter(out, kind, concept, "lora")]
            yield _draw(question, out, LABELS[kind], name, files, content, style)


def _merged(question: Question, out: Path) -> Iterator[Path]:
    for method, (content, style) in product(question.methods, question.pairs):
        pair = f"{content}+{style}"
        way = method if method in question.trainings else "lora"
        parts = [
            _adapter(out, kind, concept, way)
            for kind, concept in (("content", content), ("style", style))
        ]
        combine = "direct"
        if method == "joint":
            parts = [_adapter(out, "joint", pair, "joint")]
        elif method in SAMPLERS:
            combine = method
        else:
            merged = out / "merged" / f"{pair}-{method}.safetensors"
            if not merged.exists():
                merge(
                    parts[0], parts[1], merged, method, question.base, out / "data", question.merge
                )
            parts = [merged]
        yield _draw(question, out, method, pair, parts, content, style, combine)


def _draw(
    question: Question,
    out: Path,
    label: str,
    name: str,
    files: Sequence[Path],
    content: str,
    style: str,
    combine: str = "direct",
) -> Path:
    folder = out / "samples" / label / name
    if not folder.exists():
        sample(
            folder,
            files,
            out / "data",
            seed=question.seeds,
            label=label,
            combine=combine,
            base=question.base,
            settings=question.sample,
            content=content,
            style=style,
        )
    return folder


def _adapter(out: Path, kind: str, concept: str, way: str) -> Path:
    return out / "adapters" / f"{kind}-{concept}-{way}.safetensors"
