"""The configuration files of kohya's sd-scripts, translated as far as they have a meaning here.

Where sd-scripts have another default than `b4m train`, their default is translated too: alpha 1,
one forward per step. What stays untranslated is told in a warning.
"""

import tomllib
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from b4m.errors import B4MError
from b4m.io import read_text
from b4m.settings import parse_pairs

Translated = Mapping[str, object]
# Names that mean the same, value for value.
_SAME = {
    "pretrained_model_name_or_path": "base",
    "network_dim": "rank",
    "network_alpha": "alpha",
    "learning_rate": "lr",
    "unet_lr": "lr",
    "max_train_steps": "steps",
    "train_batch_size": "batch_size",
    "gradient_accumulation_steps": "accumulation",
    "gradient_checkpointing": "gradient_checkpointing",
    "seed": "seed",
    "max_grad_norm": "clip",
    "min_snr_gamma": "min_snr_gamma",
    "debiased_estimation_loss": "debiased",
    "noise_offset": "noise_offset",
    "huber_c": "huber_delta",
    "masked_loss": "masked",
    "alpha_mask": "masked",
    "caption_dropout_rate": "caption_dropout",
    "keep_tokens": "keep_tags",
    "flip_aug": "flip",
    "enable_bucket": "buckets",
    "bucket_reso_steps": "bucket_step",
    "lr_scheduler_min_lr_ratio": "lr_end",
    "reg_data_dir": "prior_folder",
    "save_every_n_steps": "checkpoint_every",
    "sample_every_n_steps": "sample_every",
    "validate_every_n_steps": "validate_every",
}
_OPTIMIZERS = {
    "adamw": "adamw",
    "adamw8bit": "adamw8bit",
    "prodigy": "prodigy",
    "lion": "lion",
    "adafactor": "adafactor",
}
_SCHEDULES = {
    "constant": "constant",
    "constant_with_warmup": "constant",
    "linear": "linear",
    "cosine": "cosine",
    "cosine_with_restarts": "cosine",
}
_LOSSES = {"l2": "mse", "l1": "l1", "huber": "huber"}
_PRECISIONS = {"no": "fp32", "fp16": "fp16", "bf16": "bf16"}
_DTYPES = {"float": "float32", "fp16": "float16", "bf16": "bfloat16"}
_ARGS = {
    "weight_decay": "weight_decay",
    "rank_dropout": "rank_dropout",
    "loraplus_lr_ratio": "up_lr_ratio",
    "loraplus_unet_lr_ratio": "up_lr_ratio",
}
_DEFAULTS: Translated = {"alpha": 1, "rank": 4, "accumulation": 1, "steps": 1600, "lr": 1e-6}
_TIMES = 1000  # sd-scripts count times in steps of SDXL's schedule
_ORDERS = 16  # sd-scripts shuffle at every step


def read_kohya(path: Path) -> dict[str, object]:
    """The values of a file of sd-scripts under our names; a warning lists what has no meaning here.

    Raises:
        B4MError: for a file that is no TOML.
    """
    try:
        document = tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise B4MError(f"{path} is not TOML ({error}); mend it") from None
    values, without = translate(document)
    if without:
        warnings.warn(
            f"{path}: without a meaning here and left out: {', '.join(without)}", stacklevel=2
        )
    return values


def translate(document: Mapping[str, Any]) -> tuple[dict[str, object], list[str]]:
    """Our values by name, and the names of sd-scripts that have no meaning here.

    Args:
        document: the parsed file; names may lie in sections, which mean nothing.
    """
    theirs = dict(_flat(document))
    values, without = dict(_DEFAULTS), []
    for name, value in theirs.items():
        if name in _SAME:
            if not (name == "learning_rate" and "unet_lr" in theirs):
                values[_SAME[name]] = value
        elif name in _RULES:
            part = _RULES[name](value, theirs)
            if part is None:
                without.append(f"{name} = {value}")
            else:
                values |= part
        else:
            without.append(name)
    for pair in [*theirs.get("network_args", []), *theirs.get("optimizer_args", [])]:
        ((name, value),) = parse_pairs([pair]).items()
        if name in _ARGS:
            values[_ARGS[name]] = value
        else:
            without.append(name)
    if "reg_data_dir" in theirs:
        values.setdefault("prior_weight", 1.0)
    if not theirs.get("network_train_unet_only") and "text_encoder_lr" not in theirs:
        values["text_lr"] = theirs.get("learning_rate", values["lr"])
    return values, without


def _flat(document: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in document.items():
        if isinstance(value, Mapping):
            yield from _flat(value)
        else:
            yield name, value


Rule = Callable[[Any, Mapping[str, Any]], Translated | None]


def _named(table: Mapping[str, str], ours: str) -> Rule:
    """A rule for words; one that is not in the table has no meaning here."""

    def rule(value: Any, theirs: Mapping[str, Any]) -> Translated | None:
        known = table.get(str(value).lower())
        return None if known is None else {ours: known}

    return rule


def _schedule(value: Any, theirs: Mapping[str, Any]) -> Translated | None:
    if value not in _SCHEDULES:
        return None
    cycles = int(theirs.get("lr_scheduler_num_cycles", 1))
    again = {"restarts": cycles - 1} if value == "cosine_with_restarts" else {}
    return {"schedule": _SCHEDULES[value], **again}


def _warmup(value: Any, theirs: Mapping[str, Any]) -> Translated:
    """Steps, or below 1 a share of them."""
    steps = int(theirs.get("max_train_steps", str(_DEFAULTS["steps"])))
    return {"warmup": round(value * steps) if 0 < value < 1 else int(value)}


def _text_rates(value: Any, theirs: Mapping[str, Any]) -> Translated:
    """One rate, or one for each encoder."""
    if theirs.get("network_train_unet_only"):
        return {}
    rates = value if isinstance(value, list) else [value]
    if len(rates) == 1 or rates[0] == rates[1]:
        return {"text_lr": rates[0]}
    if not all(rates):
        return {"text_lr": max(rates), "text_encoders": "first" if rates[0] else "second"}
    return {"text_lr": rates[0], "text_lr_2": rates[1]}


def _output(value: Any, theirs: Mapping[str, Any]) -> Translated:
    folder = Path(theirs.get("output_dir", "."))
    return {"out": str(folder / f"{theirs.get('output_name', 'last')}.safetensors")}


_RULES: Mapping[str, Rule] = {
    "optimizer_type": _named(_OPTIMIZERS, "optimizer"),
    "lr_scheduler": _schedule,
    "lr_scheduler_num_cycles": lambda value, theirs: {},
    "lr_warmup_steps": _warmup,
    "loss_type": _named(_LOSSES, "loss"),
    "mixed_precision": _named(_PRECISIONS, "precision"),
    "save_precision": _named(_DTYPES, "dtype"),
    "save_model_as": lambda value, theirs: {} if value == "safetensors" else None,
    "network_module": _named({"networks.lora": "lora"}, "method"),
    "network_train_unet_only": lambda value, theirs: {},
    "network_args": lambda value, theirs: {},
    "optimizer_args": lambda value, theirs: {},
    "text_encoder_lr": _text_rates,
    "output_dir": _output,
    "output_name": _output,
    "shuffle_caption": lambda value, theirs: {"shuffle_tags": _ORDERS if value else 0},
    "min_timestep": lambda value, theirs: {"t_min": value / _TIMES},
    "max_timestep": lambda value, theirs: {"t_max": value / _TIMES},
    "prior_loss_weight": lambda value, theirs: (
        {"prior_weight": value} if "reg_data_dir" in theirs else {}
    ),
    "cache_latents": lambda value, theirs: {},
    "cache_latents_to_disk": lambda value, theirs: {},
    "cache_text_encoder_outputs": lambda value, theirs: {},
    "cache_text_encoder_outputs_to_disk": lambda value, theirs: {},
}
