"""A content adapter and a style adapter become one."""

from typing import Dict

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def merge(
    method: str,
    base: str,
    settings: Dict,
    data: dsl.Input[dsl.Dataset],
    adapters: dsl.Input[dsl.Model],
    merged: dsl.Output[dsl.Model],
):
    """Merge the content's and the style's adapter into one.

    Args:
        method: Merge method, for example b4m or direct.
        base: Base model that the adapters were trained on.
        settings: Merge settings by name; the rest are defaults.
        data: Prepared pictures and captions, for methods that learn.
        adapters: Folder of trained adapters.
    """
    from b4m import verbs
    from b4m.methods import TRAINERS
    from b4m.tracking import part_of

    pair = method if method in TRAINERS else "lora"
    content, style = (f"{adapters.path}/{k}-{pair}.safetensors" for k in ("content", "style"))
    out = f"{merged.path}/adapter.safetensors"
    with part_of(data.metadata["parent_run"]):
        verbs.merge(content, style, out, method, base, data.path, settings)
    merged.metadata.update(kind="merged", method=method, pair=pair)
