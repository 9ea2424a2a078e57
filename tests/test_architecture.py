"""The rules of the house, read off the syntax tree, the disk and the interpreter."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

FLOORS = ("b4m", "components", "pipelines")
# Packages that one part of the library may import, and nothing else may.
ONLY_IN = {
    "mlflow": ("b4m/tracking/",),
    "open_clip": ("b4m/evaluation/",),
    "diffusers": ("b4m/bases/", "b4m/testing.py"),
    "accelerate": ("b4m/training/",),
    "dvc": ("b4m/data/repository.py",),
}
# Which rooms of the library a room may import, late imports included; itself always.
_SURFACE = {"errors", "extras", "settings", "weights", "io", "version", "torchvision_guard"}
BELOW: dict[str, set[str]] = {
    "errors": set(),
    "version": set(),
    "torchvision_guard": set(),
    "io": {"errors"},
    "extras": {"errors"},
    "weights": {"errors"},
    "settings": {"errors", "weights"},
    "adapters": _SURFACE,
    "bases": {*_SURFACE, "adapters"},
    "files": {*_SURFACE, "adapters", "bases"},
    "data": {*_SURFACE, "adapters", "bases"},
    "training": {*_SURFACE, "adapters", "bases", "files", "data"},
    "merging": {*_SURFACE, "adapters", "bases", "files", "data", "training"},
    "methods": {*_SURFACE, "adapters", "bases", "files", "data", "training", "merging"},
    "plan": {*_SURFACE, "methods"},
    "shards": {*_SURFACE, "plan"},
    "presets": {*_SURFACE, "methods"},
    "evaluation": {*_SURFACE, "data"},
    "report": {*_SURFACE, "data", "methods", "plan", "evaluation"},
    "tracking": {*_SURFACE, "data"},
    "testing": {*_SURFACE, "bases"},
}
BELOW["verbs"] = {*BELOW} - {"testing"}
BELOW["api"] = {*BELOW["verbs"], "verbs"}
BELOW["jobs"] = {*BELOW["verbs"], "verbs"}
BELOW["publish"] = {*BELOW["jobs"], "jobs"}
BELOW["cli"] = {*BELOW["api"], "api"}


@dataclass(frozen=True)
class Import:
    """One imported module, and whether it stands at module scope."""

    file: str
    line: int
    module: str
    names: tuple[str, ...]
    late: bool

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"


def _root() -> Path:
    return Path(__file__).resolve().parent.parent


@cache
def _tracked(*patterns: str) -> list[Path]:
    """Files of the checkout: tracked by git, and new ones that git does not ignore."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns]
    listed = subprocess.run(command, cwd=_root(), capture_output=True, text=True, check=True)
    return [Path(name) for name in listed.stdout.splitlines() if (_root() / name).is_file()]


def _imports(file: Path) -> Iterator[Import]:
    tree = ast.parse((_root() / file).read_text(encoding="utf-8"))
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    name = file.as_posix()
    for node in ast.walk(tree):
        late = id(node) in inside
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(name, node.lineno, alias.name, (), late)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno} is a relative import"
            names = tuple(alias.name for alias in node.names)
            yield Import(name, node.lineno, node.module or "", names, late)


@cache
def _all_imports(*floors: str) -> list[Import]:
    files = [f for f in _tracked("*.py") if f.parts[0] in floors]
    return [one for file in files for one in _imports(file)]


def _is_or_within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def _part(module: str) -> str | None:
    """`methods` of `b4m.methods.ties`; None for other packages."""
    names = module.split(".")
    return names[1] if names[0] == "b4m" and len(names) > 1 else None


def test_the_library_knows_nothing_of_what_is_above_it() -> None:
    above = ("kfp", "components", "pipelines", "kubernetes")
    wrong = [i for i in _all_imports("b4m") if any(_is_or_within(i.module, a) for a in above)]
    assert not wrong, "\n".join(map(str, wrong))


@pytest.mark.parametrize("package", ONLY_IN)
def test_a_heavy_package_is_imported_in_one_part_alone(package: str) -> None:
    wrong = [
        i
        for i in _all_imports(*FLOORS)
        if _is_or_within(i.module, package) and not i.file.startswith(ONLY_IN[package])
    ]
    assert not wrong, "\n".join(map(str, wrong))


@cache
def _rooms() -> dict[str, dict[str, Import]]:
    """Which room imports which others, each with one of the imports that do."""
    arrows: dict[str, dict[str, Import]] = {}
    for one in _all_imports("b4m"):
        room = Path(one.file).parts[1].removesuffix(".py")
        if room == "__init__":
            continue  # the package's own names are those of its rooms
        seen = arrows.setdefault(room, {})
        # `from b4m import plan` imports a room, `from b4m import __version__` none
        targets = one.names if one.module == "b4m" else [_part(one.module) or ""]
        for target in targets:
            if target in BELOW and target != room:
                seen.setdefault(target, one)
    return arrows


@pytest.mark.parametrize("floor", BELOW)
def test_a_floor_imports_only_floors_below(floor: str) -> None:
    wrong = {name: i for name, i in _rooms().get(floor, {}).items() if name not in BELOW[floor]}
    assert not wrong, "\n".join(map(str, wrong.values()))


def test_every_room_has_its_floor() -> None:
    assert set(_rooms()) <= set(BELOW)


def test_the_rooms_stand_in_no_circle() -> None:
    allowed = TopologicalSorter(BELOW)
    real = TopologicalSorter({room: set(targets) for room, targets in _rooms().items()})
    for graph in (allowed, real):
        assert list(graph.static_order())  # raises CycleError, which names the circle


def test_methods_never_import_one_another() -> None:
    wrong = [
        i
        for i in _all_imports("b4m")
        if i.file.startswith("b4m/methods/") and i.module.startswith("b4m.methods.")
    ]
    assert not wrong, "\n".join(map(str, wrong))


def test_nothing_but_its_own_modules_imports_the_offline_world() -> None:
    wrong = [i for i in _all_imports(*FLOORS) if _is_or_within(i.module, "b4m_mini")]
    assert not wrong, "\n".join(map(str, wrong))


def test_nothing_but_tests_and_the_offline_world_imports_what_tests_need() -> None:
    wrong = [i for i in _all_imports(*FLOORS) if _is_or_within(i.module, "b4m.testing")]
    assert not wrong, "\n".join(map(str, wrong))


def test_the_offline_world_imports_no_private_name_of_the_library() -> None:
    wrong = [
        i
        for i in _all_imports("mini")
        if _is_or_within(i.module, "b4m")
        and any(re.match(r"_(?!_)", part) for part in (*i.names, *i.module.split(".")))
    ]
    assert not wrong, "\n".join(map(str, wrong))


def test_components_import_only_kfp_at_module_scope() -> None:
    allowed = ("typing", "kfp", "components.image", "os")
    wrong = [
        i
        for i in _all_imports("components")
        if not i.late and not any(_is_or_within(i.module, a) for a in allowed)
    ]
    assert not wrong, "\n".join(map(str, wrong))


def test_pipelines_import_of_the_library_only_what_decides_without_computing() -> None:
    standard = sys.stdlib_module_names
    allowed = {"cyclopts", "kfp", "kfp_server_api", "kubernetes", "urllib3"}
    allowed |= {"components", "pipelines"}
    rooms = ("errors", "io", "plan", "settings", "shards", "tracking", "version")
    pure = {"b4m", *(f"b4m.{name}" for name in rooms)}
    wrong = [
        i
        for i in _all_imports("pipelines")
        if i.module not in pure and i.module.split(".")[0] not in {*allowed, *standard}
    ]
    assert not wrong, "\n".join(map(str, wrong))


def test_no_postponed_annotations_where_kfp_reads_them() -> None:
    wrong = [i for i in _all_imports("components", "pipelines") if i.module == "__future__"]
    assert not wrong, "\n".join(map(str, wrong))


def test_nothing_imports_a_private_name_of_another_module() -> None:
    wrong = [
        f"{i} ({', '.join(i.names)})"
        for i in _all_imports(*FLOORS)
        if i.module.split(".")[0] in FLOORS
        and any(re.match(r"_(?!_)", part) for part in (*i.names, *i.module.split(".")))
    ]
    assert not wrong, "\n".join(wrong)


def test_files_and_functions_stay_short() -> None:
    """400 and 60 lines; what a docstring explains does not count against its function."""
    long = []
    for file in _tracked("*.py"):
        text = (_root() / file).read_text(encoding="utf-8")
        lines = len(text.splitlines())
        if lines > 400:
            long.append(f"{file}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if (
                isinstance(node, ast.FunctionDef)
                and node.end_lineno
                and file.parts[0] in ("b4m", "mini")
            ):
                told = ast.get_docstring(node, clean=False) or ""
                length = node.end_lineno - node.lineno + 1 - len(told.splitlines())
                if length > 60:
                    long.append(f"{file}:{node.lineno} {node.name}: {length} lines")
    assert not long, "\n".join(long)


def test_components_and_pipelines_have_few_parameters_and_short_bodies() -> None:
    wrong = []
    for file in _tracked("components/*.py", "pipelines/*.py"):
        for node in ast.parse((_root() / file).read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.FunctionDef):
                continue
            kinds = [ast.unparse(d) for d in node.decorator_list]
            component = any(k.startswith("dsl.component") for k in kinds)
            limit = 14 if component else 20  # a pipeline's are a form that people fill in
            if kinds and len(node.args.args) > limit:
                wrong.append(f"{file}: {node.name} has {len(node.args.args)} parameters")
            body = sum((s.end_lineno or 0) - s.lineno + 1 for s in node.body[1:])
            if component and body > 25:
                wrong.append(f"{file}: {node.name} has a body of {body} lines")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "module", ["b4m", "b4m.settings", "b4m.plan", "b4m.cli", "b4m.verbs", "b4m.methods"]
)
def test_importing_the_surface_of_the_library_is_light(module: str) -> None:
    heavy = ("torch", "diffusers", "transformers", "open_clip", "mlflow", "pandas", "numpy")
    code = f"import sys, {module}; print(*[name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=_root(), capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


def test_the_map_of_the_tree_in_the_readme_is_the_tree_on_disk() -> None:
    readme = (_root() / "README.md").read_text(encoding="utf-8")
    drawn = _drawn_tree(readme)
    files = [file for file in _tracked() if not file.parts[0].startswith(".")]
    folders = {f.parts[0] for f in files if len(f.parts) > 1}
    first = {f.parts[0] for f in files} | {"data"}  # data/ is there through data.dvc
    assert {path for path in drawn if "/" not in path} == first
    for folder in {path.split("/")[0] for path in drawn if "/" in path} & folders:
        here = {
            "/".join(f.parts[:2])
            for f in files
            if f.parts[0] == folder and len(f.parts) > 1 and f.parts[1] != "__init__.py"
        }
        assert {path for path in drawn if path.startswith(f"{folder}/")} == here


def _drawn_tree(readme: str) -> set[str]:
    """Paths in the fenced block that draws the tree, two levels deep.

    A line is an indentation (blanks or box-drawing characters), names separated by blanks, then
    two blanks and words on them. Deeper levels are the README's own business.
    """
    blocks = re.findall(r"^```\w*\n(.*?)^```", readme, re.M | re.S)
    trees = [b for b in blocks if "pyproject.toml" in b and "b4m/" in b]
    assert trees, "the README shows no fenced map of the tree with b4m/ and pyproject.toml"
    drawn: set[str] = set()
    parents: list[tuple[int, str]] = []
    for line in trees[0].splitlines():
        match = re.match(r"([\s\u2500-\u257f|`+-]*)(\S.*)", line)
        if not match:
            continue
        depth = len(match.group(1).replace("`-- ", "    ").expandtabs(4))
        names = re.split(r"\s{2,}|\s#", match.group(2))[0].split()
        while parents and parents[-1][0] >= depth:
            parents.pop()
        if len(parents) < 2:
            above = f"{parents[-1][1]}/" if parents else ""
            drawn |= {above + name.rstrip("/") for name in names}
        parents.append((depth, names[-1].rstrip("/")))
    return drawn
