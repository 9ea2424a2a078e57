"""Why the pods of a run do not start, asked of Kubernetes: the pipelines' API does not tell."""

from typing import Any, Dict, Iterator, Optional

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.config.config_exception import ConfigException
from urllib3.exceptions import HTTPError


def cluster() -> Optional[client.CoreV1Api]:
    """Kubernetes' API as the current context reaches it, or the cluster around us; else None."""
    for load in (config.load_kube_config, config.load_incluster_config):
        try:
            load()
            return client.CoreV1Api()
        except (ConfigException, OSError):
            continue
    return None


def reasons(api: Any, run_id: str, namespace: str) -> Dict[str, str]:
    """Tasks of a run whose pods wait, with what they wait for; none where we may not look.

    Args:
        api: Kubernetes' API, as from `cluster`.
        run_id: Of the run.
        namespace: In which it runs.
    """
    try:
        pods = api.list_namespaced_pod(
            namespace, label_selector=f"pipeline/runid={run_id}", _request_timeout=10
        )
    except (ApiException, HTTPError, OSError):
        return {}
    found = {}
    for pod in pods.items:
        reason = "; ".join(dict.fromkeys(_waits_for(pod.status)))
        if pod.status.phase == "Pending" and reason:
            found[_task(pod.metadata)] = reason
    return found


def _task(metadata: Any) -> str:
    """The task of a pod as Argo calls it, such as for-loop-1.iteration-0.train."""
    node = str((metadata.annotations or {}).get("workflows.argoproj.io/node-name", ""))
    return node.partition(".root.")[2].removesuffix(".executor") or str(metadata.name)


def _waits_for(status: Any) -> Iterator[str]:
    """What keeps a pod: no node or no claim, then its image or its settings."""
    for condition in status.conditions or []:
        if condition.type == "PodScheduled" and condition.status == "False":
            yield f"{condition.reason}: {condition.message}"
    for container in [*(status.init_container_statuses or []), *(status.container_statuses or [])]:
        waiting = container.state.waiting if container.state else None
        # every pod passes through these two
        if waiting and waiting.reason not in ("ContainerCreating", "PodInitializing"):
            yield f"{waiting.reason}: {waiting.message}" if waiting.message else waiting.reason
