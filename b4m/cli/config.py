"""`--config FILE`: the values of a file put into a command line, whose own flags go first."""

import inspect
import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from b4m.cli.selection import function_of, settings_model
from b4m.cli.verbs import SELECTOR
from b4m.errors import B4MError

CONFIGURED = ("train",)
"""The verbs whose arguments are all flags, so that a file can give any of them."""

_FLAG = re.compile(r"--(?:no-)?([a-z][\w-]*)")


def with_config(argv: Sequence[str]) -> list[str]:
    """The command line with what its configuration file adds; others stay as they are.

    Raises:
        B4MError: for a file that cannot be read, or a name in it that the command does not have.
    """
    arguments = list(argv)
    flag = next((a for a in arguments if re.fullmatch(r"--config(=.*)?", a)), None)
    if not arguments or arguments[0] not in CONFIGURED or flag is None:
        return arguments
    place = arguments.index(flag)
    following = arguments[place + 1 : place + 2] if flag == "--config" else [flag[9:]]
    if not following or not following[0]:
        raise B4MError("--config needs a value")
    del arguments[place : place + (2 if flag == "--config" else 1)]
    from b4m.verbs.config import read_config

    path, given = Path(following[0]), _given(arguments)
    values = {name: value for name, value in read_config(path).items() if name not in given}
    selector = SELECTOR[arguments[0]]
    method = given.get(selector) or str(values.get(selector, ""))
    known = _known(arguments[0], method)
    for name in values:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"the nearest is {near[0]}" if near else f"see `b4m {arguments[0]} --help`"
            raise B4MError(f"{path}: {arguments[0]} has nothing that is called {name!r}; {hint}")
    return [*arguments, *(_token(name, value) for name, value in values.items())]


def _given(arguments: Sequence[str]) -> dict[str, str]:
    """The names of the flags on a command line with what follows them."""
    given = {}
    for token, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if match := _FLAG.match(token):
            name = match[1].replace("-", "_")
            given[name] = token[match.end() + 1 :] if match.end() < len(token) else following
    return given


def _known(verb: str, method: str) -> list[str]:
    """The arguments and settings of a verb with a method."""
    arguments = inspect.signature(function_of(verb)).parameters
    default = arguments[SELECTOR[verb]].default
    fields = settings_model(verb, method or default).model_fields
    return [*(name for name in arguments if name != "settings"), *fields]


def _token(name: str, value: object) -> str:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    return f"--{flag}={value}"
