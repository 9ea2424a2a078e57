"""Images generated with adapters, or with the base alone."""

from typing import Dict, List

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def sample_images(
    shard: Dict,
    bulk: bool,
    seeds: List[int],
    base: str,
    jobs: dsl.Input[dsl.Dataset],
    data: dsl.Input[dsl.Dataset],
    adapters: dsl.Input[dsl.Model],
    samples: dsl.Output[dsl.Dataset],
):
    """Generate the images of some pairs.

    Args:
        shard: Which images this task generates: those of some merges, or of some other jobs.
        bulk: A job that fails is noted, and the next one begun.
        seeds: One image per prompt and seed; every method starts from the same noise.
        base: Base model.
        jobs: All jobs of the run.
        data: Prepared images and captions; they give the prompts.
        adapters: The merged adapters, or the trained ones.
    """
    from b4m.jobs import Task, sample_shard
    from b4m.tracking import pipeline_step

    with pipeline_step():
        task = Task.read(jobs.path, shard, base, data.path, bulk)
        sample_shard(task, adapters.path, samples.path, seeds)
