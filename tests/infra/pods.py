"""Every task of a compiled pipeline as a Pod of a real cluster: no Kubeflow server is needed.

KFP's local runner walks the graph; what it would run in Docker becomes a Pod here, made of all that
the compiled file says of the task: command, environment, resources, volumes, secrets, deadline. The
outputs travel through a folder of the node, so the cluster is one node that shares this disk.

    python tests/infra/pods.py customize.yaml '{"methods": ["direct"]}' /folder/for/outputs
"""

import json
import re
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import yaml
from kfp import components, local
from kfp.local import docker_task_handler, status, task_dispatcher
from kubernetes import client, config

NAMESPACE = "kubeflow"
ENDED = ("Succeeded", "Failed")
SERVICE = "b4m-mlflow"


class Pods:
    """Makes a Pod of a task, and waits for it.

    Args:
        compiled: the file that `pipelines compile` writes.
        arguments: values of the pipeline's parameters; the rest are its defaults.
        root: folder for outputs, the same on the node.
    """

    def __init__(self, compiled: Path, arguments: dict[str, Any], root: Path) -> None:
        spec, platform = yaml.safe_load_all(compiled.read_text(encoding="utf-8"))
        inputs = spec["root"]["inputDefinitions"]["parameters"]
        self.compiled, self.arguments, self.root = compiled, arguments, root
        self.values = {name: each.get("defaultValue") for name, each in inputs.items()} | arguments
        self.executors = spec["deploymentSpec"]["executors"]
        self.platform = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        self.run_id = str(uuid.uuid4())
        self.made: list[str] = []
        self._task = threading.local()
        self.core = client.CoreV1Api()

    def run(self) -> Any:
        """Run the pipeline.

        Raises:
            RuntimeError: if a task failed.
        """
        single = task_dispatcher.run_single_task_implementation

        def remembered(*args: Any, **given: Any) -> Any:
            self._task.label = given["component_spec"].executor_label
            return single(*args, **given)

        task_dispatcher.run_single_task_implementation = remembered
        docker_task_handler.DockerTaskHandler.run = lambda handler: self._carry_out(handler)
        try:
            local.init(local.DockerRunner(), pipeline_root=str(self.root))
            return components.load_component_from_file(str(self.compiled))(**self.arguments)
        finally:
            task_dispatcher.run_single_task_implementation = single

    def _carry_out(self, handler: Any) -> status.Status:
        body = self.pod(self._task.label, handler.image, handler.full_command)
        name = self.core.create_namespaced_pod(NAMESPACE, body).metadata.name
        self.made.append(name)
        while True:
            try:
                found = self.core.read_namespaced_pod(name, NAMESPACE)
            except client.ApiException as error:
                if error.status != 404:
                    raise
                print(f"[{name}] is gone", flush=True)
                return status.Status.FAILURE  # KFP tries it again, where the task says so
            if found.status.phase in ENDED:
                break
            time.sleep(0.5)
        print(f"[{name}] {found.status.phase}", flush=True)
        if found.status.phase == "Failed":
            print(self.core.read_namespaced_pod_log(name, NAMESPACE, tail_lines=20), flush=True)
            return status.Status.FAILURE
        return status.Status.SUCCESS

    def pod(self, label: str, image: str, command: list[str]) -> dict[str, Any]:
        """The Pod of a task, by the label of its executor."""
        container, given = self.executors[label]["container"], self.platform.get(label, {})
        mounts = [{"name": "outputs", "mountPath": str(self.root)}]
        volumes: list[dict[str, Any]] = [
            {"name": "outputs", "hostPath": {"path": str(self.root)}},
            {"name": "tmp", "emptyDir": {}},
        ]
        mounts.append({"name": "tmp", "mountPath": "/tmp"})
        for index, each in enumerate(given.get("pvcMount", [])):
            claim = each["pvcNameParameter"]["runtimeValue"]["constant"]
            volumes.append(
                {"name": f"claim-{index}", "persistentVolumeClaim": {"claimName": claim}}
            )
            mounts.append({"name": f"claim-{index}", "mountPath": each["mountPath"]})
        return {
            "metadata": {
                "generateName": f"{label.removeprefix('exec-')}-",
                "labels": {"pipeline/runid": self.run_id, "app.kubernetes.io/part-of": "b4m"},
            },
            "spec": {
                "restartPolicy": "Never",
                "automountServiceAccountToken": False,
                "activeDeadlineSeconds": int(given.get("activeDeadlineSeconds", 3600)),
                "tolerations": given.get("tolerations", []),
                "hostAliases": self._names(),
                # what servers since 2.16 give the containers of tasks
                "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
                "volumes": volumes,
                "containers": [
                    {
                        "name": "main",
                        "image": image,
                        "imagePullPolicy": given.get("imagePullPolicy", "IfNotPresent"),
                        "command": command[:1],
                        "args": command[1:],
                        "env": [*container.get("env", []), *_environment(given)],
                        "resources": self._resources(container.get("resources", {})),
                        "volumeMounts": mounts,
                        "securityContext": {
                            "allowPrivilegeEscalation": False,
                            "readOnlyRootFilesystem": True,
                            "capabilities": {"drop": ["ALL"]},
                        },
                    }
                ],
            },
        }

    def _names(self) -> list[dict[str, Any]]:
        """MLflow's service by name, for clusters without DNS."""
        services = self.core.list_namespaced_service(NAMESPACE).items
        found = [each.spec.cluster_ip for each in services if each.metadata.name == SERVICE]
        return [{"ip": address, "hostnames": [SERVICE]} for address in found]

    def _resources(self, given: dict[str, Any]) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {"requests": {}, "limits": {}}
        for kind in found:
            for name in ("cpu", "memory"):
                value = given.get(f"resource{name.title()}{kind.removesuffix('s').title()}")
                if value:
                    found[kind][name] = self._value(value)
        accelerator = given.get("accelerator", {})
        count = self._value(accelerator.get("resourceCount", "0"))
        if count != "0":
            found["limits"][accelerator["resourceType"]] = count
        return found

    def _value(self, text: str) -> str:
        """A value, or that of the pipeline's parameter that it names."""
        named = re.fullmatch(r"\{\{\$\.inputs\.parameters\['pipelinechannel--(\w+)'\]\}\}", text)
        return str(self.values[named[1]] if named else text)


def _environment(given: dict[str, Any]) -> list[dict[str, Any]]:
    """Variables from config maps, secrets and fields of the Pod."""
    found = []
    for kind, reference in (("configMap", "configMapKeyRef"), ("secret", "secretKeyRef")):
        for each in given.get(f"{kind}AsEnv", []):
            name = each[f"{kind}NameParameter"]["runtimeValue"]["constant"]
            for pair in each["keyToEnv"]:
                source = {"name": name, "key": pair[f"{kind}Key"]}
                if each.get("optional"):
                    source["optional"] = True
                found.append({"name": pair["envVar"], "valueFrom": {reference: source}})
    for each in given.get("fieldPathAsEnv", []):
        source = {"fieldRef": {"fieldPath": each["fieldPath"]}}
        found.append({"name": each["name"], "valueFrom": source})
    return found


if __name__ == "__main__":
    config.load_kube_config()
    pods = Pods(Path(sys.argv[1]), json.loads(sys.argv[2]), Path(sys.argv[3]).resolve())
    try:
        pods.run()
    finally:
        print(f"run {pods.run_id}: {len(pods.made)} pods")
