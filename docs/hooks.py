"""What the site takes from elsewhere: pages of the repository, notebooks, settings, the API's list.

Pages that can be made from the code are made when the site is built, so they cannot go stale.
"""

import inspect
import json
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
# Pages of the site that are files of the repository; their links are rewritten.
TAKEN = {
    "index.md": "README.md",
    "methods.md": "b4m/methods/README.md",
    "clusters.md": "infra/README.md",
    "offline.md": "mini/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
ALONE = ("api", "errors", "settings", "plan")
API = (
    "adapters",
    "files",
    "merging",
    "methods",
    "bases",
    "data",
    "training",
    "evaluation",
    "verbs",
)
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^```.*?^```$", re.M | re.S)
# The theme's script fetches these when a page has a diagram, an old browser or a repository.
_CALLS = re.compile(r"https://(?:unpkg\.com|api\.github\.com)[^\"'`]*")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made here."""
    made = {page: (ROOT / source).read_text(encoding="utf-8") for page, source in TAKEN.items()}
    made["settings.md"] = "\n".join(settings_page())
    made["api/index.md"] = "\n".join(public_page())
    for package in API:
        made[f"api/{package}.md"] = "\n".join(api_page(package))
    for notebook in sorted((ROOT / "docs/notebooks").glob("*.ipynb")):
        made[f"notebooks/{notebook.stem}.md"] = "\n".join(notebook_page(notebook))
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turn links to files of the repository into links to pages, or into their names."""
    uri = page.file.src_uri
    for mark, made in MADE.items():
        if mark in markdown:
            markdown = markdown.replace(mark, "\n".join(made()))
    origin = posixpath.dirname(TAKEN.get(uri, f"docs/{uri}"))
    pages = {source: name for name, source in TAKEN.items()}

    def link(match: re.Match[str]) -> str:
        image, text, target = match.groups()
        path, _, anchor = target.partition("#")
        if not path or "://" in path:
            return match[0]
        source = posixpath.normpath(posixpath.join(origin, path))
        inside = pages.get(source) or (
            source.removeprefix("docs/") if source.startswith("docs/") else None
        )
        if inside is None:
            return text if text == source else f"{text} (`{source}`)"
        inside = re.sub(r"\.ipynb$", ".md", inside)
        relative = posixpath.relpath(inside, posixpath.dirname(uri) or ".")
        return f"{image}[{text}]({relative}{'#' + anchor if anchor else ''})"

    parts, position = [], 0
    for fence in _FENCE.finditer(markdown):
        parts += [_LINK.sub(link, markdown[position : fence.start()]), fence[0]]
        position = fence.end()
    return "".join([*parts, _LINK.sub(link, markdown[position:])])


def on_post_build(config: MkDocsConfig, **_: Any) -> None:
    """Take out of the theme's scripts what they would fetch from other servers."""
    for script in Path(config.site_dir).rglob("*.js"):
        text = script.read_text(encoding="utf-8")
        if _CALLS.search(text):
            script.write_text(_CALLS.sub("", text), encoding="utf-8")


def public_page() -> Iterator[str]:
    """The short public interface with links, then the modules that belong to no package."""
    import b4m

    yield "# b4m\n"
    yield f"{inspect.getdoc(b4m)}\n"
    yield "| name | what it is |\n|---|---|"
    for name in b4m.__all__:
        value = getattr(b4m, name)
        if not name.startswith("_"):
            first = (inspect.getdoc(value) or "").partition("\n")[0]
            yield f"| [`b4m.{name}`][{value.__module__}.{value.__qualname__}] | {first} |"
    yield ""
    for module in ALONE:
        yield f"::: b4m.{module}\n"


def api_page(package: str) -> Iterator[str]:
    """Every module of a package, in the order of the disk."""
    folder = ROOT / "b4m" / package
    yield f"# b4m.{package}\n"
    yield f"::: b4m.{package}\n"
    for module in sorted(folder.rglob("*.py")):
        name = ".".join(module.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if name != f"b4m.{package}":
            yield f"::: {name}\n"


def notebook_page(notebook: Path) -> Iterator[str]:
    """The cells of a notebook, code in fences; results are not kept in git, so there are none."""
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        yield f"```python\n{text}\n```\n" if cell["cell_type"] == "code" else f"{text}\n"
    yield f"This page is `docs/notebooks/{notebook.name}`, to be opened with Jupyter.\n"


def settings_page() -> Iterator[str]:
    """Tables of what each way of training, each merge and each way of sampling reads."""
    from b4m.methods import METHODS, TRAININGS, merge_rule, names, sampler, training
    from b4m.settings import SampleSettings

    yield "# Settings\n"
    yield (
        "Each method reads the settings in its table and refuses others. A setting is a flag of "
        "the command line (`--rank 32`), a keyword of `b4m.merge(..., rank=32)` "
        "and a key of a pipeline's settings. The defaults suit SDXL; a base can bring its own in "
        "`b4m.json`, beside `model_index.json`, and an explicit value goes before both.\n"
    )
    yield "## Training\n"
    for name in TRAININGS:
        yield from _table(f"b4m train --method {name}", training(name).settings)
    yield "## Merging\n"
    for name in names("file"):
        yield f"{METHODS[name].label}: {METHODS[name].summary}.\n"
        yield from _table(f"b4m merge --method {name}", merge_rule(name).settings)
    yield "## Sampling\n"
    yield from _table("b4m sample", SampleSettings)
    for name in names("images"):
        yield from _table(f"b4m sample --combine {name}", sampler(name).settings)


def parameters() -> Iterator[str]:
    """What each pipeline does and takes, from its own definition."""
    from pipelines.cli import PIPELINES, pipeline_of

    for name in PIPELINES:
        component = pipeline_of(name).component_spec
        yield f"## {name}\n"
        yield f"{component.description}\n"
        yield "| parameter | default | what it is |\n|---|---|---|"
        for key, spec in component.inputs.items():
            text = " ".join((spec.description or "").split())
            default = json.dumps(spec.default, ensure_ascii=False)
            yield f"| `{key}` | `{default}` | {text} |"
        yield ""


def families_table() -> Iterator[str]:
    """The base families whose adapter files are known, and what they can be used for."""
    from b4m.bases import families
    from b4m.bases.name_tables import TABLES

    yield "| base | which | files | train, sample, merges that learn |\n|---|---|---|---|"
    for family in [*families(), *TABLES]:
        which = (inspect.getdoc(type(family)) or "").partition("\n")[0].rstrip(".")
        loaded = "" if family in TABLES else "yes"
        yield f"| {family.title} | {which} | yes | {loaded} |"


def _table(title: str, model: Any) -> Iterator[str]:
    from b4m.settings import describe

    yield f"### `{title}`\n"
    yield "| setting | default | value | what it is |\n|---|---|---|---|"
    for one in describe(model):
        kind = one.kind.replace("|", ", ")
        value = f"{kind}, {one.range}" if one.range else kind
        yield f"| `{one.name}` | {one.default or 'empty'} | {value} | {one.help} |"
    yield ""


# Parts of pages that are made from the code, by the comment that they stand for.
MADE: Mapping[str, Callable[[], Iterator[str]]] = {
    "<!-- families -->": families_table,
    "<!-- parameters of the pipelines -->": parameters,
}
