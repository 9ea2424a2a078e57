"""The command line: every verb of `b4m.verbs` as a subcommand.

Flags, defaults and help are read from the verbs' signatures and docstrings, and from the settings'
dataclasses, so that there is one place for each. Nothing heavy is imported before a verb runs.
"""

import argparse
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from b4m import __version__, config
from b4m.errors import B4MError

VERBS = (
    "prepare",
    "train",
    "merge",
    "sample",
    "evaluate",
    "report",
    "compare",
    "inspect",
    "convert",
)
SETTINGS: Mapping[str, type] = {
    "train": config.TrainSettings,
    "merge": config.MergeSettings,
    "sample": config.SampleSettings,
}
# What a verb works on is named by position; everything else is a flag.
POSITIONAL: Mapping[str, tuple[str, ...]] = {
    "prepare": ("source",),
    "merge": ("content", "style"),
    "evaluate": ("samples",),
    "report": ("samples",),
    "compare": ("source",),
    "inspect": ("file",),
    "convert": ("file",),
}
EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "prepare": (
        "b4m prepare data/emojigrid --content octopus --style openmoji --out runs/mine/data",
        "b4m prepare my-pictures --content mug --style sketch --out runs/mine/data",
    ),
    "train": (
        "b4m train --kind content --method b4m --data runs/mine/data --concept octopus"
        " --out runs/mine/content.safetensors",
        "b4m train --kind style --method lora --data runs/mine/data --concept openmoji"
        " --rank 8 --steps 200 --out runs/mine/style.safetensors",
    ),
    "merge": (
        "b4m merge --method direct runs/mine/content.safetensors runs/mine/style.safetensors"
        " --style-weight 0.8 --out runs/mine/merged.safetensors",
    ),
    "sample": (
        "b4m sample --adapter runs/mine/merged.safetensors --data runs/mine/data"
        " --seed 0 1 2 --label direct --out runs/mine/samples/direct",
        'b4m sample --adapter runs/mine/merged.safetensors --prompt "a snq octopus in w@z style"'
        " --out runs/mine/samples/own",
    ),
    "evaluate": ("b4m evaluate runs/mine/samples/* --data runs/mine/data --out runs/mine/scores",),
    "report": (
        "b4m report runs/mine/samples/* --scores runs/mine/scores --data runs/mine/data"
        " --out runs/mine/report.html",
    ),
    "compare": (
        "b4m compare data/emojigrid --content octopus owl --style openmoji painted-19"
        " --method b4m duolora direct --out runs/compare",
    ),
    "inspect": ("b4m inspect runs/mine/merged.safetensors",),
    "convert": (
        "b4m convert runs/mine/merged.safetensors --form kohya --out runs/mine/kohya.safetensors",
    ),
}
_SETTING = "setting:"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments; those of the process if left out.

    Returns:
        The exit status: 0, 2 for bad input, 130 when interrupted, 1 when a file cannot be used.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments[:1] == ["mini"]:  # its builders have a command line of their own
            return int(import_module("b4m.mini.__main__").main(arguments[1:]))
        name, call = parse(arguments)
        _show(_verb(name)(**call))
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
        SystemExit: after `--help`, and after a sentence on what cannot be parsed.
    """
    given = vars(_parser().parse_args(argv))
    return given.pop("verb"), _call(given)


def _verb(name: str) -> Callable[..., object]:
    function: Callable[..., object] = getattr(import_module("b4m.verbs"), name)
    return function


def _call(given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the verb from what was parsed; flags that were not given keep its defaults."""
    call = {k: v for k, v in given.items() if v is not None and not k.startswith(_SETTING)}
    settings = dict(call.pop("set", {}))
    for key, value in given.items():
        if key.startswith(_SETTING) and value is not None:
            settings[key.removeprefix(_SETTING)] = value
    return {**call, "settings": settings} if settings else call


def _show(result: object) -> None:
    """Print what a verb returns: the path it wrote, or what it found out."""
    if isinstance(result, Mapping):
        print(json.dumps(result, indent=2, default=str))
    elif result is not None:
        print(result)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="b4m",
        description="Teach a base model a content and a style, and make the two one.",
        epilog="In this order: prepare, train (content and style), merge, sample, evaluate, "
        "report. Each works on files alone; `b4m VERB --help` explains it with an example.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name in VERBS:
        verb = _verb(name)
        first, _, text = inspect.cleandoc(verb.__doc__ or name).partition("\n")
        command = commands.add_parser(
            name,
            help=first.rstrip("."),
            description="\n\n".join([first, *_prose(text)]),
            epilog="\n  ".join(["examples:", *map(_wrapped, EXAMPLES[name])]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        _add_arguments(command, name, verb)
    commands.add_parser("mini", help="build the small offline world (b4m mini --help)")
    return parser


def _add_arguments(
    command: argparse.ArgumentParser, name: str, verb: Callable[..., object]
) -> None:
    helps = argument_help(verb)
    hints = get_type_hints(verb)
    taken = set()
    for key, parameter in inspect.signature(verb).parameters.items():
        if key == "settings":
            continue
        taken.add(key)
        form = _form(hints.get(key, str))
        text = helps.get(key, "")
        if key in POSITIONAL.get(name, ()):
            form.pop("action", None)
            command.add_argument(key, help=_plain(text), **form)
            continue
        required = parameter.default is inspect.Parameter.empty
        if not required and parameter.default not in ("", [], (), None):
            text = f"{text} (default: {_text(parameter.default)})"
        command.add_argument(
            _flag(key), dest=key, default=None, required=required, help=_plain(text), **form
        )
    if name in SETTINGS:
        _add_settings(command, name, taken)


def _add_settings(command: argparse.ArgumentParser, name: str, taken: set[str]) -> None:
    group = command.add_argument_group("settings", "each also as --set NAME=VALUE")
    group.add_argument("--set", action=_Pairs, metavar="NAME=VALUE", help=argparse.SUPPRESS)
    for field in fields(SETTINGS[name]):
        if field.name in taken:
            continue
        small = config.RECIPES["mini"][name].get(field.name, field.default)
        default = _text(field.default) if field.default != "" else "none"
        if small != field.default:
            default += f"; on a mini base {_text(small)}"
        of_styles = config.RECIPES["mini"].get(f"{name} style", {}).get(field.name)
        if of_styles is not None:
            default += f", for styles {_text(of_styles)}"
        choices = tuple(field.metadata.get("choices") or ())
        if isinstance(field.default, bool):
            choices = ("true", "false")
        group.add_argument(
            _flag(field.name),
            dest=f"{_SETTING}{field.name}",
            metavar="|".join(choices) if choices else type(field.default).__name__.upper(),
            help=_plain(f"{field.metadata['help']} (default: {default})"),
        )


def argument_help(verb: Callable[..., object]) -> dict[str, str]:
    """Text of each argument, from the `Args:` of a Google docstring."""
    section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)*)", inspect.getdoc(verb) or "", re.M)
    helps: dict[str, str] = {}
    name = ""
    for line in (section.group(1) if section else "").splitlines():
        start = re.match(r" {4}(\w+)(?: \(.*?\))?:\s*(.*)", line)
        if start:
            name = start.group(1)
            helps[name] = start.group(2)
        elif name and line.strip():
            helps[name] += f" {line.strip()}"
    return helps


def _prose(docstring: str) -> list[str]:
    """The paragraphs of a docstring before its sections."""
    text = re.split(r"^(?:Args|Returns|Raises|Yields|Examples?):", docstring, flags=re.M)[0]
    return [text.strip()] if text.strip() else []


def _form(annotation: Any) -> dict[str, Any]:
    """What argparse must know to read a value of this type."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return {"choices": inner}
    if origin in (Union, UnionType):
        kinds = [kind for kind in inner if kind is not type(None)]
        return _form(Path if Path in kinds else kinds[0])
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return {**_form(inner[0]), "nargs": "+", "action": "extend"}
    return {"type": annotation if annotation in (int, float, Path) else str}


class _Pairs(argparse.Action):
    """NAME=VALUE, any number of times, as a dictionary of text."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        name, equals, value = str(values).partition("=")
        if not equals:
            parser.error(f"--set {values}: write NAME=VALUE")
        pairs = {**(getattr(namespace, self.dest) or {}), name.replace("-", "_"): value}
        setattr(namespace, self.dest, pairs)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _text(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _plain(text: str) -> str:
    """Help text; argparse reads a percent sign as a format."""
    return text.replace("%", "%%")


def _wrapped(example: str) -> str:
    """An example as lines that a shell takes."""
    kept = re.sub(r"(--[\w-]+) ", "\\1\0", example)  # a flag stays with its value
    lines = textwrap.wrap(kept, 84, break_long_words=False, break_on_hyphens=False)
    return " \\\n      ".join(lines).replace("\0", " ")


if __name__ == "__main__":
    sys.exit(main())
