"""Help lists what is read, with examples that parse, and is there at once."""

import inspect
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable

import docstring_parser
import pytest

from b4m import cli, verbs
from b4m.cli.selection import methods_of, settings_model
from b4m.cli.verbs import EXAMPLES, SELECTOR, VERBS
from tests.cli.answers import Answer

EVERY_METHOD = [(verb, method) for verb in SELECTOR for method in methods_of(verb)]


def _panel(shown: str, title: str) -> str:
    """The lines of help below a title."""
    match = re.search(rf"─ {re.escape(title)} ─.*?\n(.*?)\n╰", shown, re.S)
    assert match, f"no {title!r} in\n{shown}"
    return match.group(1)


@pytest.mark.parametrize("verb", VERBS)
def test_every_argument_of_a_verb_is_explained(verb: str, b4m: Callable[..., Answer]) -> None:
    function = getattr(verbs, verb)
    explained = {each.arg_name: each.description for each in _docstring(function).params}
    arguments = set(inspect.signature(function).parameters) - {"settings"}
    assert arguments <= set(explained)
    status, shown, _ = b4m(verb, "--help")
    assert status == 0
    parameters = " ".join(re.sub(r"│", " ", _panel(shown, "Parameters")).split())
    for name in arguments:
        assert f"--{name.replace('_', '-')} " in parameters
        assert " ".join((explained[name] or "?").split()) in parameters


def _docstring(function: Callable[..., object]) -> docstring_parser.Docstring:
    return docstring_parser.parse_from_object(function)


def test_the_verbs_are_listed_in_the_order_of_their_use(b4m: Callable[..., Answer]) -> None:
    status, shown, _ = b4m("--help")
    listed = re.findall(r"^│ (\w+) ", _panel(shown, "Commands"), re.M)
    assert status == 0
    assert listed == [*VERBS, "pipeline"]
    assert set(VERBS) == set(verbs.__all__)


@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_examples_that_parse(verb: str, b4m: Callable[..., Answer]) -> None:
    _, shown, _ = b4m(verb, "--help")
    for example in EXAMPLES[verb]:
        program, *arguments = shlex.split(example)
        assert program == "b4m"
        assert arguments[-1] in shown
        parsed, call = cli.parse(arguments)
        assert parsed == verb
        inspect.signature(getattr(verbs, verb)).bind(**call)


@pytest.mark.parametrize(("verb", "method"), EVERY_METHOD)
def test_help_lists_exactly_the_settings_that_a_method_reads(
    verb: str, method: str, b4m: Callable[..., Answer]
) -> None:
    status, shown, _ = b4m(verb, f"--{SELECTOR[verb]}", method, "--help")
    assert status == 0
    listed = re.findall(r"^│ --([\w-]+)", _panel(shown, f"Settings of {method}"), re.M)
    fields = settings_model(verb, method).model_fields
    assert [name.replace("-", "_") for name in listed] == list(fields)
    assert not set(fields) & set(inspect.signature(getattr(verbs, verb)).parameters)


def test_help_states_range_default_and_choices_of_a_setting(b4m: Callable[..., Answer]) -> None:
    _, shown, _ = b4m("merge", "--method", "dare", "--help")
    density = next(line for line in shown.splitlines() if "--density" in line)
    assert "more than 0, 1 or less; default 0.5" in density
    _, shown, _ = b4m("merge", "--method", "duolora", "--help")
    assert "--init prior|ones|lstsq" in shown
    _, shown, _ = b4m("train", "--method", "b4m", "--help")
    assert re.search(r"--flip --no-flip .*default off", shown)


@pytest.mark.parametrize("verb", ["train", "merge"])
def test_help_without_a_method_says_how_to_see_settings(
    verb: str, b4m: Callable[..., Answer]
) -> None:
    _, shown, _ = b4m(verb, "--help")
    words = " ".join(shown.split())
    assert f"`b4m {verb} --method METHOD --help`" in words
    listed = words.partition("Methods:")[2].partition("Each method")[0]
    assert not [name for name in methods_of(verb) if name not in re.findall(r"\w+", listed)]


def test_help_answers_fast_and_imports_nothing_heavy() -> None:
    heavy = ("torch", "numpy", "pandas", "mlflow", "kfp", "pydantic", "diffusers", "PIL")
    code = (
        "import sys; from b4m import cli; cli.main(['--help']);"
        f"print(*[n for n in {heavy!r} if n in sys.modules], file=sys.stderr)"
    )
    took = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        took.append(time.perf_counter() - start)
        assert done.returncode == 0
        assert done.stderr.strip() == ""
    assert min(took) < 1.0, took  # 0.12 s on a quiet machine; the limit leaves room for a busy one
