"""What tasks ask of a cluster: accelerator, volume, settings and secrets.

Names here are those of infra/kustomize. The environment at compile time changes the amounts:
B4M_GPU (accelerators of a heavy task, 0 for none), B4M_GPU_TYPE, B4M_MEMORY, B4M_STORE, and
B4M_PARALLEL (tasks of a loop that run at once; 1 where all share one GPU). Local runners know only
the last.
"""

import os

from kfp import dsl, kubernetes

GPU = int(os.environ.get("B4M_GPU") or 1)
PARALLEL = int(os.environ.get("B4M_PARALLEL") or 0) or None  # None: as many as the runner likes
GPU_TYPE = os.environ.get("B4M_GPU_TYPE") or "nvidia.com/gpu"
MEMORY = os.environ.get("B4M_MEMORY") or "32G"
STORE = os.environ.get("B4M_STORE") or "b4m-store"  # the claim; models and own pictures lie there
STORE_PATH = "/store"
CONFIG_MAP = "b4m-settings"
SECRET = "b4m-secrets"
RUN_ID = "metadata.labels['pipeline/runid']"  # KFP labels each pod with its run
SETTINGS = (
    "MLFLOW_TRACKING_URI",
    "MLFLOW_EXPERIMENT_NAME",
    "B4M_WORK",
    "HF_HOME",
    "HF_HUB_OFFLINE",
)
SECRETS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "HF_TOKEN")


def light(task: dsl.PipelineTask, name: str) -> dsl.PipelineTask:
    """A task for any node: a name for people, settings, secrets and the store."""
    task.set_display_name(name)
    settings = {key: key for key in SETTINGS}
    secrets = {key: key for key in SECRETS}
    kubernetes.use_config_map_as_env(task, CONFIG_MAP, settings, optional=True)
    kubernetes.use_secret_as_env(task, SECRET, secrets, optional=True)
    kubernetes.use_field_path_as_env(task, "B4M_KFP_RUN_ID", RUN_ID)
    kubernetes.mount_pvc(task, pvc_name=STORE, mount_path=STORE_PATH)
    return task


def heavy(task: dsl.PipelineTask, name: str) -> dsl.PipelineTask:
    """A task that runs the base model: a light one with accelerator, memory, shared memory."""
    light(task, name).set_memory_limit(MEMORY)
    if GPU > 0:
        task.set_accelerator_type(GPU_TYPE).set_accelerator_limit(GPU)
        kubernetes.add_toleration(task, key=GPU_TYPE, operator="Exists", effect="NoSchedule")
        kubernetes.empty_dir_mount(
            task, volume_name="shared-memory", mount_path="/dev/shm", medium="Memory"
        )
    return task
