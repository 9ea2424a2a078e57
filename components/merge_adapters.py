"""Content adapters and style adapters become one each."""

from typing import Dict

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def merge_adapters(
    shard: Dict,
    bulk: bool,
    base: str,
    jobs: dsl.Input[dsl.Dataset],
    data: dsl.Input[dsl.Dataset],
    adapters: dsl.Input[dsl.Model],
    merged: dsl.Output[dsl.Model],
):
    """Merge a content's and a style's adapter into one, for some pairs.

    Args:
        shard: Which merges this task carries out.
        bulk: A merge that fails is noted, and learned ones stay in the working folder.
        base: Base model that the adapters were trained on.
        jobs: All jobs of the run.
        data: Prepared images and captions, for methods that learn.
        adapters: Trained adapters.
    """
    from b4m.jobs import Task, merge_shard
    from b4m.tracking import pipeline_step

    with pipeline_step():
        task = Task.read(jobs.path, shard, base, data.path, bulk)
        merge_shard(task, adapters.path, merged.path)
