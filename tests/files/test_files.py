"""Claims of adapter files: every tool's names are read, and round trips keep every bit."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from key_styles import (
    AB,
    DOWN,
    FEED,
    METADATA,
    MID,
    STYLES,
    TEXT,
    TEXT_2,
    UP,
    adapter,
    named,
    pair,
    same,
    saved,
)
from safetensors import safe_open
from safetensors.torch import load_file

from b4m.adapters.adapter import Adapter
from b4m.adapters.lowrank import LowRank
from b4m.adapters.metadata import Metadata
from b4m.bases.sdxl import blocks
from b4m.bases.sdxl.family import FAMILY
from b4m.errors import B4MError
from b4m.files import describe, keys, read_adapter, write_adapter


@pytest.mark.parametrize("style", STYLES)
def test_every_key_style_is_read_to_the_same_layers(style: str, tmp_path: Path) -> None:
    file = saved(tmp_path, named(STYLES[style]))
    wanted = {name: adapter().layers[name] for name in (DOWN, MID, UP)}
    assert same(read_adapter(file).layers, wanted)


@pytest.mark.parametrize("style", [s for s in STYLES if "kohya" in s or "comfyui" in s])
def test_alpha_is_folded_into_up(style: str, tmp_path: Path) -> None:
    tensors = named(STYLES[style])
    for name in (DOWN, MID, UP):
        key = re.sub(r"\.lora_.*", ".alpha", STYLES[style](name, "down"))
        tensors[key] = torch.tensor(2.0)
    layers = read_adapter(saved(tmp_path, tensors)).layers
    for name, found in layers.items():
        wanted = adapter().layers[name]
        torch.testing.assert_close(found.up, wanted.up * 2 / wanted.rank)
        assert torch.equal(found.down, wanted.down)


def peft_file(folder: Path, **config: object) -> Path:
    tensors = named(lambda n, p: f"base_model.model.{n}.lora_{AB[p]}.weight")
    (folder / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8, **config}))
    return saved(folder, tensors)


def test_pefts_config_gives_alpha_with_its_patterns(tmp_path: Path) -> None:
    file = peft_file(tmp_path, alpha_pattern={"attn2.to_out.0": 10, "to_k": 3})
    layers = read_adapter(file.parent).layers  # the folder, as PEFT saves it
    for name, factor in {DOWN: 8 / 4, MID: 10 / 5, UP: 3 / 4}.items():
        torch.testing.assert_close(layers[name].up, adapter().layers[name].up * factor)
    file = peft_file(tmp_path, use_rslora=True)
    torch.testing.assert_close(
        read_adapter(file).layers[MID].up, adapter().layers[MID].up * 8 / 5**0.5
    )


def test_a_peft_file_without_its_config_is_refused(tmp_path: Path) -> None:
    file = peft_file(tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(B4MError, match="alpha is unknown"):
        read_adapter(file)
    for config, sentence in (
        ({"use_dora": True}, "DoRA"),
        ({"lora_alpha": None}, "alpha None is not a number"),
        ({"lora_alpha": True}, "alpha True is not a number"),
        ({"alpha_pattern": {"to_k": "8"}}, "alpha '8' is not a number"),
        ({"alpha_pattern": {"(": 8}}, "'\\(' is not a pattern"),
    ):
        with pytest.raises(B4MError, match=sentence):
            read_adapter(peft_file(tmp_path, **config))
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(B4MError, match="is not JSON"):
        read_adapter(tmp_path)


def test_alpha_in_diffusers_own_header_is_honoured(tmp_path: Path) -> None:
    config = {"unet.r": 4, "unet.lora_alpha": 8, "unet.alpha_pattern": {UP: 2}}
    header = {"lora_adapter_metadata": json.dumps(config)}
    layers = read_adapter(saved(tmp_path, named(STYLES["diffusers-peft"]), header)).layers
    torch.testing.assert_close(layers[DOWN].up, adapter().layers[DOWN].up * 2)
    torch.testing.assert_close(layers[UP].up, adapter().layers[UP].up / 2)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (
            "lora_te1_text_model_encoder_layers_1_self_attn_q_proj",
            "lora_te2_text_model_encoder_layers_0_mlp_fc1",
        ),
        (TEXT, TEXT_2),
        (TEXT.replace(".text_model", ""), TEXT_2.replace(".text_model", "")),
        (
            TEXT.replace("text_encoder", "text_encoders.clip_l.transformer"),
            TEXT_2.replace("text_encoder_2", "text_encoders.clip_g.transformer"),
        ),
    ],
)  # fmt: skip
def test_text_encoder_layers_are_read(one: str, two: str, tmp_path: Path) -> None:
    tensors = named(STYLES["kohya"])
    for stem, source in ((one, pair(7)), (two, pair(8))):
        tensors |= {f"{stem}.lora_down.weight": source.down, f"{stem}.lora_up.weight": source.up}
    assert same(read_adapter(saved(tmp_path, tensors)).text_layers, adapter(text=True).text_layers)


@pytest.mark.parametrize("form", ["diffusers", "kohya", "peft"])
@pytest.mark.parametrize("more", [0, 1])
def test_round_trips_keep_every_bit_and_all_metadata(form: str, more: int, tmp_path: Path) -> None:
    source = adapter(text=form != "peft", more=more)
    again = read_adapter(write_adapter(tmp_path / f"{form}.safetensors", source, form=form))
    assert again.metadata == METADATA
    if form == "kohya" and more:  # one alpha for all ranks, see forms.py
        assert again.layers.keys() == source.layers.keys()
        for name, found in again.layers.items():
            torch.testing.assert_close(found.up, source.layers[name].up, rtol=3e-7, atol=0)
            assert torch.equal(found.down, source.layers[name].down)
    else:
        assert same(again.layers, source.layers)
        assert same(again.text_layers, source.text_layers)


@pytest.mark.parametrize("first", ["diffusers", "kohya", "peft"])
@pytest.mark.parametrize("second", ["diffusers", "kohya", "peft"])
def test_conversions_chain(first: str, second: str, tmp_path: Path) -> None:
    one = write_adapter(tmp_path / "one.safetensors", adapter(more=0), form=first)
    two = write_adapter(tmp_path / "two.safetensors", read_adapter(one), form=second)
    three = write_adapter(tmp_path / "three.safetensors", read_adapter(two), form=first)
    assert one.read_bytes() == three.read_bytes()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_files_are_rounded_once_and_read_as_float32(
    dtype: str, tmp_path: Path
) -> None:
    source = adapter(more=0)
    file = write_adapter(tmp_path / "half.safetensors", source, form="kohya", dtype=dtype)
    stored = getattr(torch, dtype)
    assert {t.dtype for t in load_file(file).values() if t.ndim == 2} == {stored}
    for name, found in read_adapter(file).layers.items():
        assert found.up.dtype == torch.float32
        assert torch.equal(found.up, source.layers[name].up.to(stored).float())


def test_equal_adapters_give_equal_bytes(tmp_path: Path) -> None:
    one = write_adapter(tmp_path / "one.safetensors", adapter())
    backwards = replace(adapter(), layers=dict(reversed(adapter().layers.items())))
    two = write_adapter(tmp_path / "two.safetensors", backwards)
    assert one.read_bytes() == two.read_bytes()
    header = json.loads(one.read_bytes()[8:].split(b"  ")[0].decode().rpartition("}")[0] + "}")
    assert list(header["__metadata__"]) == sorted(header["__metadata__"])


def test_kohya_form_has_what_other_tools_look_for(tmp_path: Path) -> None:
    file = write_adapter(tmp_path / "k.safetensors", adapter(text=True, more=0), form="kohya")
    with safe_open(file, framework="pt") as opened:
        header, names = opened.metadata(), set(opened.keys())
    stem = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
    assert {f"{stem}.lora_down.weight", f"{stem}.lora_up.weight", f"{stem}.alpha"} <= names
    assert "lora_unet_middle_block_1_transformer_blocks_3_attn2_to_out_0.alpha" in names
    assert "lora_unet_output_blocks_2_1_transformer_blocks_9_attn2_to_k.alpha" in names
    assert "lora_te1_text_model_encoder_layers_1_self_attn_q_proj.alpha" in names
    assert float(load_file(file)[f"{stem}.alpha"]) == 4.0
    assert header["ss_network_module"] == "networks.lora"
    assert header["ss_base_model_version"].startswith("sdxl")
    assert json.loads(header["ss_tag_frequency"])["b4m"] == {"snq": 1, "w@z": 1}
    assert header["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert header["modelspec.trigger_phrase"] == "snq w@z"


def test_names_of_all_sdxl_linears_survive_every_style() -> None:
    for name in blocks.sdxl_linear_shapes():
        for style in STYLES.values():
            for part in ("down", "up"):
                key = keys.parse(style(name, part))
                assert key is not None
                assert key.part == part
                assert (FAMILY.address(key.stem) or ())[:2] == ("unet", name)
        down = keys.kohya_names(FAMILY.kohya_stem("unet", name))[0]
        assert down == STYLES["kohya"](name, "down")


def test_layers_of_rank_zero_are_left_out(tmp_path: Path) -> None:
    layers = {DOWN: pair(0), UP: LowRank.zero(6, 5)}
    assert set(read_adapter(write_adapter(tmp_path / "a.safetensors", Adapter(layers))).layers) == {
        DOWN
    }
    with pytest.raises(B4MError, match="without layers"):
        write_adapter(tmp_path / "b.safetensors", Adapter({UP: LowRank.zero(6, 5)}))


def test_a_header_of_another_tool_gives_title_and_trigger(tmp_path: Path) -> None:
    header = {"modelspec.title": "ink", "modelspec.trigger_phrase": "inkstyle", "ss_seed": "4"}
    found = read_adapter(saved(tmp_path, named(STYLES["kohya"]), header)).metadata
    assert found == Metadata(concept="ink", triggers={"any": "inkstyle"})


def test_a_write_that_fails_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_adapter(tmp_path / "a.safetensors", adapter())
    before = file.read_bytes()

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(B4MError, match="no space"):
        write_adapter(file, Adapter({DOWN: pair(3)}))
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_description_counts_ranks_groups_and_energy(tmp_path: Path) -> None:
    facts = describe(write_adapter(tmp_path / "a.safetensors", adapter(text=True), form="kohya"))
    assert facts["key_style"] == "kohya"
    assert (facts["layers"], facts["text_layers"]) == (4, 2)
    assert facts["ranks"] == {4: 4, 5: 2}
    assert facts["groups"][blocks.group_of(DOWN)] == 1
    energy = {name: p.norm() ** 2 for name, p in adapter().layers.items()}
    assert facts["norm"] == pytest.approx(sum(energy.values()) ** 0.5)
    assert facts["norm_by_role"]["style"] == pytest.approx((energy[DOWN] + energy[FEED]) ** 0.5)
    assert facts["metadata"]["b4m.method"] == "b4m"
    json.dumps(facts)


def test_description_of_a_foreign_file_tells_the_problem(tmp_path: Path) -> None:
    tensors = {"lora_unet_mid_block_x.oft_blocks": torch.ones(3, 3)}
    facts = describe(saved(tmp_path, tensors, {"ss_seed": "1"}))
    assert "OFT" in facts["problem"]
    assert facts["metadata"] == {"ss_seed": "1"}
