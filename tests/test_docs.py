"""What the documentation says of the code is true, and the site needs nothing from elsewhere."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

CODE = ("b4m", "components", "pipelines", "mini")
OF_TORCH = {"OMP_NUM_THREADS", "RANK"}  # torch reads them itself
OURS = re.compile(r"(B4M|MLFLOW|KFP|HF|DVC)(_[A-Z0-9]+)+_?")
LOADED = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "embed": "src",
    "object": "data",
    "image": "href",
    "use": "href",
    "link": "href",
}


def _variables(file: Path) -> Iterator[str]:
    """Names of environment variables: read by a literal name, or ours by their beginning."""
    text = file.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if OURS.fullmatch(node.value):
                yield node.value
        elif isinstance(node, ast.Call | ast.Subscript):
            what = ast.unparse(node.func if isinstance(node, ast.Call) else node.value)
            names = node.args[:1] if isinstance(node, ast.Call) else [node.slice]
            if re.fullmatch(r"(os\.)?(environ(\.(get|setdefault|pop))?|getenv)", what):
                yield from (n.value for n in names if isinstance(n, ast.Constant))


def test_the_table_of_environment_variables_is_what_the_code_reads(repo_root: Path) -> None:
    files = [file for part in CODE for file in (repo_root / part).rglob("*.py")]
    read = {name for file in files for name in _variables(file)}
    table = (repo_root / "docs/environment.md").read_text(encoding="utf-8")
    first = "".join(line.split("|")[1] for line in table.splitlines() if line.startswith("| `"))
    written = set(re.findall(r"`(\w+)`", first))
    begun = {name for name in read if name.endswith("_")}  # f"B4M_{...}"
    assert {n for n in begun if not any(w.startswith(n) for w in written)} == set()
    assert read - begun - written == set(), "read, but not in docs/environment.md"
    unread = {n for n in written - read if not any(n.startswith(b) for b in begun)}
    assert unread - OF_TORCH == set(), "in docs/environment.md, but not read"


def _pages(repo_root: Path) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=repo_root,
        capture_output=True,
        text=True,
        check=True,
    )
    files = [repo_root / name for name in listed.stdout.split()]
    # cards are templates: what they link lies beside the models that they are published with
    return [file for file in files if file.is_file() and file.parent.name != "cards"]


def test_commands_in_the_documentation_name_targets_and_paths_that_exist(repo_root: Path) -> None:
    targets = set(re.findall(r"^([a-z0-9]+):", (repo_root / "Makefile").read_text(), re.M))
    wrong = []
    for page in _pages(repo_root):
        text = page.read_text(encoding="utf-8")
        code = re.findall(r"^```(?:bash|console)?\n(.*?)^```|`([^`\n]+)`", text, re.M | re.S)
        for command in (line for pair in code for line in "".join(pair).splitlines()):
            wrong += [
                f"{page.name}: make {name}"
                for name in re.findall(r"^(?:\w+=\S+ )*make ([a-z0-9]+)", command.strip())
                if name not in targets
            ]
            paths = re.findall(
                r"(?<![\w./-])((?:b4m|components|pipelines|infra|tests|docs|mini)/[\w./-]+)",
                command,
            )
            wrong += [
                f"{page.name}: {path}"
                for path in paths
                if not (repo_root / path).exists() and not _example(path)
            ]
    assert wrong == []


def _example(path: str) -> bool:
    """Names of CONTRIBUTING's examples: files that a reader is told to make."""
    return "NAME" in path or path.endswith("/balanced.py") or path.endswith("/test_balanced.py")


def test_links_between_pages_lead_somewhere(repo_root: Path) -> None:
    made = {"settings.md", "methods.md", "api", "index.md"}  # pages that docs/hooks.py makes
    wrong = []
    for page in _pages(repo_root):
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            path = target.partition("#")[0]
            if path and "://" not in path and not (page.parent / path).exists():
                if page.parent.name != "docs" or path.split("/")[0] not in made:
                    wrong.append(f"{page.relative_to(repo_root)}: {target}")
    assert wrong == []


class _Loads(HTMLParser):
    """What a page makes a browser fetch, and the classes of its elements."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attributes}
        if tag in LOADED:
            self.found.append(values.get(LOADED[tag], ""))
        self.found += re.findall(r"url\(([^)]*)\)", values.get("style", ""))
        self.found += [part.split()[0] for part in values.get("srcset", "").split(",") if part]


@pytest.fixture(scope="module")
def site(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; mkdocs is strict, so a broken link or an undocumented argument fails it."""
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "-q", "-d", str(folder)],
        cwd=repo_root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_no_page_of_the_site_loads_anything_from_another_server(site: Path) -> None:
    outside = []
    for page in site.rglob("*.html"):
        loads = _Loads()
        loads.feed(page.read_text(encoding="utf-8"))
        outside += [f"{page.name}: {url}" for url in loads.found if re.match(r"(\w+:)?//", url)]
    for sheet in site.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        outside += re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//[^)\"']*", text)
    for script in site.rglob("*.js"):
        text = script.read_text(encoding="utf-8")
        outside += re.findall(r"https?://(?:unpkg|cdn|fonts|api)[\w./-]*", text)
    assert outside == []


@pytest.mark.slow
def test_the_site_shows_every_setting_of_every_method(site: Path) -> None:
    from b4m.methods import merge_rule, names

    shown = (site / "settings.html").read_text(encoding="utf-8")
    for name in names("file"):
        section = shown.split(f"b4m merge --method {name}<")[1].split("<h3")[0]
        for setting in merge_rule(name).settings.model_fields:
            assert f"<code>{setting}</code>" in section


@pytest.mark.slow
def test_the_site_documents_every_public_name(site: Path) -> None:
    import b4m

    shown = (site / "api/index.html").read_text(encoding="utf-8")
    for name in set(b4m.__all__) - {"__version__"}:
        assert re.search(rf"<a [^>]*href=[^>]*><code>b4m\.{name}</code></a>", shown), name
    lowrank = (site / "api/adapters.html").read_text(encoding="utf-8")
    assert 'id="b4m.adapters.lowrank.LowRank.project_out"' in lowrank
