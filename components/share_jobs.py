"""Jobs of one kind, shared out among tasks."""

from typing import Dict, List

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def share_jobs(jobs: dsl.Input[dsl.Dataset], of: str, tasks: int) -> List[Dict]:
    """Share the jobs of one kind out among tasks.

    Args:
        jobs: All jobs of the run.
        of: closed_form or learned merges, or samples that need no merge.
        tasks: Most tasks; 0 gives each job its own.

    Returns:
        Parts of the jobs, one for each task, at least one.
    """
    import json
    from dataclasses import asdict

    from b4m.plan import Plan
    from b4m.shards import shards

    with open(jobs.path, encoding="utf-8") as file:
        plan = Plan.from_dict(json.load(file)["plan"])
    return [asdict(shard) for shard in shards(plan, of, int(tasks))]
