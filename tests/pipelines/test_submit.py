"""What `submit` tells a Kubeflow Pipelines server, heard by a server that speaks its REST paths."""

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

RUN_ID = "0b5f4a3e-0000-4000-8000-000000000000"


class _Server(http.server.ThreadingHTTPServer):
    """Keeps what it was sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.posted: dict[str, dict[str, Any]] = {}


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.endswith("/healthz"):
            self._answer({"multi_user": False})
        elif path.endswith("/experiments"):
            self._answer({"experiments": []})
        else:
            self._answer({}, status=404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        path = self.path.partition("?")[0].rsplit("/", 1)[-1]
        self.server.posted[path] = body
        known = {"experiments": {"experiment_id": "e1"}, "runs": {"run_id": RUN_ID}}
        self._answer({**body, **known[path]})

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
def server() -> Iterator[_Server]:
    with _Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_submit_starts_a_run_of_the_pipeline_with_the_parameters_given(
    server: _Server, repo_root: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pipelines", "submit", "customize"),
            *("--endpoint", f"http://127.0.0.1:{server.server_port}"),
            *("--experiment", "first", "--content", "cat", "--train-settings", "steps=7"),
        ],
        cwd=repo_root,
        env={**os.environ, "HOME": str(tmp_path), "NO_PROXY": "127.0.0.1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == RUN_ID
    assert server.posted["experiments"]["display_name"] == "first"
    run = server.posted["runs"]
    assert run["pipeline_spec"]["pipeline_spec"]["pipelineInfo"]["name"] == "customize"
    assert "kubernetes" in run["pipeline_spec"]["platform_spec"]["platforms"]
    given = run["runtime_config"]["parameters"]
    assert given["content"] == "cat"
    assert given["train_settings"] == {"steps": "7"}
