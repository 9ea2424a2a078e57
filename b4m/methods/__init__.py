"""The methods by name. One module is one paper; a row here says what everybody must know of it.

A module holds what it can do as objects of this module's kinds:

    TRAINING   how an adapter is trained, and what its training reads
    MERGE      how adapters become one
    SAMPLER    how two adapters act together while an image is generated
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from b4m.errors import B4MError
from b4m.settings import Settings
from b4m.training.settings import TrainSettings

if TYPE_CHECKING:
    from b4m.adapters.adapter import Adapter
    from b4m.bases.base import Base
    from b4m.data.manifest import ManifestRow
    from b4m.merging.context import MergeContext
    from b4m.training.run import Run

Rows = Callable[[Sequence["ManifestRow"], str, str], "list[ManifestRow]"]


@dataclass(frozen=True)
class Method:
    """What the planner, the command line and the report know of a method.

    Attributes:
        label: its name in reports.
        summary: what it does in a few words, beside the name.
        training: the way of training that its adapters need, see `TRAININGS`.
        result: "file", one merged adapter; "images", a rule that acts while sampling and has no
            file; "adapter", one adapter trained on both concepts, nothing to merge.
        learned: its merge trains something, so it needs the base and the images.
        module: its module, if it has another name.
    """

    label: str
    summary: str = ""
    training: str = "lora"
    result: Literal["file", "images", "adapter"] = "file"
    learned: bool = False
    module: str = ""


@dataclass(frozen=True)
class Training:
    """A way of training.

    Attributes:
        settings: what it reads.
        train: trains the run's adapter.
        rows: the lines of a manifest that it is shown, of all lines, kind and concept.
    """

    settings: type[TrainSettings]
    train: "Callable[[Run[Any]], Adapter]"
    rows: Rows


@dataclass(frozen=True)
class Merge:
    """A rule that makes one adapter of several.

    Attributes:
        settings: what it reads.
        merge: the rule, of adapters in order.
        check: refuses a base that a learned merge does not suit, before one that was made earlier
            is taken.
        of_two: whether it merges a content and a style adapter, and no other number.
    """

    settings: type[Settings]
    merge: "Callable[[Sequence[Adapter], MergeContext[Any]], Adapter]"
    check: "Callable[[Base], None]" = lambda base: None
    of_two: bool = False

    @classmethod
    def pair(
        cls,
        settings: type[Settings],
        merge: "Callable[[Adapter, Adapter, MergeContext[Any]], Adapter]",
        check: "Callable[[Base], None]" = lambda base: None,
    ) -> "Merge":
        """A rule of a content and a style adapter."""

        def of_both(both: "Sequence[Adapter]", context: "MergeContext[Any]") -> "Adapter":
            content, style = both
            return merge(content, style, context)

        return cls(settings, of_both, check, of_two=True)


@dataclass(frozen=True)
class Sampler:
    """A rule that combines a content and a style adapter while an image is generated.

    Attributes:
        settings: what it reads.
        sampler: gives the deltas and the step hook for `bases.sampling.sample`.
    """

    settings: type[Settings]
    sampler: Callable[..., Any]


METHODS: Mapping[str, Method] = {
    "b4m": Method(
        "B4M",
        "halves trained apart on one basis, then together",
        training="b4m",
        learned=True,
        module="break_for_make",
    ),
    "duolora": Method("DuoLoRA", "learned rank weights", learned=True),
    "ziplora": Method("ZipLoRA", "learned column weights", learned=True),
    "nplora": Method("NP-LoRA", "content kept off the style's directions"),
    "blora": Method("B-LoRA", "content and style in different blocks", training="blora"),
    "klora": Method("K-LoRA", "one adapter per layer and step", result="images"),
    "joint": Method("Joint training", "one adapter for both", training="joint", result="adapter"),
    "direct": Method("Direct merge", "all adapters added"),
    "svd": Method("SVD merge", "their sum at a lower rank"),
    "ssr": Method("SSR-Merge", "ranks routed by least squares", learned=True),
    "tsv": Method("TSV-M", "singular directions turned apart"),
    "ties": Method("TIES", "small and conflicting entries dropped"),
    "dare": Method("DARE", "entries dropped at random"),
}
TRAININGS = ("lora", "b4m", "blora", "joint")


def method(name: str) -> Method:
    """The row of a method.

    Raises:
        B4MError: for an unknown name.
    """
    return METHODS[_known(name, METHODS, "method")]


def training(name: str) -> Training:
    """A way of training; imports its module.

    Raises:
        B4MError: for an unknown name.
    """
    loaded: Training = _module(_known(name, TRAININGS, "way of training")).TRAINING
    return loaded


def merge_rule(name: str, number: int = 2) -> Merge:
    """The merge of a method; imports its module.

    Args:
        name: of the method.
        number: how many adapters are to be merged.

    Raises:
        B4MError: for an unknown name, a method that has no merged file, or a number of adapters
            that it does not merge.
    """
    row = method(name)
    if row.result == "images":
        raise B4MError(
            f"{name} chooses anew at every step, so it has no file: give both adapters to "
            f"`b4m sample --adapter CONTENT STYLE --combine {name}`"
        )
    if row.result == "adapter":
        raise B4MError(
            f"{name} trains one adapter on both concepts, so there is nothing to merge: use "
            f"`b4m train --kind {name} --method {row.training}`"
        )
    loaded: Merge = _module(name).MERGE
    if number < 2:
        raise B4MError(f"a merge needs two adapters or more, not {number}")
    if loaded.of_two and number != 2:
        several = [other for other in names("file") if not _module(other).MERGE.of_two]
        raise B4MError(
            f"{name} merges two adapters, a content and a style, not {number}; for more take "
            f"{', '.join(several)}"
        )
    return loaded


def sampler(name: str) -> Sampler:
    """The sampler of a method; imports its module.

    Raises:
        B4MError: for a name of none.
    """
    samplers = [key for key, row in METHODS.items() if row.result == "images"]
    loaded: Sampler = _module(_known(name, samplers, "way to combine adapters")).SAMPLER
    return loaded


def names(result: str) -> list[str]:
    """The methods with a result of this kind."""
    return [name for name, row in METHODS.items() if row.result == result]


def _known(name: str, known: Mapping[str, object] | Sequence[str], what: str) -> str:
    if name not in known:
        raise B4MError(f"unknown {what} {name!r}; known: {', '.join(known)}")
    return name


def _module(name: str) -> Any:
    row = METHODS.get(name)
    return import_module(f"b4m.methods.{row.module if row and row.module else name}")
