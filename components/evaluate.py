"""Scores of images against the references and the prompt."""

from typing import List

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate(
    evaluator: str,
    data: dsl.Input[dsl.Dataset],
    alone: dsl.Input[List[dsl.Dataset]],
    merged: dsl.Input[List[dsl.Dataset]],
    scores: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
):
    """Score the images: likeness to the content, to the style and to the prompt.

    Args:
        evaluator: Encoder that compares images: a folder, or an open_clip MODEL:WEIGHTS.
        data: Prepared images and captions, the references.
        alone: Images of the base model and of single adapters.
        merged: Images of the merged adapters, one set per method.
    """
    from pathlib import Path

    from b4m import verbs
    from b4m.evaluate.tables import mean_scores
    from b4m.tracking import part_of

    with part_of(data.metadata["parent_run"]):
        verbs.evaluate([s.path for s in alone + merged], data.path, scores.path, evaluator)
    for name, mean in mean_scores(Path(scores.path)).items():
        metrics.log_metric(name, mean)
