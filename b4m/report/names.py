"""How the rows of a report are called."""

from b4m import plan
from b4m.evaluation.tables import COPY_OF_CONTENT, COPY_OF_STYLE, GROUND_TRUTH
from b4m.methods import METHODS

BASELINES = tuple(baseline.label for baseline in plan.BASELINES)
"""Rows that merge nothing; every report starts with those that were sampled."""
PARTS = {"content": "Content", "style": "Style", "harmonic": "Both", "truth": "Truth"}
"""The parts of a score, and their headings."""
_NAMES = {
    **{one.label: (one.title, one.summary) for one in plan.BASELINES},
    COPY_OF_CONTENT: ("Copy of the content", "its training image, unchanged"),
    COPY_OF_STYLE: ("Copy of the style", "its training images, unchanged"),
    GROUND_TRUTH: ("Ground truth", "the right answer"),
    **{name: (method.label, method.summary) for name, method in METHODS.items()},
}


def name_of(label: str) -> tuple[str, str]:
    """Display name of a row, and what it is in a few words ("" if not known).

    A row of a method with other settings ("b4m rank 4") starts with the method's name.
    """
    if label in _NAMES:
        return _NAMES[label]
    for known, (name, _) in _NAMES.items():
        if label.startswith(f"{known} "):
            return f"{name}{label[len(known) :]}", ""
    return label[:1].upper() + label[1:], ""
