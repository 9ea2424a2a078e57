"""The packages that EmojiGrid is drawn from, pinned, and how to read them.

Each package is an npm archive of real artists' drawings. Vector sets are Iconify JSON (one SVG body
per name, code points in `chars.json`); OpenMoji's own package also has the outline-only drawings
and the table of names, groups and tags; the three-dimensional Fluent renders are WebP pictures.
"""

import csv
import io
import json
import subprocess
import tarfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from b4m.errors import B4MError


@dataclass(frozen=True)
class Package:
    """One pinned npm package and the licence that it states."""

    name: str
    version: str
    licence: str

    @property
    def archive(self) -> str:
        """File name that `npm pack` gives."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


TWEMOJI = Package("@iconify-json/twemoji", "1.2.5", "CC-BY-4.0")
NOTO = Package("@iconify-json/noto", "1.2.9", "Apache-2.0")
NOTO_V1 = Package("@iconify-json/noto-v1", "1.2.5", "Apache-2.0")
FLUENT_FLAT = Package("@iconify-json/fluent-emoji-flat", "1.2.6", "MIT")
FLUENT_CONTRAST = Package("@iconify-json/fluent-emoji-high-contrast", "1.2.6", "MIT")
FLUENT_3D = Package("@lobehub/fluent-emoji-3d", "1.1.0", "MIT")
EMOJIONE = Package("@iconify-json/emojione", "1.2.3", "CC-BY-4.0")
OPENMOJI = Package("openmoji", "17.0.0", "CC-BY-SA-4.0")
PACKAGES = (
    TWEMOJI,
    NOTO,
    NOTO_V1,
    FLUENT_FLAT,
    FLUENT_CONTRAST,
    FLUENT_3D,
    EMOJIONE,
    OPENMOJI,
)


def fetch(folder: Path) -> None:
    """Bring the missing archives into `folder` with the npm client.

    Raises:
        B4MError: when npm is missing or refuses.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        if (folder / package.archive).exists():
            continue
        command = ["npm", "pack", "--silent", f"{package.name}@{package.version}"]
        try:
            subprocess.run(command, cwd=folder, check=True, capture_output=True)
        except FileNotFoundError:
            raise B4MError(
                f"npm is not installed; install it or put {package.archive} into {folder}"
            ) from None
        except subprocess.CalledProcessError as error:
            reason = error.stderr.decode(errors="replace").strip().splitlines()
            raise B4MError(
                f"npm could not bring {package.name}@{package.version}: "
                f"{reason[-1] if reason else 'no reason given'}"
            ) from None


class Archive:
    """An npm archive, its files read by name (without the leading `package/`)."""

    def __init__(self, folder: Path, package: Package) -> None:
        path = folder / package.archive
        if not path.exists():
            raise B4MError(f"{path} is missing; run `b4m mini grid` where npm is installed")
        self.package = package
        with tarfile.open(path) as tar:
            self._files = {
                member.name.split("/", 1)[1]: handle.read()
                for member in tar.getmembers()
                if member.isfile() and (handle := tar.extractfile(member)) is not None
            }

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def read(self, name: str) -> bytes:
        """Content of one file."""
        return self._files[name]

    def table(self, name: str) -> list[dict[str, str]]:
        """Rows of a CSV file."""
        return list(csv.DictReader(io.StringIO(self._files[name].decode("utf-8"))))


class IconSet:
    """One Iconify set: drawings by code point, or by name where it has no code points."""

    def __init__(self, folder: Path, package: Package) -> None:
        archive = Archive(folder, package)
        self._icons: dict[str, Any] = json.loads(archive.read("icons.json"))
        self._by_code: dict[str, str] = json.loads(archive.read("chars.json"))

    @cached_property
    def names(self) -> dict[str, str]:
        """Name of each drawing by code point."""
        return self._by_code

    def body(self, name: str) -> str | None:
        """The whole SVG text of a drawing, black where it has no colour of its own."""
        aliases = self._icons.get("aliases", {})
        icon = self._icons["icons"].get(name)
        if icon is None and name in aliases:
            icon = self._icons["icons"].get(aliases[name]["parent"])
        if icon is None:
            return None
        width = icon.get("width", self._icons.get("width", 16))
        height = icon.get("height", self._icons.get("height", 16))
        body = icon["body"].replace("currentColor", "#000000")
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" '
            f'xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 {width} {height}">'
            f"{body}</svg>"
        )
