"""The servers of the end-to-end run: PostgreSQL, an S3 store, MLflow, and podman's Docker service.

Each is a process or container that this module started and stops again; none outlives the run.
"""

import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

PG_PORT, S3_PORT, MLFLOW_PORT = 15432, 18333, 15000
S3 = f"http://127.0.0.1:{S3_PORT}"
MLFLOW = f"http://127.0.0.1:{MLFLOW_PORT}"
BUCKET = "b4m-e2e"
KEYS = {"AWS_ACCESS_KEY_ID": "e2e", "AWS_SECRET_ACCESS_KEY": "e2e-secret-of-this-run"}
SERVER = "b4m-e2e-mlflow"


def wait_for(what: str, ready: Callable[[], object], seconds: float = 180) -> None:
    """Ask until `ready` returns something true; errors count as not yet.

    Raises:
        TimeoutError: after `seconds`.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with suppress(Exception):
            if ready():
                return
        time.sleep(0.5)
    raise TimeoutError(f"{what} did not start within {seconds:.0f} s")


def answers(address: str) -> bool:
    """Whether an HTTP address answers with success."""
    with urllib.request.urlopen(address, timeout=5) as answer:
        return int(answer.status) == 200


class Postgres:
    """A cluster of its own in a folder, with a database `mlflow`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1]
        self.uri = f"postgresql+psycopg2://postgres@127.0.0.1:{PG_PORT}/mlflow"

    def _as_postgres(self, *command: str) -> None:
        subprocess.run(
            ["runuser", "-u", "postgres", "--", *command],
            stdout=subprocess.DEVNULL,
            cwd="/",
            check=True,
        )

    def start(self) -> None:
        """Make the cluster if it is not there, start it, and make the database."""
        fresh = not self.folder.exists()
        if fresh:
            self.folder.mkdir(parents=True)
            shutil.chown(self.folder, "postgres", "postgres")
            self._as_postgres(f"{self.bin}/initdb", "-A", "trust", "-D", str(self.folder))
        options = f"-p {PG_PORT} -c listen_addresses=127.0.0.1 -k {self.folder}"
        self._as_postgres(
            *(f"{self.bin}/pg_ctl", "-w", "-D", str(self.folder), "-o", options),
            *("-l", f"{self.folder}/log", "start"),
        )
        if fresh:
            self._as_postgres("createdb", "-h", "127.0.0.1", "-p", str(PG_PORT), "mlflow")

    def stop(self) -> None:
        """Stop it; no error if it does not run."""
        with suppress(subprocess.CalledProcessError):
            self._as_postgres(f"{self.bin}/pg_ctl", "-m", "fast", "-D", str(self.folder), "stop")


class Store:
    """SeaweedFS's S3 server with one user; it refuses wrong keys."""

    def __init__(self, folder: Path, weed: Path) -> None:
        self.folder, self.weed = folder, weed
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it with what its folder holds."""
        self.folder.mkdir(parents=True, exist_ok=True)
        key, secret = KEYS.values()
        credentials = [{"accessKey": key, "secretKey": secret}]
        user = {"name": "e2e", "credentials": credentials, "actions": ["Admin"]}
        (self.folder / "s3.json").write_text(json.dumps({"identities": [user]}), encoding="utf-8")
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(str(self.weed), "server", f"-dir={self.folder}", "-ip=127.0.0.1"),
                    *("-ip.bind=127.0.0.1", "-volume.max=20", "-master.volumeSizeLimitMB=1024"),
                    *("-master.port=19333", "-volume.port=18080", "-filer.port=18888"),
                    *("-s3", f"-s3.port={S3_PORT}", f"-s3.config={self.folder / 's3.json'}"),
                ],
                stdout=log,
                stderr=log,
            )
        wait_for("S3", self._ready)

    def _ready(self) -> bool:
        client = self.client()
        with suppress(client.exceptions.BucketAlreadyExists, client.exceptions.ClientError):
            client.create_bucket(Bucket=BUCKET)
        client.head_bucket(Bucket=BUCKET)
        client.put_object(Bucket=BUCKET, Key="ready", Body=b"yes")
        return True

    def client(self):  # type: ignore[no-untyped-def] # botocore makes its classes at run time
        """Botocore's client of this store."""
        import botocore.session

        return botocore.session.get_session().create_client(
            "s3",
            endpoint_url=S3,
            region_name="us-east-1",
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        )

    def objects(self) -> dict[str, int]:
        """How many objects lie below each first folder of the bucket."""
        counts: dict[str, int] = {}
        for page in self.client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
            for each in page.get("Contents", []):
                first = each["Key"].partition("/")[0]
                counts[first] = counts.get(first, 0) + 1
        return counts

    def stop(self) -> None:
        """Kill it, as a node that dies would."""
        if self.process:
            self.process.kill()
            self.process.wait()


class Server:
    """MLflow's server, from the image, on PostgreSQL and S3."""

    def __init__(self, image: str, database: str) -> None:
        self.image, self.database = image, database

    def start(self) -> None:
        """Start it as the image's user, with a read-only root."""
        settings = {
            "MLFLOW_BACKEND_STORE_URI": self.database,
            "MLFLOW_ARTIFACTS_DESTINATION": f"s3://{BUCKET}/mlflow",
            "MLFLOW_S3_ENDPOINT_URL": S3,
            "AWS_DEFAULT_REGION": "us-east-1",
            **KEYS,
        }
        subprocess.run(
            [
                *("podman", "run", "--detach", "--replace", f"--name={SERVER}", "--network=host"),
                *("--read-only", "--tmpfs=/tmp", "--user=10001:0"),
                *(f"--env={name}" for name in settings),  # values from this process's environment
                *(self.image, "mlflow", "server", "--host=127.0.0.1", f"--port={MLFLOW_PORT}"),
                "--workers=1",
            ],
            env={**os.environ, **settings},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        wait_for("MLflow", lambda: answers(f"{MLFLOW}/health"), 300)

    def runs(self) -> list[dict]:  # type: ignore[type-arg]
        """All runs, asked for over HTTP."""
        found = self._ask("experiments/search", {"max_results": 100})["experiments"]
        ids = [each["experiment_id"] for each in found]
        return self._ask("runs/search", {"experiment_ids": ids, "max_results": 1000}).get(
            "runs", []
        )

    def _ask(self, path: str, body: dict) -> dict:  # type: ignore[type-arg]
        request = urllib.request.Request(
            f"{MLFLOW}/api/2.0/mlflow/{path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return dict(json.load(answer))

    def stop(self) -> None:
        """Kill it, as a node that dies would."""
        subprocess.run(["podman", "rm", "-f", "-t", "0", SERVER], capture_output=True, check=False)


class Engine:
    """Podman's service with Docker's interface, which KFP's DockerRunner talks to."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "podman.sock"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the service and name it in the environment."""
        self.process = subprocess.Popen(
            ["podman", "system", "service", "--time=0", f"unix://{self.socket}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for("podman", self.socket.exists, 30)
        os.environ["DOCKER_HOST"] = f"unix://{self.socket}"

    def stop(self) -> None:
        """End the service."""
        if self.process:
            self.process.terminate()
            self.process.wait()
