"""Configurations of a training: one flat file that carries the names of the command line.

    kind: content
    method: b4m
    data: runs/mine/data
    concept: octopus
    out: runs/mine/octopus.safetensors
    rank: 16

A file that ends in .toml is one of kohya's sd-scripts (`b4m.verbs.kohya`). Beside every trained
adapter lies its resolved configuration, with the values that the base brought: it starts the same
training again, which ends with the same bytes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from b4m.errors import B4MError
from b4m.extras import needs
from b4m.io import read_text, replacing

_SCALARS = (str, bool, int, float)


def read_config(path: Path) -> dict[str, object]:
    """The values of a configuration by name, dashes in names made underscores.

    Raises:
        B4MError: for a file that is not there or cannot be read, and for values that are none.
    """
    if not path.is_file():
        raise B4MError(f"the configuration {path} does not exist")
    if path.suffix == ".toml":
        from b4m.verbs.kohya import read_kohya

        return read_kohya(path)
    with needs("train", "a configuration in YAML"):
        import yaml
    try:
        content: Any = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        where = f", line {mark.line + 1}" if (mark := getattr(error, "problem_mark", None)) else ""
        raise B4MError(f"{path}{where} is not YAML; write NAME: VALUE in each line") from None
    if not isinstance(content, Mapping):
        raise B4MError(f"{path} is not a configuration; write NAME: VALUE in each line")
    values: dict[str, object] = {}
    for name, value in content.items():
        if not isinstance(value, _SCALARS):
            raise B4MError(f"{path}: {name} must be one value, a number, a word or true or false")
        values[str(name).replace("-", "_")] = value
    return values


def write_config(path: Path, values: Mapping[str, object], comments: Mapping[str, str]) -> Path:
    """Write a configuration; `read_config` gives the same values back.

    Args:
        path: the file.
        values: by name; texts, numbers, true or false.
        comments: what a reader should know, by name; it changes nothing.
    """
    with needs("train", "a configuration in YAML"):
        import yaml
    lines = [f"# {name}: {text}" for name, text in comments.items()]
    body = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)
    with replacing(path) as partial:
        partial.write_text("\n".join([*lines, body]), encoding="utf-8")
    return path


def config_beside(adapter: Path) -> Path:
    """Where the configuration of an adapter file lies."""
    return adapter.with_suffix(".train.yaml")
