"""What a run has to do."""

from typing import Dict, List

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def plan_jobs(
    pipeline: str,
    methods: List[str],
    train_settings: Dict,
    merge_settings: Dict,
    sample_settings: Dict,
    tasks: int,
    jobs: dsl.Output[dsl.Dataset],
    content: str = "",
    style: str = "",
    contents: List[str] = [],
    styles: List[str] = [],
    pairing: str = "every",
) -> List[Dict]:
    """Plan all trainings, merges and images, and check all settings before anything is made.

    Args:
        pipeline: Name of the pipeline, for the list of runs.
        methods: Methods that are compared.
        train_settings: Settings of training, NAME for all methods that have it, or METHOD.NAME.
        merge_settings: Settings of merging, likewise.
        sample_settings: Settings of sampling, likewise.
        tasks: Most tasks of a kind; 0 gives each training, merge and set of images its own.
        content: Name of the content, the thing to show, if there is one.
        style: Name of the style, the way to show it, if there is one.
        contents: Names of the contents, if there are several.
        styles: Names of the styles, if there are several.
        pairing: every content with every style, or matching, first with first and so on.

    Returns:
        Parts of the trainings, one for each task.
    """
    from dataclasses import asdict

    from b4m.jobs import Jobs
    from b4m.plan import Comparison
    from b4m.shards import shards
    from b4m.tracking import pipeline_step

    compared = {
        "contents": contents or [content],
        "styles": styles or [style],
        "methods": methods,
    }
    name = f"{pipeline}/{'+'.join(compared['contents'][:1] + compared['styles'][:1])}"
    with pipeline_step(name, compared):
        comparison = Comparison(*map(tuple, compared.values()), pairing)
        all_jobs = Jobs.of(comparison, train_settings, merge_settings, sample_settings)
        all_jobs.write(jobs.path)
        return [asdict(shard) for shard in shards(all_jobs.plan, "trainings", int(tasks))]
