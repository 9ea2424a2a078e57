"""What a score needs beside it: encoders, references, prompts as they were read, versions."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import pandas as pd
from pydantic import BaseModel, ValidationError

from b4m import __version__
from b4m.data.dvc import data_md5
from b4m.errors import B4MError
from b4m.evaluation.kinds import Encoder, TextEncoder
from b4m.evaluation.references import Concept, Prepared, plain_prompt
from b4m.evaluation.samples import Sample
from b4m.evaluation.statistics import CONFIDENCE, PAIR, RESAMPLES
from b4m.io import sha256
from b4m.version import git_commit


class _Encoder(BaseModel):
    id: str
    metric: str
    weights_sha256: str
    preprocessing: object
    style_gaps: dict[str, float]


class _Digest(BaseModel):
    sha256: str


class _Reference(BaseModel):
    kind: str
    concept: str
    role: str
    files: list[_Digest]


class _Prompt(BaseModel):
    prompt: str
    plain: str
    content: str
    style: str


class _Run(BaseModel):
    label: str
    method: str
    base_id: str
    base_hash: str
    adapter_hash: str
    steps: int
    guidance: float


class _Needed(BaseModel):
    """What the report shows of it; there may be more."""

    created: str
    b4m_version: str
    git_commit: str | None
    data_md5: str | None
    encoders: list[_Encoder]
    references: list[_Reference]
    prompts_for_clip_t: list[_Prompt]
    seeds: list[int]
    samples: list[_Run]
    statistics: dict[str, object]


def check_provenance(value: object, where: str) -> None:
    """Refuse a provenance that lacks what the report shows.

    Raises:
        B4MError: naming the first entry that is missing or of another kind.
    """
    try:
        needed = _Needed.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        entry = ".".join(map(str, first["loc"])) or "it"
        problem = f"{entry}: {first['msg'][:1].lower()}{first['msg'][1:]}"
        raise B4MError(
            f"{where} is damaged or of another version of b4m ({problem}); run b4m evaluate again"
        ) from None
    if not needed.encoders:
        raise B4MError(f"{where} names no encoder; run b4m evaluate again")


def provenance(
    samples: Sequence[Sample],
    images: pd.DataFrame,
    prepared: Prepared,
    encoders: Sequence[Encoder],
    style_gaps: Sequence[Mapping[str, float]],
) -> dict[str, object]:
    """Everything that a reader needs to repeat the numbers, and how well encoders see the styles.

    Args:
        samples: the sampled images.
        images: all scored images, with columns content, style and prompt.
        prepared: the data folder.
        encoders: the primary one first.
        style_gaps: discrimination gap by style for each encoder.
    """
    fields = ("label", "method", "base_id", "base_hash", "adapter_hash", "steps", "guidance")
    runs = dict.fromkeys(tuple(getattr(sample, name) for name in fields) for sample in samples)
    prompts = [
        {"encoder": encoder.id, **row}
        for encoder in encoders
        if isinstance(encoder, TextEncoder)
        for row in plain_prompts(encoder, images, prepared).to_dict("records")
    ]
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
                "style_gaps": gaps,
            }
            for encoder, gaps in zip(encoders, style_gaps, strict=True)
        ],
        "references": [
            {
                "kind": concept.kind,
                "concept": concept.name,
                "role": concept.role,
                "files": [
                    {"file": path.relative_to(prepared.folder).as_posix(), "sha256": sha256(path)}
                    for path in concept.references
                ],
            }
            for concept in concepts_of(images, prepared)
        ],
        "prompts_for_clip_t": prompts,
        "seeds": sorted({sample.seed for sample in samples}),
        "samples": [dict(zip(fields, run, strict=True)) for run in runs],
        "statistics": {
            "interval": "BCa bootstrap of the mean; percentile for two units",
            "confidence": CONFIDENCE,
            "resamples": RESAMPLES,
            "seed": 0,
            "unit": "(content, style) pairs; images when there is one pair",
        },
    }


def concepts_of(images: pd.DataFrame, prepared: Prepared) -> list[Concept]:
    """All contents, then all styles that the images are scored against."""
    return [prepared.concept(kind, name) for kind in PAIR for name in images[kind].unique()]


def plain_prompts(encoder: TextEncoder, images: pd.DataFrame, prepared: Prepared) -> pd.DataFrame:
    """Columns content, style, prompt and plain: each prompt as this encoder reads it."""
    words = {
        concept: text for names in encoder.names.values() for concept, text in names.words.items()
    }
    prompts = images[[*PAIR, "prompt"]].drop_duplicates()
    concepts = (
        [prepared.concept(kind, name) for kind, name in zip(PAIR, pair, strict=True)]
        for pair in zip(prompts["content"], prompts["style"], strict=True)
    )
    return prompts.assign(
        plain=[plain_prompt(*both, words) for both in zip(prompts["prompt"], concepts, strict=True)]
    )
