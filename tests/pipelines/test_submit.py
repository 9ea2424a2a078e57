"""What `submit` tells a Kubeflow Pipelines server, heard by a server that speaks its REST paths."""

import http.server
import json
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import kfp
import kfp_server_api
import pytest
import yaml
from kubernetes import client

from pipelines import waiting
from pipelines.cli import main

RUN_ID = "0b5f4a3e-0000-4000-8000-000000000000"


# Requests with a body, by the last part of their paths, and the messages that they must be
MODELS = {
    "experiments": kfp_server_api.V2beta1Experiment,
    "pipelines": kfp_server_api.V2beta1Pipeline,
    "runs": kfp_server_api.V2beta1Run,
    "recurringruns": kfp_server_api.V2beta1RecurringRun,
}


class _Server(http.server.ThreadingHTTPServer):
    """Keeps what it was sent; a run has the states of `states`, one after the other."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.posted: dict[str, dict[str, Any]] = {}
        self.headers: list[dict[str, str]] = []
        self.pipelines: list[dict[str, Any]] = []
        self.versions: list[dict[str, Any]] = []
        self.uploaded: list[dict[str, Any]] = []
        self.wrong: list[str] = []
        self.token = ""
        self.states = ["RUNNING", "SUCCEEDED"]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        if not self._let_in():
            return
        if path.endswith("/healthz"):
            self._answer({"multi_user": False})
        elif path.endswith("/experiments"):
            self._answer({"experiments": []})
        elif path.endswith("/pipelines"):
            self._answer({"pipelines": self._filtered(self.server.pipelines, query)})
        elif path.endswith("/pipelines/p1/versions"):
            self._answer({"pipeline_versions": self._filtered(self.server.versions, query)})
        elif path.endswith(f"/runs/{RUN_ID}"):
            self._answer_run()
        else:
            self._answer({}, status=404)

    def _filtered(self, listed: list[dict[str, Any]], query: str) -> list[dict[str, Any]]:
        """The entries with the display name that the filter asks for."""
        (wanted,) = json.loads(parse_qs(query)["filter"][0])["predicates"]
        assert (wanted["operation"], wanted["key"]) == ("EQUALS", "display_name")
        return [one for one in listed if one["display_name"] == wanted["stringValue"]]

    def _answer_run(self) -> None:
        states = self.server.states
        state = states.pop(0) if len(states) > 1 else states[0]
        if state == "AWAY":
            self._answer({}, status=503)
            return
        tasks = [
            {"task_id": "1", "display_name": "train", "state": state},
            {"task_id": "2", "display_name": "train-driver", "state": "SUCCEEDED"},
        ]
        run = {"run_id": RUN_ID, "state": state, "run_details": {"task_details": tasks}}
        if state == "FAILED":
            error = {"message": "out of memory"}
            tasks[0]["state_history"] = [{"state": "RUNNING"}, {"state": state, "error": error}]
            run["error"] = {"message": "task train failed"}
        self._answer(run)

    def do_POST(self) -> None:
        if not self._let_in():
            return
        content = self.rfile.read(int(self.headers["Content-Length"]))
        path, _, query = self.path.partition("?")
        last = path.rsplit("/", 1)[-1]
        if last == "upload_version":
            self._answer(self._version(content, query))
            return
        body = json.loads(content)
        self.server.posted[last] = body
        known = set(MODELS[last].attribute_map.values())
        self.server.wrong += [f"{last}.{key}" for key in set(body) - known]
        ids = {
            "experiments": {"experiment_id": "e1"},
            "pipelines": {"pipeline_id": "p1"},
            "runs": {"run_id": RUN_ID},
            "recurringruns": {"recurring_run_id": RUN_ID},
        }
        if last == "pipelines":
            self.server.pipelines.append({**body, **ids[last]})
        self._answer({**body, **ids[last]})

    def _version(self, content: bytes, query: str) -> dict[str, Any]:
        """A version out of the one file of a multipart request."""
        boundary = content.partition(b"\r\n")[0]
        (part,) = [p for p in content.split(boundary) if b'name="uploadfile"' in p]
        spec = next(yaml.safe_load_all(part.partition(b"\r\n\r\n")[2].decode()))
        given = {key: values[0] for key, values in parse_qs(query).items()}
        assert given["pipelineid"] == "p1"
        self.server.uploaded.append(spec)
        version = {
            "pipeline_id": "p1",
            "pipeline_version_id": f"v{len(self.server.versions) + 1}",
            "display_name": given["name"],
        }
        self.server.versions.append(version)
        return version

    def _let_in(self) -> bool:
        self.server.headers.append(dict(self.headers))
        wanted = f"Bearer {self.server.token}"
        if self.server.token and self.headers.get("authorization") != wanted:
            self._answer({"error": "who are you"}, status=401)
            return False
        return True

    def _answer(self, value: dict[str, Any], status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[_Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.setattr(kfp.Client, "_LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))
    for name in ("ENDPOINT", "TOKEN", "COOKIES", "CA", "NAMESPACE", "EXPERIMENT"):
        monkeypatch.delenv(f"KFP_{name}", raising=False)
    with _Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
        assert server.wrong == []  # nothing was sent that the API does not know


def _submit(server: _Server, *flags: str) -> int:
    return main(["submit", "customize", "--endpoint", server.address, *flags])


def test_submit_starts_a_run_of_the_pipeline_with_the_parameters_given(
    server: _Server, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--experiment", "first", "--content", "cat", "--train-settings", "steps=7")
    assert _submit(server, *flags) == 0
    printed = capsys.readouterr()
    assert printed.out.split() == [RUN_ID]
    assert f"{server.address}/#/runs/details/{RUN_ID}" in printed.err
    assert server.posted["experiments"]["display_name"] == "first"
    run = server.posted["runs"]
    version = {"pipeline_id": "p1", "pipeline_version_id": "v1"}
    assert run["pipeline_version_reference"] == version
    assert run["display_name"].startswith("customize 2")
    assert [spec["pipelineInfo"]["name"] for spec in server.uploaded] == ["customize"]
    given = run["runtime_config"]["parameters"]
    assert given["content"] == "cat"
    assert given["train_settings"] == {"steps": "7"}


def test_a_pipeline_is_uploaded_once_for_each_commit_and_compiled_form(
    server: _Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("B4M_GIT_COMMIT", "c0ffee" * 6)
    for expected in (["v1"], ["v1"]):
        assert _submit(server) == 0
        assert [one["pipeline_version_id"] for one in server.versions] == expected
    assert server.posted["pipelines"]["description"] == "Show one content in one style."
    assert re.fullmatch(r"c0ffeec0ffee-[0-9a-f]{8}", server.versions[0]["display_name"])
    monkeypatch.setenv("B4M_GIT_COMMIT", "decade" * 6)
    assert _submit(server) == 0
    assert len(server.pipelines) == 1
    assert server.posted["runs"]["pipeline_version_reference"]["pipeline_version_id"] == "v2"


def test_a_series_of_runs_begins_at_the_times_of_a_cron_expression(
    server: _Server, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _submit(server, "--recurring", "0 3 * * 1", "--content", "cat") == 0
    assert capsys.readouterr().out.split() == [RUN_ID]
    assert "runs" not in server.posted
    series = server.posted["recurringruns"]
    assert series["trigger"] == {"cron_schedule": {"cron": "0 0 3 * * 1"}}  # with seconds
    assert series["mode"] == "ENABLE"
    assert series["no_catchup"] is True
    assert series["runtime_config"]["parameters"]["content"] == "cat"
    assert series["pipeline_version_reference"]["pipeline_version_id"] == "v1"


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--recurring", "daily"), "recurring 'daily' has 1 fields; write five"),
        (("--recurring", "0 3 * * *", "--wait"), "a series of runs has no end"),
    ],
)
def test_a_series_that_cannot_be_is_told_before_anything_is_sent(
    server: _Server, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], sentence: str
) -> None:
    assert _submit(server, *flags) == 2
    assert sentence in capsys.readouterr().err
    assert server.headers == []


def test_the_users_namespace_is_not_where_the_server_is_looked_for(server: _Server) -> None:
    assert _submit(server, "--namespace", "alice") == 0
    assert server.posted["experiments"]["namespace"] == "alice"
    assert _submit(server) == 0
    assert not server.posted["experiments"].get("namespace")


def test_a_token_opens_and_a_wrong_one_is_told_in_a_sentence(
    server: _Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.token = "sesame"
    assert _submit(server, "--token", "wrong") == 2
    message = capsys.readouterr().err
    assert "refuses (401): it does not know you; give --token" in message
    assert message.count("\n") == 1
    assert "wrong" not in message
    monkeypatch.setenv("KFP_TOKEN", "sesame")
    assert _submit(server) == 0
    assert main(["submit", "customize", "--help"]) == 0
    assert "sesame" not in capsys.readouterr().out


def test_a_token_is_in_no_body_and_nothing_that_is_printed(
    server: _Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.token = "planted-secret"
    assert _submit(server, "--token", "planted-secret", "--wait") == 0
    printed = capsys.readouterr()
    assert "planted-secret" not in printed.out + printed.err
    assert "planted-secret" not in json.dumps([server.posted, server.uploaded])


def test_cookies_of_a_session_are_sent(server: _Server) -> None:
    assert _submit(server, "--cookies", "session=1") == 0
    assert {headers.get("Cookie") for headers in server.headers} == {"session=1"}


def test_a_server_that_is_not_there_is_told_in_a_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert main(["submit", "customize", "--endpoint", f"http://127.0.0.1:{port}"]) == 2
    message = capsys.readouterr().err
    assert f"http://127.0.0.1:{port} cannot be reached" in message
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    ("states", "status", "shown"),
    [
        (["RUNNING", "AWAY", "SUCCEEDED"], 0, ["train: RUNNING", "train: SUCCEEDED"]),
        (
            ["RUNNING", "FAILED"],
            1,
            ["train: RUNNING", "train: FAILED (out of memory)", "the run: task train failed"],
        ),
        (["CANCELED"], 1, ["train: CANCELED"]),
    ],
)
def test_waiting_shows_what_changes_and_ends_with_the_run(
    server: _Server,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    states: list[str],
    status: int,
    shown: list[str],
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    server.states = states
    assert _submit(server, "--wait") == status
    printed = capsys.readouterr()
    assert printed.out.split() == [RUN_ID, states[-1]]
    said = [line for line in printed.err.splitlines() if line.startswith(("train", "the run"))]
    assert said == shown


def _pod(task: str, **status: Any) -> client.V1Pod:
    node = {"workflows.argoproj.io/node-name": f"customize-x.root.{task}.executor"}
    metadata = client.V1ObjectMeta(name=f"pod-of-{task}", annotations=node)
    return client.V1Pod(
        metadata=metadata, status=client.V1PodStatus(**{"phase": "Pending", **status})
    )


def _container(reason: str, message: str | None = None) -> client.V1ContainerStatus:
    waiting = client.V1ContainerStateWaiting(reason=reason, message=message)
    return client.V1ContainerStatus(
        image="b4m",
        image_id="",
        name="main",
        ready=False,
        restart_count=0,
        state=client.V1ContainerState(waiting=waiting),
    )


def test_waiting_says_what_keeps_a_pod_from_starting(
    server: _Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    unscheduled = client.V1PodCondition(
        type="PodScheduled",
        status="False",
        reason="Unschedulable",
        message='0/1 nodes are available: persistentvolumeclaim "b4m-store" not found.',
    )
    pods = [
        _pod("train", conditions=[unscheduled]),
        _pod("evaluate", container_statuses=[_container("ImagePullBackOff", "no such image")]),
        _pod("report", container_statuses=[_container("ContainerCreating")]),
        _pod("sample", phase="Running", container_statuses=[_container("CrashLoopBackOff")]),
    ]
    asked = []

    class Cluster:
        def list_namespaced_pod(self, namespace: str, **given: Any) -> client.V1PodList:
            asked.append((namespace, given["label_selector"]))
            return client.V1PodList(items=pods)

    monkeypatch.setattr("pipelines.submit.cluster", Cluster)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    server.states = ["RUNNING", "RUNNING", "SUCCEEDED"]
    assert _submit(server, "--wait", "--namespace", "alice") == 0
    assert set(asked) == {("alice", f"pipeline/runid={RUN_ID}")}
    lines = [line for line in capsys.readouterr().err.splitlines() if " waits (" in line]
    assert lines == [
        "train waits (Unschedulable: 0/1 nodes are available: "
        'persistentvolumeclaim "b4m-store" not found.)',
        "evaluate waits (ImagePullBackOff: no such image)",
    ]


def test_a_run_is_waited_for_where_its_pods_may_not_be_seen() -> None:
    class Closed:
        def list_namespaced_pod(self, namespace: str, **given: Any) -> None:
            raise client.exceptions.ApiException(403)

    assert waiting.reasons(Closed(), RUN_ID, "alice") == {}
