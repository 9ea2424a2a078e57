"""One page that shows pictures, scores and settings."""

from typing import List

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def report(
    title: str,
    data: dsl.Input[dsl.Dataset],
    alone: dsl.Input[List[dsl.Dataset]],
    merged: dsl.Input[List[dsl.Dataset]],
    scores: dsl.Input[dsl.Dataset],
    page: dsl.Output[dsl.HTML],
):
    """Write the report, one HTML page that needs nothing beside itself.

    Args:
        title: Heading of the page.
        data: Prepared pictures and captions, shown as references.
        alone: Pictures of the base model and of single adapters.
        merged: Pictures of the merged adapters, one set per method.
        scores: Scores of all pictures.
    """
    from b4m import verbs
    from b4m.tracking import part_of

    samples = [s.path for s in alone + merged]
    with part_of(data.metadata["parent_run"], last=True):
        verbs.report(samples, scores.path, data.path, page.path, title)
