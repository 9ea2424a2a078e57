"""What a merge is given besides its adapters: the base when it needs one, data, settings, tracker.

`Tracker` is what the training floor needs of a tracker; `b4m.tracking` implements it with MLflow.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from b4m.adapters.adapter import Adapter
from b4m.bases.sdxl.load import Base, shared_base
from b4m.config import MergeSettings
from b4m.errors import B4MError
from b4m.train.loop import NullTracker, Tracker

__all__ = ["MergeContext", "NullTracker", "Tracker", "require_same_base"]


@dataclass(frozen=True)
class MergeContext:
    """The surroundings of one merge.

    Closed-form merges never call `load`, so they need neither the base's weights nor its memory.
    """

    base_id: str
    settings: MergeSettings = field(default_factory=MergeSettings)
    data_dir: Path | None = None
    workdir: Path = Path("runs/work")
    tracker: Tracker = field(default_factory=NullTracker)
    loader: Callable[[str], Base] | None = None

    def load(self) -> Base:
        """The base model, loaded at the first call and kept."""
        return self._base

    @cached_property
    def _base(self) -> Base:
        if self.loader is not None:
            return self.loader(self.base_id)
        return shared_base(self.base_id, self.settings.precision)


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
