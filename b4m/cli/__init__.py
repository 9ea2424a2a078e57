"""The command line: every verb of `b4m.verbs` as a command, and `b4m pipeline` for the pipelines.

Only what is written on the command line reaches a verb: a base's own values lie between it and the
defaults. `b4m --help` imports neither torch nor pydantic; a verb is imported when it is called.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from cyclopts import CycloptsError

from b4m.cli.application import Action, application
from b4m.cli.config import with_config
from b4m.cli.errors import sentence
from b4m.cli.messages import messages
from b4m.cli.selection import function_of, select
from b4m.errors import B4MError
from b4m.extras import needs

__all__ = ["main", "parse"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments; those of the process if left out.

    Returns:
        The exit status: 0, 2 for bad input, 130 when interrupted, 1 when a file cannot be used.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot show is no failure
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        if arguments[:1] == ["pipeline"]:
            return _pipeline(arguments[1:])
        _run(arguments, _execute)
    except B4MError as error:
        print(f"b4m: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("b4m: interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"b4m: {error}", file=sys.stderr)
        return 1
    return 0


def parse(argv: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The verb and its arguments by name, as a command line gives them.

    Raises:
        B4MError: in one sentence, for what cannot be parsed or is not a command.
    """
    parsed: list[tuple[str, dict[str, Any]]] = []
    _run(argv, lambda verb, call, verbose, log_file: parsed.append((verb, call)))
    if not parsed:
        raise B4MError(f"{' '.join(argv)!r} is not a command of b4m; see `b4m --help`")
    return parsed[0]


def _pipeline(argv: Sequence[str]) -> int:
    """`b4m pipeline ...`: the pipelines lie above the library, which knows of them this name."""
    with needs("pipelines", "pipeline"):
        return int(import_module("pipelines.cli").main(list(argv)))


def _run(argv: Sequence[str], action: Action) -> None:
    """Hand verb, arguments, verbosity and log file to `action`; print help where that is asked."""
    arguments = with_config(argv)
    selection = select(arguments)
    app = application(selection, action)
    try:
        app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        raise B4MError(sentence(error, selection)) from None


def _execute(verb: str, call: dict[str, Any], verbose: int, log_file: Path | None) -> None:
    with messages(verbose, log_file):
        result = function_of(verb)(**call)
    if isinstance(result, Mapping):
        print(json.dumps(result, indent=2, default=str))
    elif result is not None:
        print(result)
