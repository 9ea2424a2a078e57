"""What the end-to-end run looks at, and what it breaks on purpose."""

import json
import os
import secrets
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from infra.e2e.servers import BUCKET, Server, Store

PLANTED = ("infra/kustomize/overlays/team/secret.env", ".env")


def plant(root: Path) -> str:
    """Write a secret to where careless people keep theirs; none of those files may be there."""
    secret = f"planted-{secrets.token_hex(16)}"
    for name in PLANTED:
        if (root / name).exists():
            sys.exit(f"{name} is there; end-to-end tests would write over it")
        (root / name).write_text(f"AWS_SECRET_ACCESS_KEY={secret}\n", encoding="utf-8")
    return secret


def unplant(root: Path) -> None:
    """Remove what `plant` wrote."""
    for name in PLANTED:
        (root / name).unlink(missing_ok=True)


def any_user(image: str) -> bool:
    """Whether the image works for a user it does not know, with a root that nobody can write."""
    command = ["podman", "run", "--rm", "--read-only", "--tmpfs=/tmp", "--user=54321:0"]
    code = "import b4m.bases, b4m.training, kfp, mlflow, b4m_mini; print('imported')"
    done = subprocess.run(
        [*command, "--network=none", image, "python3", "-c", code],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() == "imported"


def dvc(root: Path, work: Path, endpoint: str) -> bool:
    """Push the data to S3 from one clone and pull it into another that knows no other remote."""
    clones = [work / "pushes", work / "pulls"]
    for clone in clones:
        shutil.rmtree(clone, ignore_errors=True)
        subprocess.run(["git", "clone", "-q", str(root), str(clone)], check=True)
    _dvc(clones[0], "pull", "-q")
    for clone in clones:
        _dvc(clone, "remote", "add", "-f", "-d", "team", f"s3://{BUCKET}/dvc")
        _dvc(clone, "remote", "modify", "--local", "team", "endpointurl", endpoint)
    _dvc(clones[0], "push", "-q")
    _dvc(clones[1], "pull", "-q")
    same = subprocess.run(["diff", "-rq", *(str(c / "data") for c in clones)], check=False)
    return same.returncode == 0


def _dvc(clone: Path, *arguments: str) -> None:
    environment = {
        **os.environ,
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(clone / ".site"),
    }
    command = [sys.executable, "-m", "dvc", *arguments]
    subprocess.run(command, cwd=clone, env=environment, check=True)


@dataclass
class Killed:
    """Whether a training was killed."""

    done: bool = False


@contextmanager
def killed_training() -> Iterator[Killed]:
    """Kill the first container that trains, some seconds after it started."""
    killed, over = Killed(), threading.Event()

    def look() -> None:
        while not over.wait(1.0):
            for name in _containers("train_adapters"):
                time.sleep(5)
                done = subprocess.run(["podman", "kill", name], capture_output=True, check=False)
                killed.done = done.returncode == 0
                if killed.done:
                    return

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def _containers(component: str) -> list[str]:
    """Ids of running containers whose command runs a component."""
    command = ["podman", "ps", "--format", "json"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return [
        str(each["Id"])
        for each in json.loads(listed or "[]")
        if f"def {component}(" in " ".join(each["Command"] or [])
    ]


@dataclass
class Away:
    """How long the servers were away."""

    seconds: float = 0.0


@contextmanager
def servers_away(server: Server, store: Store, seconds: float = 20) -> Iterator[Away]:
    """Kill MLflow and S3 while a training runs, and start them again."""
    away, over = Away(), threading.Event()

    def look() -> None:
        while not over.wait(1.0):
            if _containers("train_adapters"):
                started = time.monotonic()
                server.stop()
                store.stop()
                time.sleep(seconds)
                store.start()
                server.start()
                away.seconds = time.monotonic() - started
                return

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield away
    finally:
        over.set()
        thread.join()


def search(root: Path, work: Path, image: str, server: Server, secret: str) -> dict[str, bool]:
    """Where a secret is: layers of the image, logs, MLflow's runs, compiled pipelines."""
    needle = secret.encode()
    found = {"a layer of the image": _in_image(work, image, needle)}
    logs = list((root / "runs/e2e").rglob("*.log"))
    found["a log"] = any(needle in file.read_bytes() for file in logs)
    found["MLflow's runs"] = secret in str(server.runs())
    compiled = work / "customize.yaml"
    command = [sys.executable, "-m", "pipelines", "compile", "customize", "--out", str(compiled)]
    subprocess.run(command, cwd=root, stdout=subprocess.DEVNULL, check=True)
    found["a compiled pipeline"] = needle in compiled.read_bytes()
    return found


def _in_image(work: Path, image: str, needle: bytes) -> bool:
    """Whether any file of any layer, or the image's own description, holds some bytes."""
    archive = work / "image.tar"
    archive.unlink(missing_ok=True)
    subprocess.run(["podman", "save", "-q", "-o", str(archive), image], check=True)
    try:
        with tarfile.open(archive) as whole:
            return any(_holds(whole.extractfile(each), needle) for each in whole if each.isfile())
    finally:
        archive.unlink()


def _holds(stream, needle: bytes) -> bool:  # type: ignore[no-untyped-def] # a file of a tar archive
    """Whether a stream holds some bytes; layers inside an archive are not compressed."""
    rest = b""
    while block := stream.read(1 << 22):
        if needle in rest + block:
            return True
        rest = block[-len(needle) :]
    return False
