"""What a merge is given besides its adapters: settings, and what learning needs."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from b4m.adapters.adapter import Adapter
from b4m.bases.base import Base
from b4m.errors import B4MError
from b4m.settings import Settings
from b4m.train.loop import NullTracker, Tracker

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


def require_same_base(content: Adapter, style: Adapter, base: Base | None = None) -> None:
    """Refuse adapters that were trained on different base models, or on another than `base`.

    Adapters from other tools carry no hash; nothing can be said of them, so they pass.

    Raises:
        B4MError: naming the two bases.
    """
    known = [
        (f"the {kind} adapter", adapter.metadata.base_hash, adapter.metadata.base_id)
        for kind, adapter in (("content", content), ("style", style))
        if adapter.metadata.base_hash
    ]
    if base is not None:
        known.append(("this merge", base.hash, base.id))
    for who, digest, name in known[1:]:
        first, first_digest, first_name = known[0]
        if digest != first_digest:
            raise B4MError(
                f"{first} is for base {first_name} ({first_digest[:12]}), {who} for {name} "
                f"({digest[:12]}); adapters fit only the base that they were trained on"
            )
