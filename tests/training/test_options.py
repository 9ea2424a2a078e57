"""Every option of every way of training: it trains, and a wrong value is one sentence."""

import math
from pathlib import Path

import pytest
import torch

from b4m.bases.base import Base
from b4m.errors import B4MError
from b4m.methods import TRAININGS, training
from b4m.settings import describe, resolve
from b4m.training.settings import PairSettings
from tests import runs
from tests.test_settings_act import NEEDS, OTHER

MORE: dict[str, object] = {
    "buckets": True,
    "bucket_step": 8,
    "checkpoint_every": 3,
    "gradient_checkpointing": True,
    "keep": "best",
    "keep_tags": 2,
    "patience": 1,
    "precision": "bf16",
    "prior_images": 2,
    "prior_weight": 1.0,
    "sample_every": 9,
    "sample_prompts": "a | b",
    "sample_seeds": 2,
    "shuffle_tags": 3,
    "validate_draws": 2,
    "validate_every": 4,
}
"""Values of what is not in the table of tests/test_settings_act."""
WITH: dict[str, dict[str, object]] = {
    "bucket_step": {"buckets": True},
    "keep": {"validate_every": 4},
    "keep_tags": {"shuffle_tags": 3},
    "patience": {"validate_every": 4},
    "prior_images": {"prior_weight": 1.0},
    "prior_weight": {"prior_images": 2},
    "sample_prompts": {"sample_every": 9},
    "sample_seeds": {"sample_every": 9},
    "validate_draws": {"validate_every": 4},
}
IMAGES = {"masked", "unmasked_weight", "prior_folder"}
"""What needs images of its own: tests/training/test_shown trains with them."""
BASE = {"rank": 2, "steps": 10, "batch_size": 2, "accumulation": 1, "lr": 1e-2}
TABLE = [
    (way, field)
    for way in ("lora", "b4m")
    for field in training(way).settings.model_fields
    if field not in IMAGES
]
WRONG = {"int": ["x", "1.5", ""], "float": ["x", "nan", "inf"], "bool": ["maybe"], "str": []}


@pytest.mark.long
@pytest.mark.parametrize(("way", "field"), TABLE)
def test_every_option_at_another_value_trains_ten_steps(
    base: Base, prepared: Path, tmp_path: Path, way: str, field: str
) -> None:
    value = {**OTHER, **MORE}[field]
    settings = {**BASE, **NEEDS.get(field, {}), **WITH.get(field, {}), field: value}
    adapter = runs.train(way, "content", prepared, "teapot", base, tmp_path, **settings)
    assert all(torch.isfinite(pair.up).all() for pair in adapter.layers.values())
    assert any(pair.up.any() for pair in adapter.layers.values())


@pytest.mark.long
@pytest.mark.parametrize("optimizer", ["prodigy", "adafactor", "riemannian"])
def test_the_other_optimizers_train_ten_steps(
    base: Base, prepared: Path, tmp_path: Path, optimizer: str
) -> None:
    settings = {**BASE, "optimizer": optimizer, **({"lr": 1.0} if optimizer == "prodigy" else {})}
    adapter = runs.train("lora", "content", prepared, "teapot", base, tmp_path, **settings)
    assert any(pair.up.any() for pair in adapter.layers.values())


def wrong_values() -> list[tuple[str, str, str]]:
    """Texts that are none of a setting's kind, and numbers on the wrong side of its limits."""
    table = []
    for way in TRAININGS:
        fields = training(way).settings.model_fields
        for setting in describe(training(way).settings):
            values = list(WRONG.get(setting.kind, ["nothing like it"]))
            for limit in fields[setting.name].metadata:
                for name, beyond in (("ge", -1), ("gt", 0), ("le", 1), ("lt", 0)):
                    if (bound := getattr(limit, name, None)) is not None:
                        values.append(str(bound + beyond))
            table += [(way, setting.name, value) for value in values]
    return table


@pytest.mark.parametrize(("way", "name", "value"), wrong_values())
def test_every_wrong_value_is_refused_in_one_sentence(way: str, name: str, value: str) -> None:
    with pytest.raises(B4MError) as caught:
        resolve(training(way).settings, {name: value}, method=way)
    assert name in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"t_min": 0.5, "t_max": 0.5}, "setting t_min=0.5 must be less than t_max=0.5"),
        ({"keep": "best"}, "keep=best goes by the validation loss; set validate_every"),
        ({"patience": 2}, "patience goes by the validation loss; set validate_every"),
        (
            {"debiased": True, "min_snr_gamma": 5},
            "error_of, min_snr_gamma and debiased each say how times are weighted; set one",
        ),
        (
            {"buckets": True, "prior_weight": 1},
            "prior_weight shows square images, which buckets cannot hold; set one",
        ),
    ],
)
def test_settings_that_contradict_one_another_are_refused_in_one_sentence(
    settings: dict[str, object], sentence: str
) -> None:
    with pytest.raises(B4MError) as caught:
        resolve(PairSettings, settings)
    assert str(caught.value) == sentence


@pytest.mark.parametrize("text", ["attn2=0", "attn2=x", "attn2=1.5"])
def test_ranks_of_blocks_are_whole_numbers(
    base: Base, prepared: Path, tmp_path: Path, text: str
) -> None:
    run = runs.open_run(
        "lora", "content", prepared, "teapot", base, tmp_path, **BASE, block_ranks=text
    )
    with pytest.raises(B4MError, match=f"block_ranks: {text} must be a"):
        run.by_block("block_ranks", base.linears())


def test_the_last_block_that_names_a_layer_gives_its_number(
    base: Base, prepared: Path, tmp_path: Path
) -> None:
    run = runs.open_run(
        "lora", "content", prepared, "teapot", base, tmp_path, **BASE,
        block_ranks="up_blocks.0=6, attn2=3", block_alphas="attn2=1",
    )  # fmt: skip
    from b4m.training.plain import start_pairs

    for name, delta in start_pairs(run, base.linears()).items():
        wanted = 3 if ".attn2." in name else 6 if name.startswith("up_blocks.0.") else 2
        assert delta.rank == wanted
        assert math.isclose(delta.scaling, 1 / 3 if ".attn2." in name else 1.0)
