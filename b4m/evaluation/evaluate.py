"""`b4m evaluate`: from folders of generated images to a folder of scores.

Beside the sampled methods stand rows that nobody sampled: "copy of the content" and "copy of the
style", the scores of handing back a training image unchanged, and "ground truth", those of the
right answer where it exists. A method has to beat the copies; CLIP-I of one side alone rewards
exactly this copying. No method should beat the ground truth.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from b4m.data.images import load_image
from b4m.errors import B4MError
from b4m.evaluation import metrics
from b4m.evaluation.encoders import open_encoder
from b4m.evaluation.kinds import Encoder, Features, Names, TextEncoder
from b4m.evaluation.provenance import concepts_of, plain_prompts, provenance
from b4m.evaluation.references import Prepared, read_prepared
from b4m.evaluation.samples import Sample, read_samples
from b4m.evaluation.statistics import PAIR
from b4m.evaluation.tables import (
    COPY_OF_CONTENT,
    COPY_OF_STYLE,
    GROUND_TRUTH,
    IMAGE_COLUMNS,
    PIXELS,
    write_scores,
)
from b4m.settings import DEFAULT_EVALUATOR

_DECODED_TOGETHER = 256
_FIRST = 5  # names that may be given where being among the first is enough
Lookup = Callable[[Iterable[Path]], Features]


def evaluate(
    samples: Sequence[Path],
    data: Path,
    out: Path,
    evaluator: str = DEFAULT_EVALUATOR,
    device: str = "auto",
    baseline: str = "",
) -> Path:
    """Score generated images against the references of their content and their style.

    Args:
        samples: folders written by `b4m sample`.
        data: the prepared data folder with the references.
        out: folder for scores.csv, summary.csv, differences.csv and provenance.json.
        evaluator: one encoder, or several separated by commas; the first one is the primary one
            that the report shows, the others check it. See `encoders.open_encoder`.
        device: "cpu", "cuda" or "auto".
        baseline: method that the others are compared with in differences.csv; "" for none.

    Returns:
        `out`.

    Raises:
        B4MError: for missing images, unknown concepts, an evaluator that cannot be loaded, or two
            of the same name.
    """
    sampled = read_samples([Path(folder) for folder in samples])
    prepared = read_prepared(Path(data))
    encoders = open_encoders(evaluator, device)
    images = _images(sampled, prepared)
    encoded = _encode(images, prepared, encoders)
    parts = [
        _by_encoder(encoder, features, images, prepared)
        for encoder, features in zip(encoders, encoded, strict=True)
    ]
    table = pd.concat([*parts, _by_pixels(images)], ignore_index=True)
    same = [sample.label for sample in sampled if sample.method == baseline]
    label = baseline if baseline in same else next(iter(same), "")
    gaps = [_style_gaps(features, images, prepared) for features in encoded]
    record = provenance(sampled, images, prepared, encoders, gaps)
    return write_scores(Path(out), table, label, record)


def open_encoders(evaluator: str, device: str) -> list[Encoder]:
    """The encoders of a list with commas, the primary one first.

    Raises:
        B4MError: for one that cannot be loaded, none at all, or two of the same name.
    """
    names = [name.strip() for name in evaluator.split(",") if name.strip()]
    if not names:
        raise B4MError("no evaluator was named")
    encoders: dict[str, Encoder] = {}
    for name in names:
        encoder = open_encoder(name, device)
        if encoder.id in encoders:
            raise B4MError(
                f"two evaluators are called {encoder.id!r}, so their scores could not be told "
                f"apart; rename the folder {name} or leave it out"
            )
        encoders[encoder.id] = encoder
    return list(encoders.values())


def _images(samples: Sequence[Sample], prepared: Prepared) -> pd.DataFrame:
    """One row per image to be scored: `IMAGE_COLUMNS`, its path, ground truth and alignment.

    After the sampled ones follow the training images and the ground truth of each pair, as if a
    method had handed them back for each prompt.
    """
    rows = [
        (
            sample.label,
            prepared.concept("content", sample.content).name,
            prepared.concept("style", sample.style).name,
            sample.prompt,
            sample.seed,
            sample.file,
            sample.path,
        )
        for sample in samples
    ]
    for content, style, prompt in dict.fromkeys(row[1:4] for row in rows):
        for method, kind, name in (
            (COPY_OF_CONTENT, "content", content),
            (COPY_OF_STYLE, "style", style),
        ):
            for number, path in enumerate(prepared.concept(kind, name).trained):
                rows.append((method, content, style, prompt, number, path.name, path))
        if (content, style) in prepared.ground_truths:
            path = prepared.ground_truths[content, style].path
            rows.append((GROUND_TRUTH, content, style, prompt, 0, path.name, path))
    truths = [prepared.ground_truths.get((row[1], row[2])) for row in rows]
    return pd.DataFrame(
        [
            (*row, truth.path if truth else None, truth.alignment if truth else "")
            for row, truth in zip(rows, truths, strict=True)
        ],
        columns=[*IMAGE_COLUMNS, "path", "truth", "alignment"],
    )


def _encode(
    images: pd.DataFrame, prepared: Prepared, encoders: Sequence[Encoder]
) -> list[dict[Path, Features]]:
    """For each encoder the feature of every image that is needed.

    An image is decoded once for all encoders, and only a batch of images is in memory.
    """
    references = [path for one in concepts_of(images, prepared) for path in one.references]
    paths = list(dict.fromkeys([*images["path"], *references, *images["truth"].dropna()]))
    features: list[dict[Path, Features]] = [{} for _ in encoders]
    for start in range(0, len(paths), _DECODED_TOGETHER):
        part = paths[start : start + _DECODED_TOGETHER]
        decoded = [load_image(path) for path in part]
        for encoder, known in zip(encoders, features, strict=True):
            known.update(zip(part, encoder.encode_images(decoded), strict=True))
    return features


def _style_gaps(
    features: Mapping[Path, Features], images: pd.DataFrame, prepared: Prepared
) -> dict[str, float]:
    """The discrimination gap of each style's references, where it is defined."""
    styles = [one for one in concepts_of(images, prepared) if one.kind == "style"]
    labels_N = np.repeat(np.arange(len(styles)), [len(style.references) for style in styles])
    features_ND = np.stack([features[path] for style in styles for path in style.references])
    gaps = metrics.discrimination_gap(features_ND, labels_N)
    return {
        style.name: round(float(gap), 6)
        for style, gap in zip(styles, gaps, strict=True)
        if np.isfinite(gap)
    }


def _by_encoder(
    encoder: Encoder, features: Mapping[Path, Features], images: pd.DataFrame, prepared: Prepared
) -> pd.DataFrame:
    """All scores by one encoder."""

    def features_of(paths: Iterable[Path]) -> Features:
        return np.stack([features[path] for path in paths])

    images_ND = features_of(images["path"])
    values = _by_references(encoder.metric, images, images_ND, prepared, features_of)
    if isinstance(encoder, TextEncoder):
        values |= _by_text(encoder, images, prepared, images_ND)
    known_N = images["truth"].notna().to_numpy()
    if known_N.any():
        truths_MD = features_of(images["truth"][known_N])
        values[f"{encoder.metric}_truth"] = np.full(len(images), np.nan)
        values[f"{encoder.metric}_truth"][known_N] = metrics.matched_cosine(
            images_ND[known_N], truths_MD
        )
    return _long(images, values, encoder.id)


def _long(images: pd.DataFrame, values: Mapping[str, metrics.Values], encoder: str) -> pd.DataFrame:
    """One row per image and metric; an image has no row for what it was not measured by (NaN)."""
    wide = images[IMAGE_COLUMNS].assign(**values)
    long = wide.melt(IMAGE_COLUMNS, var_name="metric", value_name="value")
    return long.dropna(subset="value").assign(encoder=encoder)


def _by_references(
    metric: str,
    images: pd.DataFrame,
    images_ND: Features,
    prepared: Prepared,
    features_of: Lookup,
) -> dict[str, metrics.Values]:
    """Likeness to the references of both sides, copying of training images, diversity of seeds."""
    parts = ("content", "style", "harmonic", "style_csls", "nearest_training", "diversity")
    values = {part: np.full(len(images), np.nan) for part in parts}
    styles = [one for one in concepts_of(images, prepared) if one.kind == "style"]
    pool_PD = features_of(path for style in styles for path in style.references)
    for kind in PAIR:
        for name in images[kind].unique():
            own_N = (images[kind] == name).to_numpy()
            concept, own_ND = prepared.concept(kind, name), images_ND[own_N]
            references_RD = features_of(concept.references)
            values[kind][own_N] = metrics.mean_cosine(own_ND, references_RD)
            nearest_N = metrics.nearest_cosine(own_ND, features_of(concept.trained))
            values["nearest_training"][own_N] = np.fmax(
                values["nearest_training"][own_N], nearest_N
            )
            if kind == "style" and len(styles) > 1:
                values["style_csls"][own_N] = metrics.csls(own_ND, references_RD, pool_PD)
    for rows in images.groupby(["method", *PAIR, "prompt"]).indices.values():
        if len(rows) > 1:
            values["diversity"][rows] = metrics.diversity(images_ND[rows])
    values["harmonic"] = metrics.harmonic_mean(values["content"], values["style"])
    return {f"{metric}_{part}": value_N for part, value_N in values.items()}


def _by_text(
    encoder: TextEncoder, images: pd.DataFrame, prepared: Prepared, images_ND: Features
) -> dict[str, metrics.Values]:
    """CLIP-T and, where names to choose from are known, whether content and style are named."""
    plain = plain_prompts(encoder, images, prepared)
    prompts = plain["plain"].unique().tolist()
    rows = pd.Index(prompts).get_indexer(pd.Index(images.merge(plain, "left")["plain"]))
    values = {"clip_t": metrics.matched_cosine(images_ND, encoder.encode_texts(prompts)[rows])}
    for kind in PAIR:
        names = _names(encoder, kind, set(images[kind]), prepared)
        if len(names.words) > 1:
            texts_MD = encoder.encode_texts(
                [names.template.format(words) for words in names.words.values()]
            )
            labels_N = pd.Index(list(names.words)).get_indexer(pd.Index(images[kind]))
            for suffix, first in (("", 1), (f"_top{_FIRST}", _FIRST)):
                if first < len(names.words):
                    values[f"{kind}_named{suffix}"] = metrics.named_within(
                        images_ND, texts_MD, labels_N, first
                    )
    return values


def _names(encoder: TextEncoder, kind: str, needed: set[str], prepared: Prepared) -> Names:
    """The names to choose from: the encoder's own if it knows all that is needed."""
    own = encoder.names.get(kind)
    if own is not None and needed <= own.words.keys():
        return own
    template = "a {}" if kind == "content" else "a drawing in {} style"
    return Names(template, {key[1]: key[1] for key in prepared.concepts if key[0] == kind})


def _by_pixels(images: pd.DataFrame) -> pd.DataFrame:
    """PSNR to the ground truth, brought to the image's size, where it is the same drawing."""
    same = images[images["truth"].notna() & (images["alignment"] != "meaning")]
    values = []
    for path, truth in zip(same["path"], same["truth"], strict=True):
        image, target = load_image(path), load_image(truth)
        if target.size != image.size:
            target = target.resize(image.size, Image.Resampling.LANCZOS)
        values.append(metrics.psnr(np.asarray(image), np.asarray(target)))
    return _long(same, {"psnr_truth": np.array(values)}, PIXELS)
