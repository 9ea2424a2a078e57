"""All adapters of a run in one folder."""

from typing import List

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def shelve_adapters(
    contents: dsl.Input[List[dsl.Model]],
    styles: dsl.Input[List[dsl.Model]],
    adapters: dsl.Output[dsl.Model],
):
    """Put the trained adapters into one folder, as KIND-METHOD.safetensors.

    Args:
        contents: Content adapters, one per way of training.
        styles: Style adapters, one per way of training.
    """
    import os
    import shutil

    os.makedirs(adapters.path)
    for model in contents + styles:
        name = f"{model.metadata['kind']}-{model.metadata['method']}.safetensors"
        shutil.copyfile(f"{model.path}/adapter.safetensors", f"{adapters.path}/{name}")
    trained = [model.metadata["method"] for model in contents]
    adapters.metadata["alone"] = "lora" if "lora" in trained else trained[0]
