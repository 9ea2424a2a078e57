"""One low-rank adapter of a content or of a style."""

from typing import Dict

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def train_adapter(
    kind: str,
    concept: str,
    method: str,
    base: str,
    settings: Dict,
    data: dsl.Input[dsl.Dataset],
    adapter: dsl.Output[dsl.Model],
):
    """Train one adapter of the base model.

    Args:
        kind: What is learned: content or style.
        concept: Name of the content or style in the prepared data.
        method: lora for a plain adapter, b4m for one half of a pair that is made to be merged.
        base: Base model: a folder, a hub id or a single-file checkpoint.
        settings: Training settings by name, for example rank or steps; the rest are defaults.
        data: Prepared pictures and captions.
    """
    from b4m import verbs
    from b4m.tracking import part_of

    out = f"{adapter.path}/adapter.safetensors"
    with part_of(data.metadata["parent_run"]):
        verbs.train(kind, data.path, concept, out, method, base, settings)
    adapter.metadata.update(kind=kind, concept=concept, method=method)
