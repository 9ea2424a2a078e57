"""A task of a local run in a container fails when its container fails."""

from typing import Any

import pytest
from kfp.local import docker_task_handler

from pipelines.containers import honour_exit_status, run_container


class _Engine:
    """An engine with one image; its containers print, end with a status, and are then removed."""

    def __init__(self, status: int) -> None:
        self.status, self.images, self.containers = status, self, self
        self.calls: list[str] = []
        self.tags = ["localhost/b4m-python:0.1.0"]
        self.attrs: dict[str, Any] = {"RepoDigests": ["localhost/b4m-python@sha256:1"]}

    def pull(self, image: str) -> None:
        self.calls.append(f"pull {image}")

    def run(self, **arguments: Any) -> "_Engine":
        assert "auto_remove" not in arguments  # the engine would forget the status
        self.calls.append(f"run {arguments['image']}")
        return self

    def wait(self) -> dict[str, int]:
        self.calls.append("wait")
        return {"StatusCode": self.status}

    def remove(self, force: bool) -> None:
        self.calls.append("remove")

    def logs(self, stream: bool) -> list[bytes]:
        return [b"epoch 1\n", b"caf\xff\n"]

    def list(self) -> tuple["_Engine"]:
        return (self,)


@pytest.mark.parametrize("status", [0, 3, 137])
def test_the_status_of_a_container_is_asked_for_before_it_is_removed(
    status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = _Engine(status)
    assert run_container(engine, engine.tags[0], ["false"], {}) == status
    assert engine.calls == ["run localhost/b4m-python:0.1.0", "wait", "remove"]
    assert capsys.readouterr().out.startswith("epoch 1\n")


def test_an_image_named_by_its_digest_is_not_pulled_again() -> None:
    engine = _Engine(0)
    run_container(engine, "localhost/b4m-python@sha256:1", ["true"], {})
    run_container(engine, "localhost/other:1", ["true"], {})
    assert [call for call in engine.calls if call.startswith("pull")] == ["pull localhost/other:1"]


def test_kfp_runs_its_containers_this_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker_task_handler, "run_docker_container", None)
    honour_exit_status()
    assert docker_task_handler.run_docker_container is run_container
