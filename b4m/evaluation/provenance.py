"""What a score needs beside it: encoders, references, prompts as they were read, versions."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import pandas as pd

from b4m import __version__
from b4m.data.dvc import data_md5
from b4m.evaluation.encoders import Encoder, TextEncoder
from b4m.evaluation.references import Concept, Prepared, plain_prompt
from b4m.evaluation.samples import Sample
from b4m.evaluation.statistics import CONFIDENCE, PAIR, RESAMPLES
from b4m.io import sha256
from b4m.version import git_commit


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
