"""What a merge is given besides its adapters: settings, and what learning needs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from b4m.adapters.adapter import Adapter
from b4m.bases import family_of
from b4m.bases.base import Base
from b4m.errors import B4MError
from b4m.settings import Settings
from b4m.training.report import NullTracker, Tracker

S_co = TypeVar("S_co", bound=Settings, covariant=True)


@dataclass(frozen=True)
class MergeContext(Generic[S_co]):
    """The surroundings of one merge.

    Attributes:
        settings: what the method reads.
        loaded: the base; closed-form merges need none.
        data: prepared folder with the images of both concepts; only learned merges need it.
        workdir: for caches and checkpoints.
        tracker: gets losses.
    """

    settings: S_co
    loaded: Base | None = None
    data: Path | None = None
    workdir: Path = Path("runs/work")
    tracker: Tracker = field(default_factory=NullTracker)

    @property
    def base(self) -> Base:
        """The base model.

        Raises:
            B4MError: without one.
        """
        if self.loaded is None:
            raise B4MError("this merge learns, so it needs the base model; give it with --base")
        return self.loaded

    @property
    def folder(self) -> Path:
        """The prepared folder.

        Raises:
            B4MError: without one.
        """
        if self.data is None:
            raise B4MError(
                "this merge learns from the images of both concepts; give the prepared folder "
                "with --data"
            )
        return self.data


def called(number: int, of: int) -> str:
    """What messages call one of some adapters: two are the content and the style adapter."""
    return f"the {('content', 'style')[number]} adapter" if of == 2 else f"adapter {number + 1}"


def require_same_base(adapters: Sequence[Adapter], base: Base | None = None) -> None:
    """Refuse adapters that were trained on different base models, or on another than `base`.

    Adapters from other tools carry no hash, so only their layers can tell that they do not fit.

    Raises:
        B4MError: naming the two bases.
    """
    own = base.family.name if base is not None else ""
    sides = [(called(k, len(adapters)), adapter) for k, adapter in enumerate(adapters)]
    found = [(who, family_of(one.layers, one.metadata.family or own)) for who, one in sides]
    families = [(who, family.title, family.name) for who, family in found if family is not None]
    bases = [
        (who, f"{about.base_id} ({about.base_hash[:12]})", about.base_hash)
        for who, about in ((who, one.metadata) for who, one in sides)
        if about.base_hash
    ]
    if base is not None:
        families.append(("this merge", base.family.title, own))
        bases.append(("this merge", f"{base.id} ({base.hash[:12]})", base.hash))
    for kind, parties in (("base ", bases), ("", families)):
        for who, what, identity in parties[1:]:
            first, first_what, first_identity = parties[0]
            if identity != first_identity:
                raise B4MError(
                    f"{first} is for {kind}{first_what}, {who} for {what}; adapters fit only the "
                    "base that they were trained on"
                )
