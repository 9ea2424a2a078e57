"""The shelf of finished adapters: what was trained once is not trained again.

An adapter's key is a hash of everything that decides it: method, concept, settings, base, pictures
and captions, and the library's own code.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from b4m.data.manifest import ManifestRow, partner_rows, training_rows

_FLOORS = ("adapters", "data", "methods", "sdxl", "train")


def place(work: Path, *parts: object) -> Path:
    """Where the adapter that these parts decide lies, or will lie.

    Args:
        work: working folder of the checkout or volume.
        parts: texts, numbers and dictionaries.
    """
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode())
    root = Path(__file__).parent.parent
    for floor in _FLOORS:
        for file in sorted((root / floor).glob("*.py")):
            digest.update(file.read_bytes())
    return work / "adapters" / f"{digest.hexdigest()[:24]}.safetensors"


def rows_used(
    rows: Sequence[ManifestRow], kind: str, concept: str, method: str
) -> list[ManifestRow]:
    """The lines of a manifest that a training reads: a new style does not train the content anew.

    Args:
        rows: all lines.
        kind: content, style or joint.
        concept: name of what is trained.
        method: b4m trains with partners of the other kind.

    Raises:
        B4MError: if there is no such concept.
    """
    if kind == "joint":
        return list(rows)
    used = list(training_rows(rows, kind, concept))
    return used + list(partner_rows(rows, kind)) if method == "b4m" else used
