"""Scores of images against the references and the prompt."""

from typing import List

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate(
    evaluator: str,
    data: dsl.Input[dsl.Dataset],
    closed_form: dsl.Input[List[dsl.Dataset]],
    learned: dsl.Input[List[dsl.Dataset]],
    unmerged: dsl.Input[List[dsl.Dataset]],
    scores: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Metrics],
):
    """Score the images: likeness to the content, to the style and to the prompt.

    Args:
        evaluator: Encoder that compares images: a folder, or an open_clip MODEL:WEIGHTS.
        data: Prepared images and captions, the references.
        closed_form: Images of closed-form merges.
        learned: Images of learned merges.
        unmerged: Images of the base model, of single adapters, and of methods without a merge.
    """
    import math

    from b4m import verbs
    from b4m.evaluation.tables import mean_scores
    from b4m.jobs import sample_folders
    from b4m.tracking import pipeline_step

    with pipeline_step():
        folders = sample_folders(s.path for s in closed_form + learned + unmerged)
        written = verbs.evaluate(folders, data.path, scores.path, evaluator)
        # a server refuses the whole file for one NaN
        means = {k: v for k, v in mean_scores(written).items() if math.isfinite(v)}
        for name, mean in means.items():
            metrics.log_metric(name, mean)
