"""Claims of what goes out: loaded by the program that it is written for."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from key_styles import adapter
from safetensors import safe_open
from safetensors.torch import load_file
from test_outside import draw, ours, predict

from b4m.adapters.adapter import Adapter
from b4m.bases.sdxl.model import attention_linears
from b4m.errors import B4MError
from b4m.files import read_adapter, write_adapter
from b4m.verbs import convert


def drawn(unet: torch.nn.Module, seed: int) -> Adapter:
    """Ranks 2 to 4."""
    linears = attention_linears(unet)
    return Adapter({n: draw(m, 2 + k % 3, seed + k) for k, (n, m) in enumerate(linears.items())})


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_files_of_one_rank_in_16_bit_are_exchanged_in_place_by_diffusers(
    form: str, tiny_base: Path, tmp_path: Path
) -> None:
    """Hot-swapping keeps the module's tensors, so it needs ranks that are alike."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_base, local_files_only=True)
    files = []
    for number in (0, 1):
        own = write_adapter(
            tmp_path / f"own{number}.safetensors", drawn(pipeline.unet, 50 * number)
        )
        out = tmp_path / f"{number}.safetensors"
        files.append(convert(own, out, form, "float16", rank=4))
        factors = [t for name, t in load_file(out).items() if "alpha" not in name]
        assert {t.dtype for t in factors} == {torch.float16}
        assert {min(t.shape[:2]) for t in factors} == {4}
    pipeline.load_lora_weights(str(files[0]), adapter_name="one")
    before = [id(p) for n, p in pipeline.unet.named_parameters() if "lora" in n]
    for file, hotswap in ((files[0], False), (files[1], True)):
        if hotswap:
            pipeline.load_lora_weights(str(file), adapter_name="one", hotswap=True)
        plain, adapted = ours(tiny_base, read_adapter(file))
        assert float((adapted - plain).abs().max()) > 1e-2
        assert float((adapted - predict(pipeline.unet)).abs().max()) <= 1e-5
    assert [id(p) for n, p in pipeline.unet.named_parameters() if "lora" in n] == before


def test_the_headers_of_diffusers_form_hold_the_config_of_each_network(tmp_path: Path) -> None:
    from peft import LoraConfig

    file = write_adapter(tmp_path / "a.safetensors", adapter(text=True))
    with safe_open(file, "pt") as opened:
        packed = json.loads(opened.metadata()["lora_adapter_metadata"])
    networks = {name.partition(".")[0] for name in packed}
    assert networks == {"unet", "text_encoder", "text_encoder_2"}
    for network in networks:
        values = {k.partition(".")[2]: v for k, v in packed.items() if k.startswith(f"{network}.")}
        config = LoraConfig(**values)
        assert config.r == config.lora_alpha == 4


def test_peft_reads_the_config_as_its_own_and_equal_adapters_give_equal_bytes(
    tmp_path: Path,
) -> None:
    from peft import LoraConfig, PeftConfig

    write_adapter(tmp_path / "one", adapter(), "peft")
    found = PeftConfig.from_pretrained(tmp_path / "one")
    assert isinstance(found, LoraConfig)
    assert found.inference_mode
    assert found.target_modules == set(adapter().layers)
    for name, pair in adapter().layers.items():
        assert found.rank_pattern.get(name, found.r) == pair.rank
        assert found.alpha_pattern.get(name, found.lora_alpha) == pair.rank
    text = (tmp_path / "one" / "adapter_config.json").read_bytes()
    code = (
        "from key_styles import adapter; from b4m.files import write_adapter; "
        f"write_adapter({str(tmp_path / 'two')!r}, adapter(), 'peft')"
    )
    paths = [str(Path(__file__).parent), *sys.path]
    subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}; {code}"],
        check=True, env={"PYTHONHASHSEED": "7"},
    )  # fmt: skip
    assert (tmp_path / "two" / "adapter_config.json").read_bytes() == text


def test_without_peft_its_form_names_what_to_install_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(B4MError, match=r"the PEFT form of an adapter needs the extra 'train'"):
        write_adapter(tmp_path / "out", adapter(), "peft")
    assert not list(tmp_path.iterdir())


def test_pefts_form_holds_the_unet_that_a_peft_model_takes(tiny_base: Path, tmp_path: Path) -> None:
    """The weights too are found where the config says."""
    from peft import PeftModel

    unet = UNet2DConditionModel.from_pretrained(tiny_base / "unet")
    own = write_adapter(tmp_path / "own.safetensors", drawn(unet, 3))
    folder = tmp_path / "peft"
    convert(own, folder, "peft", "bfloat16", rank=3)
    _, adapted = ours(tiny_base, read_adapter(folder))
    theirs = predict(PeftModel.from_pretrained(unet, folder))
    assert float((adapted - theirs).abs().max()) <= 1e-5
