"""Settings of every verb, as frozen dataclasses, and the named recipes.

Field help is product text: the command line shows it. Defaults are the papers' for SDXL; a recipe
replaces the few values that a smaller base needs. Precedence: explicit setting, recipe, default.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

from b4m.errors import B4MError

DEFAULT_BASE = "data/models/mini-sdxl"
DEFAULT_EVALUATOR = "data/models/mini-clip"
CONTENT_TRIGGER = "snq"
STYLE_TRIGGER = "w@z"

Settings = TypeVar("Settings", "TrainSettings", "MergeSettings", "SampleSettings")


def _setting(default: Any, text: str, choices: tuple[str, ...] = ()) -> Any:
    return field(default=default, metadata={"help": text, "choices": choices})


@dataclass(frozen=True)
class TrainSettings:
    """How one adapter is trained (B4M's released scripts: rank 64, 1e-4 / 1e-5, 1000 steps)."""

    recipe: str = _setting("auto", "defaults to start from", ("auto", "sdxl", "mini"))
    rank: int = _setting(64, "rank of the adapter")
    alpha: float = _setting(0.0, "scale is alpha / rank; 0 means alpha = rank")
    steps: int = _setting(1000, "optimizer steps")
    batch_size: int = _setting(1, "pictures in one forward")
    accumulation: int = _setting(4, "forwards per optimizer step")
    lr: float = _setting(1e-4, "learning rate; B4M: of the main factor")
    lr_other: float = _setting(1e-5, "B4M: learning rate of the other factor")
    weight_decay: float = _setting(1e-2, "AdamW's decoupled weight decay")
    clip: float = _setting(1.0, "largest gradient norm")
    warmup: int = _setting(0, "steps of linear warm-up")
    blocks: str = _setting("", "only linears whose name contains one of these, comma-separated")
    min_snr_gamma: float = _setting(0.0, "min-SNR loss weight (arXiv 2303.09556); 0 is off")
    flip: bool = _setting(False, "mirror half of the pictures")
    precision: str = _setting("auto", "of the base's weights", ("auto", "fp32", "bf16", "fp16"))
    gradient_checkpointing: bool = _setting(False, "less memory, about a third more time")
    split: float = _setting(0.5, "B4M: share of each factor that is frozen")
    role: str = _setting(
        "content-down",
        "B4M: which factor content learns",
        ("content-down", "content-up"),
    )
    basis_seed: int = _setting(0, "B4M: seed of the frozen orthogonal basis")
    basis_scale: float = _setting(1.0, "B4M: frozen blocks relative to the released magnitude")
    sample_every: int = _setting(0, "steps between sample pictures; 0 is off")
    checkpoint_every: int = _setting(100, "steps between checkpoints")
    seed: int = _setting(0, "seed of noise, order and initial values")


@dataclass(frozen=True)
class MergeSettings:
    """How two adapters become one. A method ignores none of the settings that it is given."""

    recipe: str = _setting("auto", "defaults to start from", ("auto", "sdxl", "mini"))
    content_weight: float = _setting(1.0, "factor on the content adapter")
    style_weight: float = _setting(1.0, "factor on the style adapter")
    rank: int = _setting(0, "truncate the result to this rank; 0 keeps all")
    density: float = _setting(0.5, "ties, dare: share of entries that is kept")
    mu: float = _setting(0.5, "nplora: strength of the projection")
    projection: str = _setting("soft", "nplora: kind of projection", ("soft", "hard"))
    axis: str = _setting("columns", "ziplora: what the masks act on", ("columns", "rows"))
    steps: int = _setting(100, "learned merges and make: optimizer steps")
    lr: float = _setting(0.01, "learned merges: learning rate of the masks")
    similarity: float = _setting(0.01, "ziplora: weight of the mask overlap")
    cycle: float = _setting(0.01, "duolora: weight of the Constyle loss")
    prior: float = _setting(0.1, "duolora: weight of the layer prior")
    init: str = _setting("auto", "masks start from", ("auto", "ones", "prior", "lstsq"))
    bank: int = _setting(32, "learned merges: (latent, t, noise) entries kept per concept")
    make_lr: float = _setting(1e-4, "B4M make: learning rate")
    preconditioner: str = _setting("riemannian", "B4M make: optimizer", ("riemannian", "plain"))
    damping: float = _setting(1e-2, "B4M make: delta of the preconditioner")
    batch_size: int = _setting(1, "B4M make: pictures of either kind in one forward")
    accumulation: int = _setting(4, "B4M make: forwards per optimizer step")
    weight_decay: float = _setting(1e-2, "decoupled weight decay of make")
    clip: float = _setting(1.0, "largest gradient norm")
    checkpoint_every: int = _setting(100, "steps between checkpoints")
    precision: str = _setting("auto", "of the base's weights", ("auto", "fp32", "bf16", "fp16"))
    gradient_checkpointing: bool = _setting(False, "less memory, about a third more time")
    seed: int = _setting(0, "seed of noise, order and random pruning")


@dataclass(frozen=True)
class SampleSettings:
    """How pictures are drawn."""

    recipe: str = _setting("auto", "defaults to start from", ("auto", "sdxl", "mini"))
    steps: int = _setting(25, "denoising steps")
    guidance: float = _setting(5.0, "classifier-free guidance scale; 1 is off")
    negative: str = _setting("", "negative prompt")
    scale: float = _setting(1.0, "strength of the adapter")
    batch_size: int = _setting(4, "pictures drawn together")
    precision: str = _setting("auto", "of the base's weights", ("auto", "fp32", "bf16", "fp16"))
    klora_alpha: float = _setting(1.5, "klora: how strongly style grows with time")
    klora_beta: float = _setting(0.5, "klora: where content and style balance")


RECIPES: Mapping[str, Mapping[str, Mapping[str, object]]] = {
    "sdxl": {"train": {}, "merge": {}, "sample": {}},
    # Tried on mini-SDXL by eye, on a few pairs: a small net wants larger steps, and few of them.
    "mini": {
        "train": {
            "rank": 8,
            "steps": 150,
            "batch_size": 8,
            "accumulation": 1,
            "lr": 1e-3,
            "lr_other": 2e-4,
        },
        "merge": {"batch_size": 4, "accumulation": 1, "make_lr": 2e-3},
        "sample": {"guidance": 3.0, "batch_size": 16},
    },
}
_SECTIONS: Mapping[type, str] = {
    TrainSettings: "train",
    MergeSettings: "merge",
    SampleSettings: "sample",
}


def recipe_for(parameters: int) -> str:
    """Name of the recipe for a base whose UNet has this many parameters."""
    return "mini" if parameters < 200_000_000 else "sdxl"


def resolve(kind: type[Settings], given: Mapping[str, object], parameters: int = 0) -> Settings:
    """Settings from explicit values over a recipe over the defaults.

    Args:
        kind: `TrainSettings`, `MergeSettings` or `SampleSettings`.
        given: explicit values by field name; strings, as a command line gives them, are converted.
        parameters: parameters of the base's UNet, which decide what the recipe "auto" means.

    Raises:
        B4MError: for an unknown name, a value of the wrong type or one out of the choices.
    """
    known = {f.name: f for f in fields(kind)}
    for name in given:
        if name not in known:
            raise B4MError(
                f"unknown setting {name!r} for {_SECTIONS[kind]}; known: {', '.join(known)}"
            )
    values = {name: _convert(known[name], value) for name, value in given.items()}
    recipe = str(values.get("recipe", "auto"))
    if recipe == "auto":
        recipe = recipe_for(parameters)
    defaults = kind()
    recipe_values: dict[str, Any] = dict(RECIPES[recipe][_SECTIONS[kind]])
    return replace(defaults, **(recipe_values | {**values, "recipe": recipe}))


def _convert(spec: Any, value: object) -> object:
    """`value` as the field's type; numbers may arrive as text or as whole floats."""
    wanted = type(spec.default)
    try:
        if wanted is bool:
            text = str(value).lower()
            if text not in {"true", "false", "1", "0", "1.0", "0.0"}:
                raise ValueError(text)
            converted: object = text in {"true", "1", "1.0"}
        elif wanted is int:
            number = float(str(value))
            if number != int(number):
                raise ValueError(value)
            converted = int(number)
        else:
            converted = wanted(value)
    except (ValueError, OverflowError):
        raise B4MError(
            f"setting {spec.name} needs a value of type {wanted.__name__}, not {value!r}"
        ) from None
    choices = spec.metadata.get("choices") or ()
    if choices and converted not in choices:
        raise B4MError(f"setting {spec.name}={value!r}; choose one of {', '.join(choices)}")
    return converted
