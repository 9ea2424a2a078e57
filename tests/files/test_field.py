"""Claims about files as they occur: what went wrong with them before, and what is like it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from key_styles import AB, DOWN, MID, STYLES, UP, adapter, ldm, named, pair, same, saved
from safetensors.torch import load_file, save_file
from torch import Tensor

from b4m.adapters.adapter import Adapter
from b4m.errors import B4MError
from b4m.files import describe, read_adapter, read_together, with_rank, write_adapter
from b4m.verbs import convert, merge

KOHYA = STYLES["kohya"]
INTEGERS = [torch.int64, torch.int32, torch.int16, torch.uint8]


@pytest.fixture(autouse=True)
def _no_tracking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("B4M_TRACKING", "off")


def kohya(names: dict[str, tuple[int, int]], rank: int = 4) -> dict[str, Tensor]:
    """Pairs under kohya's stems, without alpha."""
    tensors = {}
    for k, (stem, (rows, columns)) in enumerate(names.items()):
        drawn = pair(k, rows, columns, rank)
        tensors |= {f"{stem}.lora_up.weight": drawn.up, f"{stem}.lora_down.weight": drawn.down}
    return tensors


@pytest.mark.parametrize("dtype", [*INTEGERS, torch.float64, torch.bfloat16])
def test_alpha_of_any_number_format_is_read_to_the_last_bit(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    """diffusers' `convert_state_dict_to_kohya` writes alpha as a 0-dim int64 tensor."""
    tensors = named(KOHYA)
    for name in (DOWN, MID, UP):
        tensors[KOHYA(name, "up").replace("lora_up.weight", "alpha")] = torch.tensor(3, dtype=dtype)
    for name, found in read_adapter(saved(tmp_path, tensors)).layers.items():
        source = adapter().layers[name]
        assert torch.equal(found.up, source.up * (3 / source.rank))


def test_diffusers_own_kohya_files_are_read(tmp_path: Path) -> None:
    from diffusers.utils import convert_state_dict_to_kohya

    state = {}
    for name in (DOWN, UP):
        source = adapter().layers[name]
        state |= {
            f"unet.{name}.lora_A.weight": source.down,
            f"unet.{name}.lora_B.weight": source.up,
        }
    layers = read_adapter(saved(tmp_path, convert_state_dict_to_kohya(state))).layers
    assert same(layers, {name: adapter().layers[name] for name in (DOWN, UP)})


@pytest.mark.parametrize("name", ["content", "default", "default_0", "my-mug"])
def test_pefts_adapter_name_in_a_key_is_read(name: str, tmp_path: Path) -> None:
    tensors = named(lambda n, p: f"unet.{n}.lora_{AB[p]}.{name}.weight")
    wanted = {n: adapter().layers[n] for n in (DOWN, MID, UP)}
    assert same(read_adapter(saved(tmp_path, tensors)).layers, wanted)


def test_pefts_default_alpha_is_pefts(tmp_path: Path) -> None:
    tensors = named(lambda n, p: f"base_model.model.{n}.lora_{AB[p]}.weight")
    (tmp_path / "adapter_config.json").write_text('\ufeff{"r": 4, "base_model_name_or_path": null}')
    layers = read_adapter(saved(tmp_path, tensors).parent).layers
    assert torch.equal(layers[DOWN].up, adapter().layers[DOWN].up * (8 / 4))


TOP = {
    "lora_unet_time_embed_0": ("time_embedding.linear_1", (8, 4)),
    "lora_unet_label_emb_0_2": ("add_embedding.linear_2", (8, 8)),
    "lora_unet_input_blocks_4_0_emb_layers_1": ("down_blocks.1.resnets.0.time_emb_proj", (8, 8)),
}


@pytest.mark.parametrize("stem", TOP)
def test_layers_outside_of_attention_are_read_and_written_back(stem: str, tmp_path: Path) -> None:
    module, shape = TOP[stem]
    tensors = named(KOHYA) | kohya({stem: shape})
    layers = read_adapter(saved(tmp_path, tensors)).layers
    assert set(layers) == {DOWN, MID, UP, module}
    written = write_adapter(tmp_path / "again.safetensors", Adapter(layers), "kohya")
    assert f"{stem}.alpha" in load_file(written)


REFUSED = {
    "norms": "lora_unet_out_0.w_norm",
    "bias difference": f"lora_unet_{ldm(DOWN).replace('.', '_')}.diff_b",
    "embedding": "bundle_emb.mug.clip_l",
    "embedding of SDXL": "bundle_emb.mug.string_to_param.*",
    "a layer of no SDXL": "lora_unet_x_y_z.lora_up.weight",
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_by_name_can_be_dropped_by_name(case: str, tmp_path: Path) -> None:
    name = REFUSED[case]
    file = saved(tmp_path, named(KOHYA) | {name: torch.ones(4, 4)})
    with pytest.raises(B4MError, match="--drop|rest"):
        read_adapter(file)
    out = convert(file, tmp_path / "clean.safetensors", drop=[name])
    assert set(read_adapter(out).layers) == {DOWN, MID, UP}
    with pytest.raises(B4MError, match="no name with 'nowhere' to drop"):
        read_adapter(file, drop=[name, "nowhere"])


def test_an_embedding_is_called_one(tmp_path: Path) -> None:
    file = saved(tmp_path, {"clip_g": torch.ones(2, 4), "clip_l": torch.ones(2, 3)})
    with pytest.raises(B4MError, match="textual inversion"):
        read_adapter(file)


def test_a_middle_block_of_sd15_is_not_taken_for_sdxls(tmp_path: Path) -> None:
    stem = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_"
    sizes = {f"{stem}q": (1280, 1280), f"{stem}k": (1280, 768), f"{stem}v": (1280, 768)}
    file = saved(tmp_path, kohya(sizes, rank=1))
    assert describe(file)["base"] == "SD1.5"
    written = convert(file, tmp_path / "again.safetensors", form="kohya")
    assert set(load_file(written)) >= {f"{name}.lora_up.weight" for name in sizes}
    with pytest.raises(B4MError, match="for SD1.5, .* for SDXL"):
        read_together([file, write_adapter(tmp_path / "b.safetensors", adapter())])


def test_a_long_header_is_shown_short(tmp_path: Path) -> None:
    tags = json.dumps({"1_mug": {f"tag {k}": k for k in range(90_000)}})
    facts = describe(saved(tmp_path, named(KOHYA), {"ss_tag_frequency": tags}))
    assert len(json.dumps(facts)) < 5_000
    assert f"({len(tags)} characters)" in facts["metadata"]["ss_tag_frequency"]


FLUX = {
    "lora_unet_double_blocks_0_img_attn_qkv": (9216, 3072),
    "lora_unet_single_blocks_37_linear2": (3072, 15360),
}


@pytest.mark.parametrize(
    ("words", "title"), [("", "FLUX.1 or Chroma"), ("flux1", "FLUX.1 or"), ("chroma", "Chroma or")]
)
def test_a_header_decides_between_bases_of_equal_names(
    words: str, title: str, tmp_path: Path
) -> None:
    header = {"ss_base_model_version": words} if words else None
    assert describe(saved(tmp_path, kohya(FLUX, 1), header))["base"].startswith(title)


def test_files_of_bases_with_equal_names_merge(tmp_path: Path) -> None:
    """A header's word does not make two bases of what may be one."""
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    save_file(kohya(FLUX, 1), one, {"ss_base_model_version": "chroma"})
    save_file(kohya(FLUX, 1), two, {"ss_base_model_version": "flux1"})
    out = merge([one, two], tmp_path / "merged.safetensors", "direct")
    assert set(read_adapter(out).layers) == set(FLUX)


UNKNOWN: dict[str, Callable[[int, str], str]] = {
    "kohya": lambda k, p: f"lora_unet_future_blocks_{k}_mixer_to_q.lora_{p}.weight",
    "comfyui": lambda k, p: f"diffusion_model.future.{k}.mixer.lora_{AB[p]}.weight",
    "diffusers": lambda k, p: f"transformer.future.{k}.mixer.lora_{AB[p]}.weight",
    "bare": lambda k, p: f"future.{k}.mixer.lora_{AB[p]}.weight",
}


def unknown(style: str, seed: int, path: Path, count: int = 3) -> Path:
    tensors = {}
    for k in range(count):
        drawn = pair(seed + k)
        tensors |= {UNKNOWN[style](k, p): getattr(drawn, p).clone() for p in AB}
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("style", UNKNOWN)
@pytest.mark.parametrize("method", ["direct", "svd", "ties", "dare", "nplora"])
def test_unknown_bases_merge_and_keep_their_names(style: str, method: str, tmp_path: Path) -> None:
    files = [unknown(style, 9 * k, tmp_path / f"{k}.safetensors") for k in (0, 1)]
    assert describe(files[0])["base"] == "an unknown base"
    out = merge(files, tmp_path / "merged.safetensors", method)
    assert {n for n in load_file(out) if "alpha" not in n} == set(load_file(files[0]))
    if method == "direct":
        merged, parts = read_adapter(out), [read_adapter(file) for file in files]
        for name, found in merged.layers.items():
            wanted = sum(part.layers[name].dense() for part in parts)
            torch.testing.assert_close(found.dense(), wanted)


def test_an_unknown_base_is_refused_where_names_must_be_known(tmp_path: Path) -> None:
    one = unknown("kohya", 0, tmp_path / "one.safetensors")
    two = unknown("comfyui", 0, tmp_path / "two.safetensors")
    with pytest.raises(B4MError, match="name their layers in different ways"):
        read_together([one, two])
    with pytest.raises(B4MError, match="3 layers have names that are not known of an unknown base"):
        convert(one, tmp_path / "out.safetensors", form="diffusers")
    sdxl = write_adapter(tmp_path / "sdxl.safetensors", adapter())
    with pytest.raises(B4MError, match="for an unknown base, .* for SDXL"):
        merge([one, sdxl], tmp_path / "out.safetensors", "direct")
    with pytest.raises(B4MError, match="B-LoRA"):
        merge([one, one], tmp_path / "out.safetensors", "blora")


def test_a_convolution_of_an_unknown_base_keeps_its_kernel(tmp_path: Path) -> None:
    drawn = pair(0, 6, 45, 4)
    tensors = {
        "lora_unet_stem_conv.lora_up.weight": drawn.up[..., None, None],
        "lora_unet_stem_conv.lora_down.weight": drawn.down.unflatten(1, (5, 3, 3)),
        "lora_unet_stem_conv.alpha": torch.tensor(4.0),
    }
    out = convert(saved(tmp_path, tensors), tmp_path / "again.safetensors", form="same")
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in load_file(out).items())


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 5), min_size=3, max_size=3), st.integers(1, 6))
def test_one_rank_for_all_layers_is_exact_where_nothing_is_cut(ranks: list[int], rank: int) -> None:
    source = Adapter({f"{k}.x": pair(k, rank=r) for k, r in enumerate(ranks)})
    cut = rank < max(ranks)
    if cut:
        with pytest.warns(UserWarning, match=f"rank {rank} loses"):
            even = with_rank(source, rank)
    else:
        even = with_rank(source, rank)
    assert {p.rank for p in even.layers.values()} == {rank}
    assert ("energy_lost" in even.metadata.config) == cut
    for name, found in even.layers.items():
        if source.layers[name].rank <= rank:
            assert torch.equal(found.dense(), source.layers[name].dense())


def test_hot_swap_loaders_get_one_rank(tmp_path: Path) -> None:
    file = write_adapter(tmp_path / "a.safetensors", adapter(more=3))
    out = convert(file, tmp_path / "b.safetensors", form="diffusers", rank=8, dtype="float16")
    state = load_file(out)
    assert {tensor.shape[0] for name, tensor in state.items() if name.endswith("down.weight")} == {
        8
    }
    assert {tensor.dtype for tensor in state.values()} == {torch.float16}
    with pytest.raises(B4MError, match="rank -1"):
        convert(file, out, rank=-1)
