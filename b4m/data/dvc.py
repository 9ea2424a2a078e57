"""The version of the data, as DVC states it. Standard library only: the tracker uses it too."""

import re
from pathlib import Path


def data_md5(start: Path | None = None) -> str:
    """DVC's md5 of the data folder, from the nearest data.dvc upwards; "" without one.

    Args:
        start: folder to begin the search in; the working directory if left out.
    """
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        file = folder / "data.dvc"
        if file.is_file():
            match = re.search(
                r"^\s*-?\s*md5:\s*(\S+)",
                file.read_text(encoding="utf-8", errors="replace"),
                re.MULTILINE,
            )
            return match.group(1) if match else ""
    return ""
