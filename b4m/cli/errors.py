"""What is wrong with a command line, in one sentence."""

from collections.abc import Sequence
from difflib import get_close_matches

from cyclopts import CycloptsError
from cyclopts.exceptions import (
    MissingArgumentError,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
)

from b4m.cli.selection import Selection, methods_of, settings_model
from b4m.cli.verbs import POSITIONAL, SELECTOR, VERBS


def sentence(error: CycloptsError, selection: Selection) -> str:
    """What is wrong with a command line."""
    command = selection.command
    if isinstance(error, UnknownOptionError):
        return _unknown_flag(error, selection)
    if isinstance(error, UnknownCommandError):
        token = (error.unused_tokens or ["?"])[0]
        return f"there is no command {token!r}; {_nearest(token, [*VERBS, 'pipeline'])}"
    if isinstance(error, MissingArgumentError) and error.argument is not None:
        name = error.argument.name
        if error.keyword or error.argument.tokens:
            return f"{error.keyword or name} needs a value"
        if name.removeprefix("--") in POSITIONAL.get(selection.verb, ()):
            name = name.removeprefix("--").upper()
        return f"{command} needs {name}; see `b4m {command} --help`"
    if isinstance(error, UnusedCliTokensError):
        extra = " ".join(error.unused_tokens or [])
        return f"{command} has no place for {extra!r}; see `b4m {command} --help`"
    text = " ".join(str(error).split()).rstrip(".")
    return text[:1].lower() + text[1:]


def _unknown_flag(error: UnknownOptionError, selection: Selection) -> str:
    """What is unknown, and where it is known: another method's flag, or the nearest name."""
    flag = (error.token.keyword or error.token.value).split("=")[0]
    name = flag.removeprefix("--").removeprefix("no-").replace("-", "_")
    if readers := _readers(selection.verb, name):
        example = f"b4m {selection.verb} --{SELECTOR[selection.verb]} {readers[0]} --help"
        hint = f"it is a setting of {', '.join(readers)}, see `{example}`"
    else:
        names = [name for argument in error.argument_collection for name in argument.names]
        hint = _nearest(flag, names)
    return f"{selection.command} has no flag {flag}; {hint}"


def _readers(verb: str, setting: str) -> list[str]:
    """The methods that read a setting."""
    every = methods_of(verb)
    return [name for name in every if setting in settings_model(verb, name).model_fields]


def _nearest(word: str, known: Sequence[str]) -> str:
    near = get_close_matches(word, known, n=1, cutoff=0.4)
    return f"the nearest is {near[0]}" if near else f"there are {', '.join(known)}"
