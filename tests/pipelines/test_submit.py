"""What `submit` tells a Kubeflow Pipelines server, heard by a server that speaks its REST paths."""

import http.server
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kfp
import kfp_server_api
import pytest

from pipelines.cli import main

RUN_ID = "0b5f4a3e-0000-4000-8000-000000000000"


class _Server(http.server.ThreadingHTTPServer):
    """Keeps what it was sent; a run has the states of `states`, one after the other."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.posted: dict[str, dict[str, Any]] = {}
        self.headers: list[dict[str, str]] = []
        self.token = ""
        self.states = ["RUNNING", "SUCCEEDED"]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if not self._let_in():
            return
        if path.endswith("/healthz"):
            self._answer({"multi_user": False})
        elif path.endswith("/experiments"):
            self._answer({"experiments": []})
        elif path.endswith(f"/runs/{RUN_ID}"):
            states = self.server.states
            state = states.pop(0) if len(states) > 1 else states[0]
            if state == "AWAY":
                self._answer({}, status=503)
                return
            tasks = [
                {"task_id": "1", "display_name": "train", "state": state},
                {"task_id": "2", "display_name": "train-driver", "state": "SUCCEEDED"},
            ]
            if state == "FAILED":
                tasks[0]["error"] = {"message": "out of memory"}
            details = {"task_details": tasks}
            self._answer({"run_id": RUN_ID, "state": state, "run_details": details})
        else:
            self._answer({}, status=404)

    def do_POST(self) -> None:
        if not self._let_in():
            return
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        path = self.path.partition("?")[0].rsplit("/", 1)[-1]
        self.server.posted[path] = body
        known = {"experiments": {"experiment_id": "e1"}, "runs": {"run_id": RUN_ID}}
        self._answer({**body, **known[path]})

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
    monkeypatch.setattr(kfp.Client, "_LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))
    for name in ("ENDPOINT", "TOKEN", "COOKIES", "CA", "NAMESPACE", "EXPERIMENT"):
        monkeypatch.delenv(f"KFP_{name}", raising=False)
    with _Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


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
    assert run["pipeline_spec"]["pipeline_spec"]["pipelineInfo"]["name"] == "customize"
    assert "kubernetes" in run["pipeline_spec"]["platform_spec"]["platforms"]
    given = run["runtime_config"]["parameters"]
    assert given["content"] == "cat"
    assert given["train_settings"] == {"steps": "7"}


def test_what_is_sent_is_what_the_api_knows(server: _Server) -> None:
    assert _submit(server) == 0
    for path, model in (
        ("experiments", kfp_server_api.V2beta1Experiment),
        ("runs", kfp_server_api.V2beta1Run),
    ):
        assert set(server.posted[path]) <= set(model.attribute_map.values())


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
        (["RUNNING", "FAILED"], 1, ["train: RUNNING", "train: FAILED (out of memory)"]),
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
    assert [line for line in printed.err.splitlines() if line.startswith("train")] == shown
