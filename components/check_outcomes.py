"""The end of a run with many jobs: how they went."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def check_outcomes(fail: bool, outcomes: dsl.Input[dsl.Dataset]):
    """Say which jobs failed.

    Args:
        fail: End the run as failed when a job did; otherwise it ends well with what there is.
        outcomes: How all jobs went.
    """
    from b4m.jobs import check_table
    from b4m.tracking import pipeline_step

    with pipeline_step(last=True):
        check_table(outcomes.path, fail)
