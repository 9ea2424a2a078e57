"""Print what extras of pyproject.toml need, one requirement a line: `requirements.py all server`.

The image installs them before it has the code, so that a change of code leaves that layer alone.
"""

import re
import sys
import tomllib
from pathlib import Path


def requirements(project: dict, extras: list[str]) -> list[str]:
    """Requirements of the package and of `extras`, those that name other extras opened.

    Args:
        project: The table `project` of pyproject.toml.
        extras: Names of extras.

    Raises:
        KeyError: for an extra that is not there.
    """
    found: dict[str, None] = dict.fromkeys(project["dependencies"])
    waiting, seen = list(extras), set()
    while waiting:
        extra = waiting.pop(0)
        if extra in seen:
            continue
        seen.add(extra)
        for line in project["optional-dependencies"][extra]:
            own = re.fullmatch(rf"{project['name']}\[([\w, -]+)\]", line)
            if own:
                waiting += [name.strip() for name in own[1].split(",")]
            else:
                found[line] = None
    return list(found)


if __name__ == "__main__":
    table = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    print("\n".join(requirements(table, sys.argv[1:])))
