"""Containers of a local run: a task's exit status is that of its container."""

from typing import Any, Dict, List

from kfp.local import docker_task_handler


def honour_exit_status() -> None:
    """Make KFP's DockerRunner fail a task whose container failed.

    KFP 2.17 lets the engine remove a container when it ends, and takes a container that is gone for
    one that succeeded (kubeflow/pipelines#13332). Here it is removed after it was asked.
    """
    docker_task_handler.run_docker_container = run_container


def run_container(
    client: Any, image: str, command: List[str], volumes: Dict[str, Any], **arguments: Any
) -> int:
    """Run a container to its end, print what it prints, remove it, and return its exit status.

    Args:
        client: Docker's client.
        image: Name of an image; pulled if the engine does not have it.
        command: Command with its arguments.
        volumes: Folders to mount, as Docker's client takes them.
        arguments: Other arguments of the client's `containers.run`.
    """
    known = [name for each in client.images.list() for name in _names(each)]
    if image not in known:
        client.images.pull(image)
    container = client.containers.run(
        image=image, command=command, detach=True, volumes=volumes, **arguments
    )
    try:
        for part in container.logs(stream=True):
            print(part.decode(errors="replace"), end="")
        return int(container.wait()["StatusCode"])
    finally:
        container.remove(force=True)


def _names(image: Any) -> List[str]:
    return [*image.tags, *(image.attrs.get("RepoDigests") or [])]
