"""The best adapter of a run, with its card."""

from typing import List

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def publish_adapter(
    name: str,
    minimum: float,
    jobs: dsl.Input[dsl.Dataset],
    data: dsl.Input[dsl.Dataset],
    closed_form: dsl.Input[List[dsl.Dataset]],
    learned: dsl.Input[List[dsl.Dataset]],
    unmerged: dsl.Input[List[dsl.Dataset]],
    scores: dsl.Input[dsl.Dataset],
    trained: dsl.Input[dsl.Model],
    merged_closed_form: dsl.Input[List[dsl.Model]],
    merged_learned: dsl.Input[List[dsl.Model]],
    page: dsl.Input[dsl.HTML],
    model: dsl.Output[dsl.Model],
) -> str:
    """Write the best adapter with its card, and register it in MLflow if it is good enough.

    Args:
        name: Registered model in MLflow; empty registers nothing.
        minimum: Lowest score that is registered.
        jobs: All jobs of the run.
        data: Prepared images and captions.
        closed_form: Images of closed-form merges.
        learned: Images of learned merges.
        unmerged: Images of the base model, of single adapters, and of methods without a merge.
        scores: Scores of all images.
        trained: Trained adapters.
        merged_closed_form: Adapters of closed-form merges.
        merged_learned: Adapters of learned merges.
        page: The report, which is written before.

    Returns:
        What became of it, in a sentence.
    """
    from pathlib import Path

    from b4m.publish import publish
    from b4m.tracking import pipeline_step

    samples = [s.path for s in closed_form + learned + unmerged]
    adapters = [m.path for m in merged_closed_form + merged_learned + [trained]]
    with pipeline_step(last=True) as run:
        found = jobs.path, data.path, samples, scores.path, adapters, model.path
        verdict = publish(*found, name, minimum)
        run.tags({"b4m.verdict": verdict})
        card = [file for file in Path(model.path).iterdir() if file.suffix != ".safetensors"]
        run.files(sorted(card), "model")  # the weights lie with the merge
    print(verdict)
    return verdict
