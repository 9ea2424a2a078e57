"""What tasks ask of a cluster: memory, accelerator, volume, settings and secrets.

Names here are those of infra/kustomize. How much a heavy task gets is a parameter of the pipeline
(`Amounts`), so that a form can change it. The environment at compile time says the rest: B4M_IMAGE,
B4M_GPU_TYPE (resource name of the accelerator), B4M_STORE (the claim), B4M_PULL_POLICY,
B4M_PULL_SECRET, B4M_TIMEOUT (seconds after which a task is ended) and B4M_PARALLEL (iterations of a
loop that run at once; a local run knows this one alone).
"""

import os
from dataclasses import dataclass

from kfp import dsl, kubernetes
from kfp.dsl.pipeline_channel import PipelineChannel

from components.image import IMAGE

PARALLEL = int(os.environ.get("B4M_PARALLEL") or 0) or None  # None: as many as the runner likes
GPU_TYPE = os.environ.get("B4M_GPU_TYPE") or "nvidia.com/gpu"
STORE = os.environ.get("B4M_STORE") or "b4m-store"  # models, own images, what was trained before
STORE_PATH = "/store"
TIMEOUT_S = int(os.environ.get("B4M_TIMEOUT") or 24 * 3600)
PULL_POLICY = os.environ.get("B4M_PULL_POLICY") or "IfNotPresent"
PULL_SECRET = os.environ.get("B4M_PULL_SECRET") or ""
CONFIG_MAP = "b4m-settings"
SECRET = "b4m-secrets"
RUN_ID = "metadata.labels['pipeline/runid']"  # KFP labels each pod with its run
SETTINGS = (
    "B4M_MLFLOW_TRACKING_URI",
    "B4M_MLFLOW_EXPERIMENT_NAME",
    "B4M_WORK",
    "HF_HOME",
    "HF_HUB_OFFLINE",
)
# MLflow's server reads its secrets by MLflow's names. Tasks get them under ours: two entries of one
# name, ours and that of KFP's MLflow plugin, make a pod that the API server refuses.
SECRETS = {
    "MLFLOW_TRACKING_USERNAME": "B4M_MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD": "B4M_MLFLOW_TRACKING_PASSWORD",
    "HF_TOKEN": "HF_TOKEN",
    # of DVC's remote on S3; under AWS's names Kubeflow's launcher would take them for its store
    "AWS_ACCESS_KEY_ID": "B4M_AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY": "B4M_AWS_SECRET_ACCESS_KEY",
    "AWS_ENDPOINT_URL": "B4M_AWS_ENDPOINT_URL",
}
LIGHT = {"cpu": "100m", "memory": "2G"}


@dataclass(frozen=True)
class Amounts:
    """What a heavy task gets; values or parameters of the pipeline, as text."""

    gpus: str
    cpu: str
    memory: str


def light(task: dsl.PipelineTask, name: str) -> dsl.PipelineTask:
    """A task for any node: little memory, settings, secrets and the store."""
    _anywhere(task, name)
    task.set_cpu_request(LIGHT["cpu"]).set_memory_request(LIGHT["memory"])
    return task.set_memory_limit(LIGHT["memory"])


def heavy(task: dsl.PipelineTask, name: str, amounts: Amounts) -> dsl.PipelineTask:
    """A task that runs the base model, or holds many adapters: tried again, since work is kept."""
    _anywhere(task, name)
    task.set_cpu_request(amounts.cpu).set_memory_request(amounts.memory)
    task.set_memory_limit(amounts.memory)
    _hand_down(task, amounts.cpu, amounts.memory)
    task.set_retry(2, backoff_duration="60s", backoff_factor=2.0, backoff_max_duration="600s")
    return task


def on_accelerator(task: dsl.PipelineTask, name: str, amounts: Amounts) -> dsl.PipelineTask:
    """A heavy task with accelerators; none if `amounts.gpus` is "0"."""
    heavy(task, name, amounts)
    task.set_accelerator_type(GPU_TYPE).set_accelerator_limit(amounts.gpus)
    _hand_down(task, amounts.gpus)
    kubernetes.add_toleration(task, key=GPU_TYPE, operator="Exists", effect="NoSchedule")
    return task


def _hand_down(task: dsl.PipelineTask, *amounts: str) -> None:
    """Make the loops around a task take these parameters in: the compiler forgets resources."""
    channels = [each for each in amounts if isinstance(each, PipelineChannel)]
    task.register_pipeline_channels(channels)


def _anywhere(task: dsl.PipelineTask, name: str) -> None:
    task.set_display_name(name)
    task.set_env_variable("B4M_IMAGE", IMAGE)
    settings = {key: key for key in SETTINGS}
    kubernetes.use_config_map_as_env(task, CONFIG_MAP, settings, optional=True)
    kubernetes.use_secret_as_env(task, SECRET, SECRETS, optional=True)
    kubernetes.use_field_path_as_env(task, "B4M_KFP_RUN_ID", RUN_ID)
    kubernetes.mount_pvc(task, pvc_name=STORE, mount_path=STORE_PATH)
    kubernetes.set_timeout(task, TIMEOUT_S)
    kubernetes.set_image_pull_policy(task, PULL_POLICY)
    if PULL_SECRET:
        kubernetes.set_image_pull_secrets(task, [PULL_SECRET])
