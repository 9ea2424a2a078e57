"""Which command it is, and which method's settings are its flags."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from b4m.cli.verbs import SELECTOR, VERBS

if TYPE_CHECKING:
    from b4m.settings import Settings


@dataclass(frozen=True)
class Selection:
    """Which command it is, and which method's settings its flags are.

    Attributes:
        verb: "" where the command line names none.
        method: value of the verb's selector.
        settings: what the method reads; None where that is not asked for.
    """

    verb: str
    method: str = ""
    settings: "type[Settings] | None" = None

    @property
    def command(self) -> str:
        """How a user writes it after "b4m"."""
        flag = f" --{SELECTOR[self.verb]} {self.method}" if self.settings else ""
        return f"{self.verb}{flag}"


def select(argv: Sequence[str]) -> Selection:
    """The verb, and the method whose settings are flags.

    Raises:
        B4MError: for an unknown method.
    """
    verb = argv[0] if argv and argv[0] in VERBS else ""
    if verb not in SELECTOR:
        return Selection(verb)
    flag, method = f"--{SELECTOR[verb]}", ""
    for token, following in zip(argv, [*argv[1:], ""], strict=True):
        if token == flag:
            method = following
        elif token.startswith(f"{flag}="):
            method = token.removeprefix(f"{flag}=")
    if not method and verb != "sample" and {"--help", "-h"} & set(argv):
        return Selection(verb)  # help says how to see them; finding them here would import torch
    default = inspect.signature(function_of(verb)).parameters[SELECTOR[verb]].default
    return Selection(verb, method or default, settings_model(verb, method or default))


def settings_model(verb: str, method: str) -> "type[Settings]":
    """What a verb reads with a method; imports the method.

    Raises:
        B4MError: for an unknown method.
    """
    from b4m.methods import merge_rule, training
    from b4m.verbs.sample import settings_of

    if verb == "train":
        return training(method).settings
    return merge_rule(method).settings if verb == "merge" else settings_of(method)


def methods_of(verb: str) -> tuple[str, ...]:
    """The methods that a verb can be called with; none for a verb without methods."""
    from b4m.methods import TRAININGS, names
    from b4m.plan import SUM

    known = {"train": TRAININGS, "merge": names("file"), "sample": [SUM, *names("images")]}
    return tuple(known.get(verb, ()))


def function_of(verb: str) -> Callable[..., object]:
    """The function behind a command."""
    function: Callable[..., object] = getattr(import_module("b4m.verbs"), verb)
    return function
