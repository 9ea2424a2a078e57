"""B4M: content and style customization of text-to-image models with low-rank adapters.

    import b4m

    content, style = b4m.read_adapter("mug.safetensors"), b4m.read_adapter("ink.safetensors")
    merged = b4m.merge(content, style, method="svd", rank=32)
    b4m.write_adapter("merged.safetensors", merged)

`merge` works on adapters in memory; `train`, `sample`, `evaluate` and `compare` are the command
line's verbs and write files (`b4m.verbs` has the others). Names are imported on first use, so
`import b4m` is light and needs no more than what is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from b4m.adapters.adapter import Adapter
    from b4m.adapters.lowrank import LowRank
    from b4m.api import merge
    from b4m.bases import load_base
    from b4m.errors import B4MError
    from b4m.files import read_adapter, write_adapter
    from b4m.verbs.compare import compare
    from b4m.verbs.evaluate import evaluate
    from b4m.verbs.sample import sample
    from b4m.verbs.train import train

__version__ = "0.1.0"
__all__ = [
    "Adapter",
    "B4MError",
    "LowRank",
    "__version__",
    "compare",
    "evaluate",
    "load_base",
    "merge",
    "read_adapter",
    "sample",
    "train",
    "write_adapter",
]
_HOME = {
    "Adapter": "b4m.adapters.adapter",
    "B4MError": "b4m.errors",
    "LowRank": "b4m.adapters.lowrank",
    "compare": "b4m.verbs",
    "evaluate": "b4m.verbs",
    "load_base": "b4m.bases",
    "merge": "b4m.api",
    "read_adapter": "b4m.files",
    "sample": "b4m.verbs",
    "train": "b4m.verbs",
    "write_adapter": "b4m.files",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'b4m' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
