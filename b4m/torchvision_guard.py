"""Let PyPI's torchvision load beside a CPU-only torch.

PyPI carries torchvision for CUDA alone. Beside a CPU torch its compiled half cannot be loaded, so
importing it fails with "operator torchvision::nms does not exist", and open_clip, timm and PEFT
fail with it although they never call that operator. Declaring the schemas of the missing operators
is enough for all that this project uses (transforms and model classes).

A finder on `sys.meta_path` waits until somebody imports torchvision: nothing is imported before,
and a healthy torchvision is left alone.
"""

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_OPERATORS = ("nms", "qnms")
_kept_alive: list[object] = []  # a torch.library.Library unregisters its schemas when collected


class _DeclareFirst(Loader):
    """Wrap torchvision's own loader: declare what its compiled half does not, then load it."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        locations = module.__spec__.submodule_search_locations if module.__spec__ else None
        _declare_missing_operators(list(locations or []))
        self._loader.exec_module(module)


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "torchvision":
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _DeclareFirst(spec.loader)
        return spec


def _declare_missing_operators(folders: list[str]) -> None:
    from pathlib import Path

    import torch

    for library in (file for folder in folders for file in sorted(Path(folder).glob("_C*.so"))):
        try:
            torch.ops.load_library(str(library))
        except (OSError, RuntimeError):
            continue  # built for CUDA; torch here is not
    missing = [name for name in _OPERATORS if not hasattr(torch.ops.torchvision, name)]
    if missing:
        library_handle = torch.library.Library("torchvision", "FRAGMENT")
        for name in missing:
            library_handle.define(f"{name}{_SCHEMA}")
        _kept_alive.append(library_handle)


def install() -> None:
    """Put the finder in front of `sys.meta_path`, once."""
    if "torchvision" in sys.modules or any(isinstance(f, _Finder) for f in sys.meta_path):
        return
    sys.meta_path.insert(0, _Finder())
