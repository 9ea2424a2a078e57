"""The messages of the oldest supported Kubeflow Pipelines server, to parse compiled pipelines by.

A server reads a pipeline strictly: a field that its protocol buffers do not know makes it refuse
the run. kfp-2.15.0.binpb holds the descriptors of `kfp-pipeline-spec` and `kfp-kubernetes` 2.15.0
(Apache-2.0, kubeflow/pipelines), because only one version of these can be installed. To make it
anew, or that of another version:

    pip install --no-deps --target FOLDER kfp-pipeline-spec==2.15.0 kfp-kubernetes==2.15.0
    python -m tests.pipelines.oldest_server FOLDER
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory

VERSION = "2.15.0"
FILE = Path(__file__).with_name(f"kfp-{VERSION}.binpb")
_MODULES = ("kfp.pipeline_spec.pipeline_spec_pb2", "kfp.kubernetes.kubernetes_executor_config_pb2")
_PROGRAM = """
import importlib.util, pathlib, sys, types
from google.protobuf import descriptor_pb2
folder, files = pathlib.Path(sys.argv[1]), descriptor_pb2.FileDescriptorSet()
seen = set()
def add(file):
    if file.name not in seen:
        seen.add(file.name)
        for needed in file.dependencies:
            add(needed)
        file.CopyToProto(files.file.add())
for name in sys.argv[2:]:
    path = folder / (name.replace(".", "/") + ".py")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    for end in (name.split(".")[0], name.rpartition(".")[0]):  # one imports the other
        sys.modules.setdefault(end, types.ModuleType(end)).__path__ = []
    spec.loader.exec_module(module)
    sys.modules[name] = module
    setattr(sys.modules[name.rpartition(".")[0]], name.rpartition(".")[2], module)
    add(module.DESCRIPTOR)
sys.stdout.buffer.write(files.SerializeToString(deterministic=True))
"""


def descriptors(folder: Path) -> bytes:
    """The descriptors of the packages in a folder, read by a process that loads no others."""
    command = [sys.executable, "-c", _PROGRAM, str(folder), *_MODULES]
    return subprocess.run(command, capture_output=True, check=True).stdout


def parse(spec: dict[str, Any], platform: dict[str, Any]) -> None:
    """Read a compiled pipeline's two documents as the server does.

    Raises:
        json_format.ParseError: for anything that the server does not know.
    """
    files = descriptor_pb2.FileDescriptorSet.FromString(FILE.read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)

    def read(name: str, value: dict[str, Any]) -> None:
        form = message_factory.GetMessageClass(pool.FindMessageTypeByName(name))
        json_format.ParseDict(value, form(), descriptor_pool=pool)

    read("ml_pipelines.PipelineSpec", spec)
    # both are read by these messages later, when a task is started
    read("ml_pipelines.PipelineDeploymentConfig", spec["deploymentSpec"])
    for executor in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values():
        read("kfp_kubernetes.KubernetesExecutorConfig", executor)


if __name__ == "__main__":
    FILE.write_bytes(descriptors(Path(sys.argv[1])))
