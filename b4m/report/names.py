"""How the rows of a report are called."""

from b4m.evaluate.tables import COPY_OF_CONTENT, COPY_OF_STYLE

BASELINES = ("base", "content only", "style only")
"""Rows that merge nothing; every report starts with those that were sampled."""
DIRECT = ("direct", "direct merge")
_NAMES = {
    "base": ("Base model", "before any customization"),
    "content only": ("Content adapter", "alone, without the style"),
    "style only": ("Style adapter", "alone, without the content"),
    "direct": ("Direct merge", "both adapters added"),
    "svd": ("SVD", "their sum at a lower rank"),
    "ties": ("TIES", "small and conflicting entries dropped"),
    "dare": ("DARE", "entries dropped at random"),
    "nplora": ("NP-LoRA", "content kept off the style's directions"),
    "blora": ("B-LoRA", "content and style in different blocks"),
    "ziplora": ("ZipLoRA", "learned column weights"),
    "duolora": ("DuoLoRA", "learned rank weights"),
    "klora": ("K-LoRA", "one adapter per layer and step"),
    "joint": ("Joint training", "one adapter for both"),
    "b4m": ("B4M", "trained apart on one basis, then together"),
    COPY_OF_CONTENT: ("Copy of the content", "its training image, unchanged"),
    COPY_OF_STYLE: ("Copy of the style", "its training images, unchanged"),
}


def name_of(label: str) -> tuple[str, str]:
    """Display name of a row, and what it is in a few words ("" if not known)."""
    if label in _NAMES:
        return _NAMES[label]
    for known, (name, _) in _NAMES.items():
        if label.startswith(f"{known} "):
            return f"{name}{label[len(known) :]}", ""
    return label[:1].upper() + label[1:], ""
