"""All trained adapters of a run in one folder."""

from typing import List

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def collect_adapters(
    trained: dsl.Input[List[dsl.Model]],
    adapters: dsl.Output[dsl.Model],
):
    """Put the trained adapters into one folder, by the keys of their jobs.

    A server hands one artifact on into a loop, never a list (`GetInputArtifactsByExecutionID` keeps
    the last one of a name), so the merges cannot take the list themselves.

    Args:
        trained: Folders of adapters.
    """
    from b4m.jobs import collect

    collect([model.path for model in trained], adapters.path)
