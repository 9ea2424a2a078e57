"""Build the image with podman: `make image`, or `python3 infra/image.py --target cpu`.

Without --base a base is made on this machine by debootstrap, which takes root and a minute, once.
What pip is configured to here (where the CPU build of torch is, certificates) goes into the build
as secrets and read-only mounts, so none of it is in a layer. Standard library only.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCAL_BASE = "localhost/b4m-base:bookworm"
VERSION = "0.1.0"
NAME = f"localhost/b4m-python:{VERSION}"
# Options of pip that say where packages come from and how they are reached.
PIP_OPTIONS = ("find-links", "index-url", "extra-index-url", "trusted-host", "timeout", "proxy")
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
NOT_IN_BASE = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info")


def run(*command: str, cwd: Path = ROOT) -> str:
    """Run a command, its errors shown, and return what it prints."""
    done = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip()


def engine_environment(folder: Path) -> None:
    """Let podman work where limits cannot be raised, as in many sandboxes: smaller defaults."""
    file = folder / "containers.conf"
    file.write_text(
        '[containers]\ndefault_ulimits = ["nofile=20000:20000", "nproc=32768:32768"]\n'
        '[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n',
        encoding="utf-8",
    )
    os.environ.setdefault("CONTAINERS_CONF", str(file))


def mirror() -> str:
    """The Debian mirror of this machine's apt."""
    for file in sorted(Path("/etc/apt").rglob("*.sources")) + sorted(
        Path("/etc/apt").rglob("*.list")
    ):
        for line in file.read_text(encoding="utf-8").splitlines():
            words = line.split()
            if words[:1] == ["URIs:"] or words[:1] == ["deb"]:
                address = next((w for w in words[1:] if w.startswith("http")), "")
                if address.rstrip("/").endswith("/debian"):
                    return address
    return "http://deb.debian.org/debian"


def make_base() -> None:
    """A Debian with Python and nothing else, as an image.

    Raises:
        SystemExit: without root or debootstrap.
    """
    if os.getuid() or not shutil.which("debootstrap"):
        sys.exit("A base is made by root with debootstrap; give --base IMAGE instead")
    with tempfile.TemporaryDirectory(prefix="b4m-base-") as folder:
        root = Path(folder) / "root"
        include = "--include=python3,python3-venv,ca-certificates"
        subprocess.run(
            ["debootstrap", "--variant=minbase", include, "bookworm", str(root), mirror()],
            stdout=subprocess.DEVNULL,
            check=True,
        )
        for name in (*NOT_IN_BASE, "var/cache/apt", "var/lib/apt/lists", "var/log"):
            shutil.rmtree(root / name, ignore_errors=True)
            (root / name).mkdir(parents=True)
        archive = Path(folder) / "base.tar"
        run("tar", "-C", str(root), "-cf", str(archive), ".")
        change = ["--change", "ENV LANG=C.UTF-8", "--change", "CMD python3"]
        run("podman", "import", "-q", *change, str(archive), LOCAL_BASE)


def exists(image: str) -> bool:
    """Whether the engine has an image."""
    return subprocess.run(["podman", "image", "exists", image], check=False).returncode == 0


def pip_configuration() -> dict[str, str]:
    """Options of this machine's pip that a build needs; {} where there is no pip."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    )
    options: dict[str, str] = {}
    for line in done.stdout.splitlines():  # environment before files, as pip has it
        key, _, value = line.partition("=")
        name = key.rpartition(".")[2]
        if name in PIP_OPTIONS and name not in options:
            options[name] = value.strip("'\"")
    # mirrors on this disk hold nothing that the index lacks
    for name in ("extra-index-url", "index-url"):
        kept = [each for each in options.pop(name, "").split() if not each.startswith("file:")]
        if kept:
            options[name] = " ".join(kept)
    return options


def access(folder: Path) -> list[str]:
    """Arguments of a build that let pip inside it reach what pip reaches here."""
    options = pip_configuration()
    found = options.get("find-links", "").split()
    arguments = [f"--volume={each}:{each}:ro" for each in found if Path(each).is_dir()]
    certificates = os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE") or CERTIFICATES
    if Path(certificates).is_file():
        shutil.copy(certificates, folder / "ca")
        arguments.append(f"--secret=id=ca,src={folder / 'ca'}")
        options["cert"] = "/run/secrets/ca"
    lines = [f"{name} = {value}" for name, value in options.items()]
    (folder / "pip").write_text("\n".join(["[global]", *lines, ""]), encoding="utf-8")
    return [*arguments, f"--secret=id=pip,src={folder / 'pip'}"]


def commit() -> str:
    """The checkout's commit, "-dirty" if it is changed; "" outside of git."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40"]
    done = subprocess.run([*command, "--exclude=*"], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def build(target: str, base: str, name: str) -> dict[str, object]:
    """Build one target.

    Returns:
        Name, digest, size in bytes, the layers' sizes, commit, base and seconds.

    Raises:
        SystemExit: if data/ is not there.
    """
    if not (ROOT / "data/models").is_dir():
        sys.exit("data/ is not there: run `make data` first")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="b4m-build-") as temporary:
        folder = Path(temporary)
        if not base:
            base = LOCAL_BASE
            if not exists(base):
                print("Making the base image", flush=True)
                make_base()
        digest = (
            run("podman", "image", "inspect", "-f", "{{.Digest}}", base) if exists(base) else ""
        )
        subprocess.run(
            [
                *("podman", "build", "--network=host", "--file=infra/Containerfile"),
                *(f"--target={target}", f"--tag={name}", f"--build-arg=BASE_IMAGE={base}"),
                *(f"--build-arg=BASE_DIGEST={digest}", f"--build-arg=GIT_COMMIT={commit()}"),
                *access(folder),
                ".",
            ],
            cwd=ROOT,
            check=True,
        )
    facts = json.loads(run("podman", "image", "inspect", name))[0]
    return {
        "name": name,
        "digest": facts["Digest"],
        "id": facts["Id"],
        "bytes": facts["Size"],
        "commit": commit(),
        "base": base,
        "base_digest": digest,
        "seconds": round(time.monotonic() - started),
    }


def main() -> None:
    """Build, and write what was built to build/image.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--base", default="", help="image with Python 3.11; default: made here")
    parser.add_argument("--name", default=NAME)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="b4m-engine-") as folder:
        engine_environment(Path(folder))
        built = build(given.target, given.base, given.name)
    (ROOT / "build").mkdir(exist_ok=True)
    (ROOT / "build/image.json").write_text(json.dumps(built, indent=1) + "\n", encoding="utf-8")
    print(f"{built['name']}: {int(str(built['bytes'])) / 1e9:.2f} GB, {built['seconds']} s")
    print(f"{built['name'].partition(':')[0]}@{built['digest']}")


if __name__ == "__main__":
    main()
