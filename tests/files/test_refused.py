"""Claims of the strict door: what is not understood is refused in one sentence that names it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from key_styles import AB, DOWN, MID, STYLES, UP, adapter, named, pair, saved
from torch import Tensor

from b4m.adapters.adapter import Adapter
from b4m.errors import B4MError
from b4m.files import read_adapter, write_adapter

EIGHT = torch.float8_e4m3fn
RESNET = "lora_unet_input_blocks_1_0_in_layers_2"
REFUSED: dict[str, tuple[Callable[[dict[str, Tensor]], None], str]] = {
    "unknown name": (
        lambda t: t.update({"unet.other.to_q.lora.down.weight": torch.ones(4, 5)}),
        "up without down.*unet.other.to_q",
    ),
    "unknown layer": (
        lambda t: t.update({f"unet.to_q.lora.{p}.weight": torch.ones(4, 4) for p in AB}),
        r"1 layers \(of 4\).*unet\.to_q.*--drop",
    ),
    "no part of a layer": (
        lambda t: t.update({"unet.other.to_q.weight": torch.ones(4, 5)}),
        r"1 names \(of 7\).*unet\.other\.to_q",
    ),
    "deeper than SDXL": (
        lambda t: t.update(
            {STYLES["kohya"](UP.replace(".9.", ".10."), p): torch.ones(4, 4) for p in AB}
        ),
        "transformer_blocks_10",
    ),
    "half a pair": (lambda t: t.pop(STYLES["diffusers"](MID, "up")), f"up without down.*{MID}"),
    "convolution": (
        lambda t: t.update({f"{RESNET}.lora_down.weight": torch.ones(4, 5, 3, 3)}),
        "up without down.*in_layers_2",
    ),
    "DoRA": (lambda t: t.update({f"lora_unet_{DOWN}.dora_scale": torch.ones(6)}), "DoRA"),
    "OFT": (lambda t: t.update({f"lora_unet_{DOWN}.oft_blocks": torch.ones(6)}), "OFT"),
    "embedding": (lambda t: t.update({"bundle_emb.x": torch.ones(6)}), "embedding"),
    "difference": (lambda t: t.update({f"lora_unet_{DOWN}.diff": torch.ones(6)}), "difference"),
    "bias": (lambda t: t.update({f"unet.{DOWN}.lora_B.bias": torch.ones(6)}), "biases"),
    "half a LoKr": (lambda t: t.update({f"{DOWN}.lokr_w1": torch.ones(6, 6)}), "without the rest"),
    "NaN": (
        lambda t: t[STYLES["diffusers"](UP, "down")].fill_(torch.nan), f"down of unet.{UP} has NaN",
    ),
    "infinite": (lambda t: t[STYLES["diffusers"](UP, "up")].fill_(torch.inf), f"up of unet.{UP}"),
    "NaN alpha": (
        lambda t: t.update({f"unet.{UP}.alpha": torch.tensor(torch.nan)}), f"up of unet.{UP}",
    ),
    "alpha of many numbers": (
        lambda t: t.update({f"unet.{UP}.alpha": torch.ones(4)}), f"{UP}: alpha is",
    ),
    "eight bits": (
        lambda t: t.update({STYLES["diffusers"](UP, "up"): torch.zeros(6, 4).to(EIGHT)}),
        f"{UP} is stored as.*float8",
    ),
    "integers": (
        lambda t: t.update({STYLES["diffusers"](UP, "up"): torch.ones(6, 4, dtype=torch.int8)}),
        f"{UP}.*is stored as.*int8",
    ),
    "twice": (
        lambda t: t.update({STYLES["kohya"](UP, p): torch.ones(4, 4) for p in AB}), f"{UP} twice",
    ),
    "ranks differ": (
        lambda t: t.update({STYLES["diffusers"](UP, "up"): torch.ones(6, 9)}),
        f"{UP}.*not a low-rank pair",
    ),
    "empty": (lambda t: t.clear(), "holds no tensors"),
    "alpha only": (lambda t: (t.clear(), t.update({f"unet.{UP}.alpha": torch.ones(())})), UP),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_bad_files_are_refused_by_name(case: str, tmp_path: Path) -> None:
    change, sentence = REFUSED[case]
    tensors = named(STYLES["diffusers"])
    change(tensors)
    file = saved(tmp_path, tensors)
    with pytest.raises(B4MError, match=sentence) as caught:
        read_adapter(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_missing_and_pickled_files_are_refused(tmp_path: Path) -> None:
    file = write_adapter(tmp_path / "a.safetensors", adapter())
    content = file.read_bytes()
    for kept in (0, 5, 100, len(content) - 1):
        file.write_bytes(content[:kept])
        with pytest.raises(B4MError, match="damaged"):
            read_adapter(file)
    with pytest.raises(B4MError, match="no adapter file"):
        read_adapter(tmp_path / "missing.safetensors")
    (tmp_path / "old.bin").write_bytes(content)
    with pytest.raises(B4MError, match="pickled"):
        read_adapter(tmp_path / "old.bin")
    (tmp_path / "empty").mkdir()
    with pytest.raises(B4MError, match="holds 0 safetensors files"):
        read_adapter(tmp_path / "empty")


def test_a_header_of_ours_with_nonsense_is_refused(tmp_path: Path) -> None:
    file = saved(tmp_path, named(STYLES["diffusers"]), {"b4m.method": "b4m", "b4m.rank": "many"})
    with pytest.raises(B4MError, match=r"b4m\.rank is 'many'"):
        read_adapter(file)


@pytest.mark.parametrize(
    ("change", "form", "dtype", "sentence"),
    [
        (lambda a: a, "onnx", "float32", "forms: diffusers, peft, kohya, comfyui"),
        (lambda a: a, "kohya", "int8", "dtypes: float32"),
        (lambda a: adapter(text=True), "peft", "float32", "holds one network"),
        (lambda a: Adapter({DOWN: pair(0).scale(1e9)}), "kohya", "float16", "infinite"),
        (lambda a: Adapter({DOWN: pair(0).scale(torch.nan)}), "kohya", "float32", "NaN"),
        (lambda a: Adapter({DOWN: pair(0), "to.q": pair(0)}), "kohya", "float32", "not layers"),
        (lambda a: replace(a, text_layers={"vae.x": pair(1)}), "kohya", "float32", "vae.x"),
    ],
)  # fmt: skip
def test_refused_writes_leave_nothing(
    change: Callable[[Adapter], Adapter], form: str, dtype: str, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(B4MError, match=sentence):
        write_adapter(tmp_path / "out" / "a.safetensors", change(adapter()), form=form, dtype=dtype)
    assert not list(tmp_path.rglob("*"))
