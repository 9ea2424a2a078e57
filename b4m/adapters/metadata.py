"""What an adapter says about itself, in the header of its safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from b4m.errors import B4MError

PREFIX = "b4m."


@dataclass(frozen=True)
class Metadata:
    """Everything that determines an adapter. Empty fields are unknown.

    Attributes:
        method: name of the method, e.g. "lora", "b4m", "direct".
        stage: "content", "style", "joint" or "merged".
        concept: name of the concept; of a merged adapter "content+style".
        content: name of the content, where there is one.
        style: name of the style, where there is one.
        rank: largest rank of a layer.
        triggers: trigger word by kind, e.g. {"content": "snq", "style": "w@z"}.
        class_words: class word by kind, e.g. {"content": "animal"}.
        family: name of the family of base models, e.g. "sdxl".
        base_id: name, folder or hub id of the base.
        base_hash: hash of the base's weights.
        data_hash: hash of the pictures and captions.
        code_version: version of b4m, with the commit where known.
        seed: seed of the run.
        basis_seed: B4M: seed of the frozen orthogonal basis.
        split: B4M: share of each factor that is frozen.
        role: B4M: "content-down" or "content-up".
        config: the run's full settings, JSON values only.
    """

    method: str = ""
    stage: str = ""
    concept: str = ""
    content: str = ""
    style: str = ""
    rank: int = 0
    triggers: dict[str, str] = field(default_factory=dict)
    class_words: dict[str, str] = field(default_factory=dict)
    family: str = ""
    base_id: str = ""
    base_hash: str = ""
    data_hash: str = ""
    code_version: str = ""
    seed: int = 0
    basis_seed: int = 0
    split: float = 0.0
    role: str = ""
    config: dict[str, Any] = field(default_factory=dict)

    def to_header(self) -> dict[str, str]:
        """The header: "b4m.<field>" as JSON (text as it is), and modelspec 1.0's own keys."""
        header = {
            PREFIX + f.name: _encode(getattr(self, f.name))
            for f in fields(self)
            if getattr(self, f.name) not in ("", {}) or f.name == "method"
        }
        header["modelspec.sai_model_spec"] = "1.0.0"
        header["modelspec.implementation"] = "diffusers"
        header["modelspec.title"] = self.concept or self.method or "adapter"
        if self.triggers:
            header["modelspec.trigger_phrase"] = " ".join(self.triggers.values())
        return header

    @classmethod
    def from_header(cls, header: Mapping[str, str]) -> Metadata:
        """Metadata of a header; what another tool's header lacks stays empty.

        Raises:
            B4MError: when a "b4m." value is not of the kind that was written.
        """
        known = {f.name: f for f in fields(cls)}
        values: dict[str, Any] = {}
        for key, text in header.items():
            name = key.removeprefix(PREFIX)
            if key.startswith(PREFIX) and name in known:
                values[name] = _decode(name, text, getattr(cls(), name))
        if not values:
            title = header.get("modelspec.title") or header.get("ss_output_name", "")
            phrase = header.get("modelspec.trigger_phrase", "")
            values = {"concept": title, "triggers": {"any": phrase} if phrase else {}}
        return cls(**values)


def _encode(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _decode(name: str, text: str, default: object) -> Any:
    if isinstance(default, str):
        return text
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = None
    if isinstance(default, float) and isinstance(value, int):
        value = float(value)
    if type(value) is not type(default):
        raise B4MError(f"the header's {PREFIX}{name} is {text[:40]!r}, which cannot be read")
    return value
