"""`b4m evaluate`: from folders of sampled pictures to scores.csv, summary.csv and provenance.json.

Beside the sampled rows stand two that nobody sampled: "copy of the content" and "copy of the
style", the scores of handing back a training picture unchanged. A method has to beat both; CLIP-I
of one side alone rewards exactly this copying.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from PIL import Image

from b4m import __version__
from b4m.data.images import load_image
from b4m.errors import B4MError
from b4m.evaluate import scores
from b4m.evaluate.encoders import (
    Encoder,
    Features,
    Names,
    TextEncoder,
    open_encoder,
    sha256,
)
from b4m.evaluate.provenance import data_md5, git_commit
from b4m.evaluate.references import Concept, Prepared, plain_prompt, read_prepared
from b4m.evaluate.samples import Sample, read_samples
from b4m.evaluate.statistics import CONFIDENCE, RESAMPLES
from b4m.evaluate.tables import (
    COPY_OF_CONTENT,
    COPY_OF_STYLE,
    PIXELS,
    Score,
    Subject,
    write_scores,
)
from b4m.settings import DEFAULT_EVALUATOR

_DECODED_TOGETHER = 256


def evaluate(
    samples: Sequence[Path],
    data: Path,
    out: Path,
    evaluator: str = DEFAULT_EVALUATOR,
    device: str = "auto",
) -> Path:
    """Score sampled pictures against the references of their content and their style.

    Args:
        samples: folders written by `b4m sample`.
        data: the prepared data folder with the references.
        out: folder for scores.csv, summary.csv, differences.csv and provenance.json.
        evaluator: one encoder, or several separated by commas; the first one is the judge that the
            report shows, the others check it. See `encoders.open_encoder`.
        device: "cpu", "cuda" or "auto".

    Returns:
        `out`.

    Raises:
        B4MError: for missing pictures, unknown concepts or an evaluator that cannot be loaded.
    """
    names = [name.strip() for name in evaluator.split(",") if name.strip()]
    if not names:
        raise B4MError("no evaluator was named")
    drawn, prepared = read_samples([Path(folder) for folder in samples]), read_prepared(Path(data))
    subjects = [_subject(sample, prepared) for sample in drawn]
    subjects += _copies(subjects)
    encoders = [open_encoder(name, device) for name in names]
    rows: list[Score] = []
    for encoder, features in zip(encoders, _encode(subjects, prepared, encoders), strict=True):
        rows += _judge(encoder, features, subjects, prepared)
    rows += _pixels(subjects, prepared)
    baseline = next((sample.label for sample in drawn if sample.method == "direct"), "")
    return write_scores(Path(out), rows, baseline, _provenance(drawn, subjects, prepared, encoders))


def _subject(sample: Sample, prepared: Prepared) -> Subject:
    content = prepared.concept("content", sample.content)
    style = prepared.concept("style", sample.style)
    return Subject(
        method=sample.label,
        content=content,
        style=style,
        prompt=sample.prompt,
        seed=sample.seed,
        file=sample.file,
        path=sample.path,
    )


def _copies(subjects: Sequence[Subject]) -> list[Subject]:
    """Each training picture of each pair as if a method had handed it back for each prompt."""
    asked = {(s.content.name, s.style.name, s.prompt): s for s in subjects}
    return [
        replace(one, method=method, seed=number, file=path.name, path=path)
        for one in asked.values()
        for method, side in ((COPY_OF_CONTENT, one.content), (COPY_OF_STYLE, one.style))
        for number, path in enumerate(side.trained)
    ]


def _encode(
    subjects: Sequence[Subject], prepared: Prepared, encoders: Sequence[Encoder]
) -> list[dict[Path, Features]]:
    """For each encoder the feature of every picture that is needed.

    A picture is decoded once for all encoders, and only a batch of pictures is in memory.
    """
    wanted = [subject.path for subject in subjects]
    for subject in subjects:
        wanted += [*subject.content.references, *subject.style.references]
        if subject.pair in prepared.truths:
            wanted.append(prepared.truths[subject.pair].path)
    paths = list(dict.fromkeys(wanted))
    found: list[dict[Path, Features]] = [{} for _ in encoders]
    for start in range(0, len(paths), _DECODED_TOGETHER):
        part = paths[start : start + _DECODED_TOGETHER]
        images = [load_image(path) for path in part]
        for encoder, features in zip(encoders, found, strict=True):
            features.update(zip(part, encoder.encode_images(images), strict=True))
    return found


def _judge(
    encoder: Encoder,
    features: Mapping[Path, Features],
    subjects: Sequence[Subject],
    prepared: Prepared,
) -> list[Score]:
    """All scores by one encoder."""

    def look_up(paths: Iterable[Path]) -> Features:
        return np.stack([features[path] for path in paths])

    def similarity(path: Path, side: Concept) -> float:
        return float(scores.mean_cosine(look_up([path]), look_up(side.references))[0])

    content = np.array([similarity(subject.path, subject.content) for subject in subjects])
    style = np.array([similarity(subject.path, subject.style) for subject in subjects])
    columns = {
        f"{encoder.metric}_content": content,
        f"{encoder.metric}_style": style,
        f"{encoder.metric}_harmonic": scores.harmonic_mean(content, style),
    }
    if isinstance(encoder, TextEncoder):
        columns |= _by_text(encoder, subjects, prepared, look_up([s.path for s in subjects]))
    rows = [
        Score(subject, metric, float(value), encoder.id)
        for metric, values in columns.items()
        for subject, value in zip(subjects, values, strict=True)
    ]
    known = [subject for subject in subjects if subject.pair in prepared.truths]
    for subject in known:
        truth = look_up([prepared.truths[subject.pair].path])
        value = float(scores.matched_cosine(look_up([subject.path]), truth)[0])
        rows.append(Score(subject, f"{encoder.metric}_truth", value, encoder.id))
    return rows


def _by_text(
    encoder: TextEncoder, subjects: Sequence[Subject], prepared: Prepared, features_ND: Features
) -> dict[str, scores.Values]:
    """CLIP-T and, where names to choose from are known, whether content and style are named."""
    asked = [_plain(encoder, subject) for subject in subjects]
    prompts = list(dict.fromkeys(asked))
    places = {prompt: place for place, prompt in enumerate(prompts)}
    texts_ND = encoder.encode_texts(prompts)[[places[prompt] for prompt in asked]]
    columns = {"clip_t": scores.matched_cosine(features_ND, texts_ND)}
    for kind in ("content", "style"):
        answers = [(s.content if kind == "content" else s.style).name for s in subjects]
        names = _names(encoder, kind, set(answers), prepared)
        if len(names.words) > 1:
            texts_MD = encoder.encode_texts(
                [names.template.format(words) for words in names.words.values()]
            )
            places = {concept: place for place, concept in enumerate(names.words)}
            answers_N = np.array([places[answer] for answer in answers], np.int64)
            columns[f"{kind}_named"] = scores.named_right(features_ND, texts_MD, answers_N)
    return columns


def _plain(encoder: TextEncoder, subject: Subject) -> str:
    words = {name: text for names in encoder.names.values() for name, text in names.words.items()}
    return plain_prompt(subject.prompt, (subject.content, subject.style), words)


def _names(encoder: TextEncoder, kind: str, needed: set[str], prepared: Prepared) -> Names:
    """Names to choose from: the encoder's own if it knows all that are needed, else the data's."""
    own = encoder.names.get(kind)
    if own is not None and needed <= own.words.keys():
        return own
    template = "a {}" if kind == "content" else "a drawing in {} style"
    return Names(template, {key[1]: key[1] for key in prepared.concepts if key[0] == kind})


def _pixels(subjects: Sequence[Subject], prepared: Prepared) -> list[Score]:
    """PSNR to the ground truth, brought to the picture's size, where it is the same drawing."""
    rows = []
    for subject in subjects:
        truth = prepared.truths.get(subject.pair)
        if truth is None or truth.alignment == "meaning":
            continue
        image, right = load_image(subject.path), load_image(truth.path)
        if right.size != image.size:
            right = right.resize(image.size, Image.Resampling.LANCZOS)
        value = scores.psnr(np.asarray(image), np.asarray(right))
        rows.append(Score(subject, "psnr_truth", value, PIXELS))
    return rows


def _provenance(
    drawn: Sequence[Sample],
    subjects: Sequence[Subject],
    prepared: Prepared,
    encoders: Sequence[Encoder],
) -> dict[str, object]:
    """Everything that a reader needs to repeat the numbers."""
    used = {(side.kind, side.name): side for s in subjects for side in (s.content, s.style)}
    runs = {
        (s.label, s.method, s.base_id, s.base_hash, s.adapter_hash, s.steps, s.guidance): None
        for s in drawn
    }
    names = ("label", "method", "base_id", "base_hash", "adapter_hash", "steps", "guidance")
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "b4m_version": __version__,
        "git_commit": git_commit(),
        "data_md5": data_md5(prepared.folder) or data_md5(),
        "encoders": [
            {
                "id": encoder.id,
                "metric": encoder.metric,
                "weights_sha256": encoder.weights_hash,
                "preprocessing": encoder.preprocessing,
            }
            for encoder in encoders
        ],
        "references": [
            {
                "kind": side.kind,
                "concept": side.name,
                "role": side.role,
                "files": [
                    {"file": path.relative_to(prepared.folder).as_posix(), "sha256": sha256(path)}
                    for path in side.references
                ],
            }
            for side in used.values()
        ],
        "prompts_for_clip_t": [
            dict(zip(("encoder", "content", "style", "prompt", "asked"), entry, strict=True))
            for entry in dict.fromkeys(
                (encoder.id, *subject.pair, subject.prompt, _plain(encoder, subject))
                for encoder in encoders
                if isinstance(encoder, TextEncoder)
                for subject in subjects
            )
        ],
        "seeds": sorted({sample.seed for sample in drawn}),
        "samples": [dict(zip(names, run, strict=True)) for run in runs],
        "statistics": {
            "interval": "percentile bootstrap of the mean",
            "confidence": CONFIDENCE,
            "resamples": RESAMPLES,
            "seed": 0,
            "unit": "(content, style) pairs; pictures when there is one pair",
        },
    }
