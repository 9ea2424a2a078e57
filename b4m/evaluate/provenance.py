"""What a number needs beside it: the code's commit and the data's version.

Light on purpose (standard library only): the report and the tracker use it too.
"""

import os
import re
import subprocess
from pathlib import Path


def git_commit() -> str:
    """Commit of the running code, "-dirty" when changed; "" when it cannot be known.

    An image has no checkout: `B4M_GIT_COMMIT`, baked into it, goes first.
    """
    baked = os.environ.get("B4M_GIT_COMMIT", "")
    if baked:
        return baked
    root = Path(__file__).resolve().parents[2]
    # An installed package lies in somebody else's tree; only our own checkout counts.
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        answer = subprocess.run(
            [*command, "--exclude=*"], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""


def data_md5(start: Path | None = None) -> str:
    """DVC's md5 of the data folder, from the nearest data.dvc upwards; "" without one.

    Args:
        start: folder to begin the search in; the working directory if left out.
    """
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        file = folder / "data.dvc"
        if file.is_file():
            found = re.search(r"^\s*-?\s*md5:\s*(\S+)", file.read_text(), re.MULTILINE)
            return found.group(1) if found else ""
    return ""
