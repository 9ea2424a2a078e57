"""The command line as a cyclopts application, made for one selected command.

Arguments, defaults and help are read from the verb's signature and docstring; the settings of its
method are flags of their own, read from the method's model.
"""

import inspect
import re
import textwrap
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from cyclopts import App, Group, Parameter

from b4m import __version__
from b4m.cli.config import CONFIGURED
from b4m.cli.selection import Selection, function_of, methods_of
from b4m.cli.verbs import EXAMPLES, POSITIONAL, VERBS

Action = Callable[[str, dict[str, Any], int, Path | None], None]


def application(selection: Selection, action: Action) -> App:
    """The whole command line, with the arguments of the selected verb."""
    app = App(
        name="b4m",
        version=__version__,
        help="Teach a base model a content and a style, and make the two one.",
        help_format="plaintext",
        help_epilogue="In this order: prepare, train (content and style), merge, sample, "
        "evaluate, report. Each works on files alone; `b4m VERB --help` explains it.",
        suppress_keyboard_interrupt=False,
        default_parameter=Parameter(consume_multiple=1, negative_iterable=()),
    )
    for number, (name, summary) in enumerate(VERBS.items()):
        if name == selection.verb:
            examples = "\n".join(["Examples:", "", *map(_wrapped, EXAMPLES[name])])
            app.command(
                _command(selection, action),
                name=name,
                help=_description(selection),
                help_epilogue=examples,
                sort_key=number,
            )
        else:
            app.command(_unused, name=name, help=summary, sort_key=number)
    app.command(_unused, name="pipeline", help="Compile, run or submit a pipeline", sort_key=99)
    return app


def _unused() -> None:
    """Stand for a command whose arguments are not needed now."""


def _command(selection: Selection, action: Action) -> Callable[..., None]:
    """A function with the verb's arguments, its method's settings, and the logging flags."""
    verb, function = selection.verb, function_of(selection.verb)
    parameters = [*_arguments(verb, function), *_flags(selection), *_message_flags()]
    if verb in CONFIGURED:  # read before this is called; here so that help shows it
        text = "YAML file with any of these names, or kohya's TOML; flags go before it"
        parameters.append(_keyword("config", Annotated[Path | None, Parameter(help=text)], None))
    fields = selection.settings.model_fields if selection.settings else {}

    def command(*positional: Any, **named: Any) -> None:
        call = dict(zip(POSITIONAL.get(verb, ()), positional, strict=False)) | named
        verbose, log_file = call.pop("verbose", 0), call.pop("log_file", None)
        call.pop("config", None)
        settings = {name: call.pop(name) for name in list(call) if name in fields}
        action(verb, {**call, "settings": settings} if settings else call, verbose, log_file)

    command.__doc__ = function.__doc__
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command


def _arguments(verb: str, function: Callable[..., object]) -> list[inspect.Parameter]:
    """The verb's own arguments, those by position first."""
    hints, positional = get_type_hints(function), POSITIONAL.get(verb, ())
    listed = []
    for name, parameter in inspect.signature(function).parameters.items():
        if name != "settings":
            kind = parameter.POSITIONAL_OR_KEYWORD if name in positional else parameter.KEYWORD_ONLY
            form = Parameter(show_default=_shown(parameter.default))
            hint: Any = Annotated[_plain(hints[name]), form]
            listed.append(parameter.replace(kind=kind, annotation=hint))
    return sorted(listed, key=lambda each: each.kind)


def _flags(selection: Selection) -> list[inspect.Parameter]:
    """A flag per setting. Values stay text, which the library itself checks and converts."""
    if selection.settings is None:
        return []
    from b4m.settings import describe

    group = Group(f"Settings of {selection.method}", sort_key=2)
    flags = []
    for setting in describe(selection.settings):
        default = {"False": "off", "True": "on", "": "empty"}.get(setting.default, setting.default)
        facts = "; ".join(filter(None, [setting.range, f"default {default}"]))
        form = Parameter(
            help=f"{setting.help} ({facts})",
            group=group,
            show_default=False,
            metavar=setting.kind if "|" in setting.kind else setting.kind.upper(),
        )
        hint: Any = {"bool": bool, "weight...": Sequence[str]}.get(setting.kind, str) | None
        flags.append(_keyword(setting.name, Annotated[hint, form], None))
    return flags


def _message_flags() -> list[inspect.Parameter]:
    group = Group("Messages", sort_key=3)
    verbose = Parameter(
        alias="-v",
        count=True,
        group=group,
        show_default=False,
        help="say on stderr what happens; -vv says more",
    )
    log_file = Parameter(group=group, help="write the messages to this file too")
    return [
        _keyword("verbose", Annotated[int, verbose], 0),
        _keyword("log_file", Annotated[Path | None, log_file], None),
    ]


def _keyword(name: str, annotation: Any, default: object) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )


def _plain(hint: Any) -> Any:
    """The type that a command line reads: a path where text would do as well."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is types.UnionType and Path in inner:
        return Path
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return Sequence[_plain(inner[0])]  # type: ignore[misc]
    return hint


def _shown(default: object) -> "bool | Callable[[Any], str]":
    """Whether and how help shows a default; what is empty says nothing."""
    if default in ("", (), None, inspect.Parameter.empty):
        return False
    return lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _description(selection: Selection) -> str:
    """The docstring before its sections, and how to see the settings where they are not shown."""
    text = inspect.getdoc(function_of(selection.verb)) or ""
    prose = re.split(r"^(?:Args|Returns|Raises):", text, flags=re.M)[0]
    paragraphs = [" ".join(part.split()) for part in prose.strip().split("\n\n")]
    if selection.verb in ("train", "merge"):
        paragraphs += _methods(selection)
    return "\n\n".join(paragraphs)


def _methods(selection: Selection) -> list[str]:
    """The methods, and how to see the settings of one where they are not shown."""
    from b4m.methods import METHODS

    names = methods_of(selection.verb)
    if selection.verb == "train":
        paragraphs = [f"Methods: {', '.join(names)}."]
    else:
        listed = (f"  {name:<8} {METHODS[name].summary}" for name in names)
        paragraphs = ["\n".join(["Methods:", "", *listed])]
    if selection.settings is None:
        command = f"b4m {selection.verb} --method METHOD --help"
        paragraphs.append(f"Each method has settings of its own; `{command}` lists them.")
    return paragraphs


def _wrapped(example: str) -> str:
    """An example as lines that a shell takes."""
    kept = re.sub(r"(--[\w-]+) ", "\\1\0", example)  # a flag stays with its value
    lines = textwrap.wrap(kept, 72, break_long_words=False, break_on_hyphens=False)
    return "  " + " \\\n      ".join(lines).replace("\0", " ")
