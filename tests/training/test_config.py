"""Configurations: the command line's names in a file, and the file beside every adapter."""

import warnings
from pathlib import Path

import pytest

from b4m import cli
from b4m.errors import B4MError
from b4m.settings import resolve
from b4m.training.settings import PairSettings
from b4m.verbs.config import read_config, write_config
from b4m.verbs.kohya import translate

RUN = """\
# a comment
kind: content
data: d
concept: mug
out: o.safetensors
rank: 16
lr: 1e-3
text-lr: 2e-4
flip: true
weight_decay: 0
"""
KOHYA = """\
[model]
pretrained_model_name_or_path = "sdxl.safetensors"
[training]
output_dir = "out"
output_name = "mug"
network_module = "networks.lora"
network_dim = 16
network_alpha = 8
network_args = ["rank_dropout=0.1", "loraplus_unet_lr_ratio=16", "conv_dim=4"]
unet_lr = 1e-4
text_encoder_lr = [5e-5, 1e-5]
max_train_steps = 2000
lr_scheduler = "cosine_with_restarts"
lr_scheduler_num_cycles = 3
lr_warmup_steps = 0.05
optimizer_type = "AdamW8bit"
optimizer_args = ["weight_decay=0.05", "betas=0.9,0.99"]
mixed_precision = "bf16"
save_precision = "fp16"
min_snr_gamma = 5
noise_offset = 0.05
loss_type = "smooth_l1"
shuffle_caption = true
keep_tokens = 2
caption_dropout_rate = 0.1
flip_aug = true
enable_bucket = true
min_timestep = 100
max_train_epochs = 10
xformers = true
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(RUN)
    return path


def test_a_file_gives_what_the_command_line_leaves_out(run: Path) -> None:
    _, call = cli.parse(["train", "--config", str(run), "--rank", "4", "--no-flip", "--out=x"])
    assert call == {
        "kind": "content",
        "data": Path("d"),
        "concept": "mug",
        "out": Path("x"),
        "settings": {
            "rank": "4",
            "lr": "1e-3",
            "text_lr": "2e-4",
            "flip": False,
            "weight_decay": "0",
        },
    }


def test_the_method_of_either_decides_which_settings_there_are(run: Path) -> None:
    run.write_text(RUN + "method: b4m\nlr_other: 0.01\n")
    _, call = cli.parse(["train", f"--config={run}"])
    assert (call["method"], call["settings"]["lr_other"]) == ("b4m", "0.01")
    with pytest.raises(B4MError, match="nothing that is called 'lr_other'"):
        cli.parse(["train", f"--config={run}", "--method", "lora"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rnak: 3", "run.yaml: train has nothing that is called 'rnak'; the nearest is rank"),
        ("settings: {rank: 3}", "settings must be one value"),
        ("a: [", "run.yaml, line 1 is not YAML; write NAME: VALUE in each line"),
        ("rank", "run.yaml is not a configuration; write NAME: VALUE"),
    ],
)
def test_a_wrong_file_is_refused_in_one_sentence(run: Path, text: str, message: str) -> None:
    run.write_text(text)
    with pytest.raises(B4MError, match=message):
        cli.parse(["train", "--config", str(run)])


def test_a_file_that_is_not_there_and_a_missing_name_are_told(tmp_path: Path) -> None:
    with pytest.raises(B4MError, match=r"the configuration .*no\.yaml does not exist"):
        cli.parse(["train", "--config", str(tmp_path / "no.yaml")])
    with pytest.raises(B4MError, match="--config needs a value"):
        cli.parse(["train", "--config"])


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    values = {**PairSettings(lr=1e-5, sample_prompts="a: b # c | 'd'").model_dump(), "out": "é/1"}
    path = write_config(tmp_path / "a.yaml", values, {"b4m": "1.0"})
    assert read_config(path) == values
    assert path.read_text().startswith("# b4m: 1.0\n")


def test_the_file_beside_an_adapter_starts_the_same_training_to_the_same_bytes(
    tmp_path: Path, tiny_base: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("B4M_TRACKING", "off")
    monkeypatch.setenv("B4M_WORK", str(tmp_path / "work"))
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    line = f"train --kind style --data {prepared} --concept stripes --base {tiny_base}"
    flags = "--steps 3 --batch-size 2 --caption-dropout 0.1 --dtype float16"
    assert cli.main([*line.split(), *flags.split(), "--out", str(first)]) == 0
    config = tmp_path / "first.train.yaml"
    assert read_config(config)["rank"] == 8, "the base's own values are in it"
    monkeypatch.setenv("B4M_WORK", str(tmp_path / "other"))
    assert cli.main(["train", "--config", str(config), "--out", str(second)]) == 0
    assert second.read_bytes() == first.read_bytes()


def test_kohyas_file_is_translated_where_it_has_a_meaning(tmp_path: Path) -> None:
    file = tmp_path / "kohya.toml"
    file.write_text(KOHYA)
    with pytest.warns(UserWarning, match="without a meaning here and left out") as caught:
        values = read_config(file)
    told = str(caught[0].message)
    for name in ("conv_dim", "betas", "loss_type = smooth_l1", "max_train_epochs", "xformers"):
        assert name in told
    assert values == {
        "base": "sdxl.safetensors",
        "out": "out/mug.safetensors",
        "method": "lora",
        "rank": 16,
        "alpha": 8,
        "rank_dropout": "0.1",
        "up_lr_ratio": "16",
        "lr": 1e-4,
        "text_lr": 5e-5,
        "text_lr_2": 1e-5,
        "steps": 2000,
        "accumulation": 1,
        "schedule": "cosine",
        "restarts": 2,
        "warmup": 100,
        "optimizer": "adamw8bit",
        "weight_decay": "0.05",
        "precision": "bf16",
        "dtype": "float16",
        "min_snr_gamma": 5,
        "noise_offset": 0.05,
        "shuffle_tags": 16,
        "keep_tags": 2,
        "caption_dropout": 0.1,
        "flip": True,
        "buckets": True,
        "t_min": 0.1,
    }
    arguments = ("base", "out", "method", "dtype")
    settings = {name: value for name, value in values.items() if name not in arguments}
    assert resolve(PairSettings, settings).alpha == 8, "all of them are settings that we have"


def test_kohyas_defaults_are_translated_too() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values, without = translate({"learning_rate": 1e-4, "network_train_unet_only": True})
    assert without == []
    assert values == {"lr": 1e-4, "alpha": 1, "rank": 4, "accumulation": 1, "steps": 1600}
    assert translate({"learning_rate": 1e-4})[0]["text_lr"] == 1e-4, "it trains text encoders"


def test_kohyas_two_text_rates_choose_encoders() -> None:
    rates = {(0, 1e-5): "second", (1e-5, 0): "first"}
    for pair, encoders in rates.items():
        values, _ = translate({"text_encoder_lr": list(pair)})
        assert (values["text_lr"], values["text_encoders"]) == (1e-5, encoders)
