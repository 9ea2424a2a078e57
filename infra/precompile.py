"""Compile what tasks and MLflow's server import, and nothing else: all of it would be 400 MB.

A container starts without a cache and may not be able to write one; compiled modules load in half
the time. Run once, while the image is built.
"""

import importlib
import py_compile
import sys

IMPORTED = {
    "accelerate": "",
    "boto3": "",
    "diffusers": "AutoencoderKL DDPMScheduler EulerDiscreteScheduler StableDiffusionXLPipeline "
    "UNet2DConditionModel",
    "dvc.api": "",
    "dvc_s3": "",
    "jinja2": "",
    "kfp.dsl.executor_main": "",
    "mlflow": "MlflowClient",
    "mlflow.server": "app",
    "mlflow.server.fastapi_app": "app",
    "mlflow.store.artifact.s3_artifact_repo": "",
    "mlflow.store.tracking.sqlalchemy_store": "",
    "mlflow.store.model_registry.sqlalchemy_store": "",
    "open_clip": "",
    "pandas": "",
    "peft": "",
    "psycopg2": "",
    "scipy.stats": "",
    "torch._dynamo": "",
    "transformers": "CLIPTextModel CLIPTextModelWithProjection CLIPTokenizer",
    "uvicorn": "",
}

if __name__ == "__main__":
    import torch

    # PyPI's torchvision lacks these beside a CPU build; b4m/torchvision_guard.py tells more
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    for module, attributes in IMPORTED.items():
        loaded = importlib.import_module(module)
        for attribute in attributes.split():
            getattr(loaded, attribute)
    files = {str(getattr(module, "__file__", "")) for module in list(sys.modules.values())}
    for file in sorted(name for name in files if name.endswith(".py") and "/opt/" in name):
        py_compile.compile(
            file, quiet=1, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
        )
