"""One page that shows images, scores and settings."""

from typing import List

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def report(
    last: bool,
    jobs: dsl.Input[dsl.Dataset],
    data: dsl.Input[dsl.Dataset],
    closed_form: dsl.Input[List[dsl.Dataset]],
    learned: dsl.Input[List[dsl.Dataset]],
    unmerged: dsl.Input[List[dsl.Dataset]],
    scores: dsl.Input[dsl.Dataset],
    page: dsl.Output[dsl.HTML],
    sheet: dsl.Output[dsl.Artifact],
    outcomes: dsl.Output[dsl.Dataset],
):
    """Write the report, one HTML page that needs nothing beside itself.

    Args:
        last: The run is done with this task.
        jobs: All jobs of the run.
        data: Prepared images and captions, shown as references.
        closed_form: Images of closed-form merges.
        learned: Images of learned merges.
        unmerged: Images of the base model, of single adapters, and of methods without a merge.
        scores: Scores of all images.
    """
    import os

    from b4m import verbs
    from b4m.jobs import Jobs, sample_folders, write_table
    from b4m.tracking import pipeline_step

    samples = [s.path for s in closed_form + learned + unmerged]
    with pipeline_step(last=last) as run:
        title = Jobs.read(jobs.path).comparison.title
        folders = sample_folders(samples)
        verbs.report(folders, scores.path, data.path, page.path, title)
        os.replace(os.path.join(os.path.dirname(page.path), "contact.png"), sheet.path)
        if last:  # one pair; of many the report shows enough
            run.files(folders, "images")
        run.tags({"b4m.failed_jobs": str(write_table(samples, outcomes.path) or "")})
