"""Which code this is: the version, and the commit where it can be known.

Standard library only: adapters, scores and runs all carry it.
"""

import os
import subprocess
from functools import cache
from pathlib import Path

from b4m import __version__


def git_commit() -> str:
    """Commit of the running code, "-dirty" when changed; "" when it cannot be known.

    An image has no checkout: `B4M_GIT_COMMIT`, baked into it, goes first.
    """
    baked = os.environ.get("B4M_GIT_COMMIT", "")
    if baked:
        return baked
    return _commit_of_checkout()


@cache
def _commit_of_checkout() -> str:
    root = Path(__file__).resolve().parents[1]
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


def code_version() -> str:
    """Version of b4m with the commit that an image states, as adapters carry it.

    A checkout's own commit stays out: the same training must give the same file before and after a
    commit that has nothing to do with it.
    """
    commit = os.environ.get("B4M_GIT_COMMIT", "")
    return f"{__version__}+{commit[:12]}" if commit else __version__
