"""Sets of parameters with a name."""

from typing import Any, Dict, Mapping

from b4m.errors import B4MError

PRESETS: Mapping[str, Mapping[str, Dict[str, Any]]] = {
    "compare": {
        # two pairs of each, three methods; fifteen minutes on two cores are enough
        "smoke": {
            "contents": ["octopus", "owl"],
            "styles": ["painted-19", "openmoji"],
            "methods": ["b4m", "duolora", "direct"],
            "seeds": [0, 1],
            "train_settings": {"steps": "60"},
            "merge_settings": {"steps": "30"},
            "tasks": 2,
        },
    },
}
"""By pipeline and name; a flag goes before a preset."""


def preset(pipeline: str, name: str) -> Dict[str, Any]:
    """The parameters of a preset.

    Raises:
        B4MError: if the pipeline has none of this name.
    """
    known = PRESETS.get(pipeline, {})
    if name not in known:
        listed = ", ".join(known) or "none"
        raise B4MError(f"{pipeline} has no preset {name!r}; it has: {listed}")
    return dict(known[name])
