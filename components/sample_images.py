"""Pictures drawn with one adapter, or with none."""

from typing import Dict, List

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def sample(
    which: str,
    label: str,
    seeds: List[int],
    base: str,
    settings: Dict,
    data: dsl.Input[dsl.Dataset],
    adapter: dsl.Input[dsl.Model],
    samples: dsl.Output[dsl.Dataset],
):
    """Draw pictures of the content in the style.

    Args:
        which: none for the base model, content or style for one adapter of a folder, or merged.
        label: Name of these pictures in the report.
        seeds: One picture per prompt and seed; every method starts from the same noise.
        base: Base model.
        settings: Sampling settings by name; the rest are defaults.
        data: Prepared pictures and captions; they give the prompts.
        adapter: The merged adapter, or the folder of trained adapters.
    """
    from b4m import verbs
    from b4m.tracking import part_of

    alone = f"{adapter.path}/{which}-{adapter.metadata.get('alone')}.safetensors"
    files = {"none": [], "merged": [f"{adapter.path}/adapter.safetensors"]}.get(which, [alone])
    samples.metadata["label"] = label
    numbers = [int(seed) for seed in seeds]
    with part_of(data.metadata["parent_run"]):
        verbs.sample(
            samples.path, files, data.path, [], numbers, label, base=base, settings=settings
        )
