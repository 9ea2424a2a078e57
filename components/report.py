"""One page that shows images, scores and settings."""

from typing import List

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def report(
    bulk: bool,
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
        bulk: There are many images, so they are not recorded one by one.
        jobs: All jobs of the run.
        data: Prepared images and captions, shown as references.
        closed_form: Images of closed-form merges.
        learned: Images of learned merges.
        unmerged: Images of the base model, of single adapters, and of methods without a merge.
        scores: Scores of all images.
    """
    from b4m.jobs import sample_folders, write_table
    from b4m.publish import write_pages
    from b4m.tracking import pipeline_step

    samples = [s.path for s in closed_form + learned + unmerged]
    with pipeline_step() as run:
        folders = sample_folders(samples)
        write_pages(jobs.path, folders, scores.path, data.path, page.path, sheet.path, run)
        if not bulk:
            run.files(folders, "images")
        run.tags({"b4m.failed_jobs": str(write_table(samples, outcomes.path) or "")})
