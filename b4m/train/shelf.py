"""The shelf of finished adapters: what was trained once is not trained again.

An adapter's key is a hash of everything that decides it: method, concept, settings, base, pictures
and captions, and the library's own code.
"""

import hashlib
import json
from pathlib import Path

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
