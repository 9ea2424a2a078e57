"""Where a base lies, what it is, and the settings that it brings along."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from b4m.errors import B4MError
from b4m.io import read_json, sha256

INDEX = "model_index.json"
RECIPE = "b4m.json"
_ADVICE = "download the base again"
_WEIGHTS = ("*.safetensors", "*.bin")


def locate(base: str) -> Path:
    """The folder or single file of a base; a hub id is downloaded if it is not cached.

    Raises:
        B4MError: if there is no such base.
    """
    path = Path(base)
    if path.exists():
        return path
    if base.count("/") != 1 or base.startswith((".", "/")):
        raise B4MError(f"base {base}: no such folder or file; `dvc pull` brings the shipped ones")
    from diffusers import DiffusionPipeline

    try:
        return Path(DiffusionPipeline.download(base))
    except Exception as error:  # offline, unknown id, no access: all say "could not be had"
        raise B4MError(
            f"base {base}: no such folder or file, and the hub does not give it: {one_line(error)}"
        ) from error


def pipeline_class(path: Path) -> str:
    """Name of the diffusers pipeline that a folder is for.

    Raises:
        B4MError: for a folder without a readable model_index.json.
    """
    index = path / INDEX
    if not index.is_file():
        raise B4MError(f"base {path}: no {INDEX} in it; give a folder that diffusers saved")
    return str(read_json(index, _ADVICE).get("_class_name", ""))


def read_recipe(path: Path) -> Mapping[str, Mapping[str, object]]:
    """Settings by verb and name that a base's folder brings along in b4m.json; {} without one.

    Raises:
        B4MError: if that file is not of this form.
    """
    file = path / RECIPE
    if not file.is_file():
        return {}
    recipe = read_json(file, _ADVICE).get("recipe", {})
    if not isinstance(recipe, dict) or not all(isinstance(v, dict) for v in recipe.values()):
        raise B4MError(f"{file}: recipe is not an object of objects; remove the file or mend it")
    return recipe


def weight_files(base: str, folder: Path) -> list[Path]:
    """The config and the weights that diffusers reads: safetensors before bin, full before half.

    Raises:
        B4MError: if there are none.
    """
    for pattern in _WEIGHTS:
        files = sorted(folder.glob(pattern))
        plain = [file for file in files if ".fp16." not in file.name]
        if files:
            return [folder / "config.json", *(plain or files)]
    raise B4MError(f"base {base}: no weights in {folder}; the download is incomplete")


def files_hash(files: Sequence[Path]) -> str:
    """SHA-256 over the digests of the files."""
    total = hashlib.sha256()
    for file in files:
        total.update(_digest(file).encode())
    return total.hexdigest()


def one_line(error: Exception) -> str:
    """The text of another library's error, short enough for a sentence."""
    return " ".join(str(error).split())[:200] or type(error).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars for the seconds that reading local files takes."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    shown: list[Any] = [
        each
        for each in (diffusers_logging, transformers_logging)
        if each.is_progress_bar_enabled()  # type: ignore[no-untyped-call, unused-ignore]
    ]
    for each in shown:
        each.disable_progress_bar()
    try:
        yield
    finally:
        for each in shown:
            each.enable_progress_bar()


def _digest(file: Path) -> str:
    """SHA-256 of one file; a hub cache names large files by it, which saves reading 10 GB."""
    stored = file.resolve().name
    if file.is_symlink() and len(stored) == 64 and file.resolve().parent.name == "blobs":
        return stored
    return sha256(file)
