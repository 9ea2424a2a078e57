"""What all settings have in common, and how they are read.

A method's module owns the model of what it reads (`b4m.methods`), `b4m.training.settings` what all
trainings read; this module holds the parts that several share. Defaults are the papers' for SDXL. A
base may bring values that suit it better (`Base.recipe`), and an explicit value goes before both.

A value may be meant for one method or kind alone, "b4m.steps" or "style.text_lr", or for all that
have the setting, "steps".
Descriptions are product text: the command line shows them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from b4m.errors import B4MError
from b4m.weights import weights_of

_LIMITS = {"ge": "{} or more", "gt": "more than {}", "le": "{} or less", "lt": "less than {}"}
DEFAULT_BASE = "data/models/mini-sdxl"
DEFAULT_EVALUATOR = "data/models/mini-clip"
CONTENT_TRIGGER = "snq"
STYLE_TRIGGER = "w@z"

SEEDS = 2**64
"""Torch's generators take seeds from 0 up to this, not included."""
KINDS = ("content", "style", "joint")
"""What an adapter is trained to draw."""
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Dtype = Literal["float32", "float16", "bfloat16"]
Overrides = Mapping[str, object]


class Settings(BaseModel):
    """Named values that decide a result; unknown names, NaN and infinities are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


S = TypeVar("S", bound=Settings)


class OnBase(Settings):
    """What everything reads that runs the base."""

    precision: Precision = Field("auto", description="of the base's weights")


class Execution(OnBase):
    """How a training is carried out."""

    gradient_checkpointing: bool = Field(False, description="less memory, about a third more time")
    checkpoint_every: int = Field(100, ge=0, description="steps between checkpoints; 0 is off")


class Restyling(Settings):
    """Restyled copies of the content's images, so that its look does not stick to it."""

    restyle: float = Field(
        0.0, ge=0, lt=1, description="share of the shown content images that are restyled copies"
    )
    restyle_words: Literal["described", "nonsense"] = Field(
        "described", description="how their captions name the look"
    )
    restyle_copies: int = Field(24, ge=1, description="restyled copies of each content image")


def _weight_texts(value: object) -> tuple[str, ...]:
    try:
        return tuple(map(str, weights_of(value)))
    except B4MError as error:
        raise ValueError(str(error)) from None


WeightTexts = Annotated[tuple[str, ...], BeforeValidator(_weight_texts)]
"""One `b4m.weights.Weight` for each adapter, as text that JSON and hashes can hold."""
_EACH_ONE = "factors on the adapters, in order, each with others for parts: 0.8 text_encoder=0"


class Weights(Settings):
    """How much of each adapter is taken."""

    weights: WeightTexts = Field((), description=_EACH_ONE)


class MergeSettings(Weights):
    """What every merge of whole adapters reads."""

    rank: int = Field(0, ge=0, description="truncate the result to this rank; 0 keeps all")
    auto_strength: bool = Field(
        False, description="scale the result to the norm of the strongest of the adapters"
    )


class BankSettings(MergeSettings, OnBase):
    """What a merge reads that looks at the inputs of the layers."""

    bank: int = Field(32, ge=1, description="(latent, t, noise) entries kept per concept")
    seed: int = Field(0, ge=0, description="seed of the bank and its order")


class MaskSettings(BankSettings, Execution):
    """How masks over two frozen adapters are learned."""

    steps: int = Field(100, ge=0, description="optimizer steps; 0 keeps the start")
    lr: float = Field(0.01, gt=0, description="learning rate of the masks")
    clip: float = Field(1.0, ge=0, description="largest gradient norm; 0 is off")


class SampleSettings(Weights, OnBase):
    """How images are generated."""

    steps: int = Field(25, ge=1, description="denoising steps")
    guidance: float = Field(5.0, ge=0, description="classifier-free guidance scale; 1 is off")
    negative: str = Field("", description="negative prompt")
    scale: float = Field(1.0, description="strength of the adapter")
    batch_size: int = Field(4, ge=1, description="images generated together")


def resolve(
    model: type[S],
    overrides: Overrides,
    recipe: Overrides | None = None,
    method: str = "",
    kind: str = "",
) -> S:
    """Settings from explicit values over a base's recipe over the defaults.

    Args:
        model: what the method reads.
        overrides: explicit values by name; text, as a command line gives it, is converted.
        recipe: values of the base; names that the method does not have are passed over.
        method: whose settings these are, for "METHOD.NAME" and for messages.
        kind: of what is trained, for "KIND.NAME".

    Raises:
        B4MError: in one sentence, for a name that the method does not have or a value out of range.
    """
    for key in overrides:
        scope, _, name = key.rpartition(".")
        if scope not in ("", method, *KINDS):
            raise B4MError(f"setting {key!r} is not for {method or 'this verb'}; leave it out")
        if name not in model.model_fields:
            raise B4MError(_unknown(name, model.model_fields, method))
    explicit = _own(overrides, method, kind)
    suited = {k: v for k, v in _own(recipe or {}, method, kind).items() if k in model.model_fields}
    try:
        return model(**{**suited, **explicit})
    except ValidationError as error:
        raise B4MError(_sentence(error)) from None


def shared(
    models: Mapping[str, type[Settings]], overrides: Overrides, kinds: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """The part of the values that each of several methods reads.

    Args:
        models: settings by method.
        overrides: "NAME" goes to every method that has it, "METHOD.NAME" to that one.
        kinds: of "KIND.NAME", which goes to every method that has NAME, for `resolve` to use.

    Returns:
        Explicit values by method, each checked.

    Raises:
        B4MError: for a value that no method reads, and as `resolve`.
    """
    names = {name for model in models.values() for name in model.model_fields}
    for key in overrides:
        scope, _, name = key.rpartition(".")
        if scope and scope not in (*models, *kinds):
            known = _few([*models, *kinds])
            raise B4MError(f"setting {key!r}: there is no {scope!r} here; there are {known}")
        fields = models[scope].model_fields if scope in models else names
        if name not in fields:
            raise B4MError(_unknown(name, fields, scope))
    parts: dict[str, dict[str, Any]] = {}
    for method, model in models.items():
        parts[method] = {
            key: value
            for key, value in overrides.items()
            if key.rpartition(".")[0] in ("", method, *kinds)
            and key.rpartition(".")[2] in model.model_fields
        }
        for kind in kinds or [""]:
            resolve(model, parts[method], method=method, kind=kind)
    return parts


def parse_pairs(texts: Iterable[str]) -> dict[str, str]:
    """NAME=VALUE texts as a dictionary; dashes in names become underscores.

    Raises:
        B4MError: for a text without "=".
    """
    values = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise B4MError(f"{text!r} is not a setting; write NAME=VALUE")
        values[name.strip().replace("-", "_")] = value
    return values


def _own(values: Overrides, *scopes: str) -> dict[str, object]:
    """The values for these scopes; those of a later scope go before those of an earlier."""
    own = {key: value for key, value in values.items() if "." not in key}
    for scope in filter(None, scopes):
        prefix = f"{scope}."
        own |= {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}
    return own


def _unknown(name: str, fields: Iterable[str], method: str) -> str:
    known = sorted(fields)
    near = get_close_matches(name, known, n=1)
    hint = f"the nearest is {near[0]}" if near else f"there are {_few(known)}"
    return f"{method or 'this verb'} has no setting {name!r}; {hint}"


def _few(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def _sentence(error: ValidationError) -> str:
    """The first problem in plain English."""
    first = error.errors()[0]
    if not first["loc"]:  # of several settings together; its model has the sentence
        return str(first["ctx"]["error"])
    name, value = ".".join(map(str, first["loc"])), first["input"]
    context: Mapping[str, Any] = first.get("ctx", {})
    demand = {
        "greater_than_equal": "{ge:g} or more",
        "greater_than": "more than {gt:g}",
        "less_than_equal": "{le:g} or less",
        "less_than": "less than {lt:g}",
        "finite_number": "a finite number",
        "literal_error": "one of {expected}",
        "int_parsing": "a whole number",
        "int_from_float": "a whole number",
        "int_type": "a whole number",
        "float_parsing": "a number",
        "float_type": "a number",
        "bool_parsing": "true or false",
        "bool_type": "true or false",
        "string_type": "text",
    }.get(str(first["type"]))
    if demand is None:
        return f"setting {name}={value!r}: {context.get('error', first['msg'])}"
    return f"setting {name}={value!r} must be {demand.format(**context)}"


@dataclass(frozen=True)
class SettingHelp:
    """A setting, for people.

    Attributes:
        name: as in the model.
        kind: int, float, str, bool, or the choices with bars between them.
        range: "0 or more"; "" if everything of its kind is allowed.
        default: as text.
        help: what it is.
    """

    name: str
    kind: str
    range: str
    default: str
    help: str


def describe(model: type[Settings]) -> list[SettingHelp]:
    """What a method reads."""
    return [
        SettingHelp(name, _kind(field), _range(field), _default(field), field.description or "")
        for name, field in model.model_fields.items()
    ]


def _default(field: FieldInfo) -> str:
    return "1 for each" if field.default == () else str(field.default)


def _kind(field: FieldInfo) -> str:
    if field.default == ():
        return "weight..."
    choices = getattr(field.annotation, "__args__", ())
    if choices and all(isinstance(choice, str) for choice in choices):
        return "|".join(choices)
    return str(getattr(field.annotation, "__name__", field.annotation))


def _range(field: FieldInfo) -> str:
    """The limits in words, from the same constraints that are checked."""
    limits = []
    for constraint in field.metadata:
        for name, words in _LIMITS.items():
            if (value := getattr(constraint, name, None)) is not None:
                limits.append(words.format(value))
    return ", ".join(limits)
