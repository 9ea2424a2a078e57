"""Low-rank adapters of contents and styles."""

from typing import Dict

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def train_adapters(
    shard: Dict,
    bulk: bool,
    base: str,
    jobs: dsl.Input[dsl.Dataset],
    data: dsl.Input[dsl.Dataset],
    adapters: dsl.Output[dsl.Model],
):
    """Train adapters of the base model.

    Args:
        shard: Which trainings this task carries out.
        bulk: A training that fails is noted, and adapters stay in the working folder.
        base: Base model: a folder, a hub id or a single-file checkpoint.
        jobs: All jobs of the run.
        data: Prepared images and captions.
    """
    from b4m.jobs import Task, train_shard
    from b4m.tracking import pipeline_step

    with pipeline_step():
        train_shard(Task.read(jobs.path, shard, base, data.path, bulk), adapters.path)
