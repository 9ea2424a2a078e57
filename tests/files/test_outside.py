"""Claims that need the other tools: diffusers and PEFT compute with our files what we compute."""

from pathlib import Path

import pytest
import torch
from diffusers import (
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn

from b4m.adapters.adapter import Adapter
from b4m.adapters.attach import AdaptedModel
from b4m.adapters.lowrank import LowRank
from b4m.adapters.metadata import Metadata
from b4m.bases.name_tables import TABLES
from b4m.bases.sdxl.model import attention_linears
from b4m.files import read_adapter, write_adapter
from b4m.files.translate import renamed
from tests.methods.draws import fixed

INNER = ("proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")


def draw(linear: nn.Module, rank: int, seed: int) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    rows, columns = linear.weight.flatten(1).shape
    up = torch.randn(rows, rank, generator=generator)
    return LowRank(up, torch.randn(rank, columns, generator=generator)).scale(0.5 / columns)


def linears_of(unet: nn.Module, kind: str) -> dict[str, nn.Module]:
    if kind == "attention":
        return dict(attention_linears(unet))
    if kind == "everything":
        kinds = (nn.Linear, nn.Conv2d)
        return {n: m for n, m in unet.named_modules() if isinstance(m, kinds)}
    return {
        name: module
        for name, module in unet.named_modules()
        if isinstance(module, nn.Linear)
        and ".attentions." in name
        and (name in attention_linears(unet) or name.endswith(INNER))
    }


def predict(unet: nn.Module) -> Tensor:
    config = unet.config
    generator = torch.Generator().manual_seed(1)
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    x = torch.randn(2, config.in_channels, 8, 8, generator=generator)
    text = torch.randn(2, 7, config.cross_attention_dim, generator=generator)
    added = {"text_embeds": torch.ones(2, pooled), "time_ids": torch.ones(2, 6)}
    with torch.no_grad():
        return unet(x, torch.tensor([3, 700]), text, added_cond_kwargs=added).sample


def ours(folder: Path, adapter: Adapter) -> tuple[Tensor, Tensor]:
    """The plain and the adapted prediction by this library."""
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    plain = predict(unet)
    adapted = AdaptedModel(unet, fixed(adapter.layers))
    adapted.config = unet.config
    return plain, predict(adapted)


@pytest.fixture
def pipeline(tiny_base: Path) -> StableDiffusionXLPipeline:
    return StableDiffusionXLPipeline.from_pretrained(tiny_base, local_files_only=True)


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
@pytest.mark.parametrize(
    ("kind", "ranks"),
    [("attention", "equal"), ("all linears", "unequal"), ("everything", "equal")],
    ids=["plain", "mixed", "convolutions too"],
)
def test_diffusers_computes_what_we_compute(
    form: str,
    kind: str,
    ranks: str,
    tiny_base: Path,
    pipeline: StableDiffusionXLPipeline,
    tmp_path: Path,
) -> None:
    linears = linears_of(pipeline.unet, kind)
    layers = {
        name: draw(linear, 3 if ranks == "equal" else 2 + k % 3, seed=k)
        for k, (name, linear) in enumerate(linears.items())
    }
    file = write_adapter(tmp_path / "a.safetensors", Adapter(layers, Metadata(method="b4m")), form)
    plain, adapted = ours(tiny_base, read_adapter(file))
    pipeline.load_lora_weights(str(file))
    theirs = predict(pipeline.unet)
    assert float((adapted - plain).abs().max()) > 1e-2
    assert float((adapted - theirs).abs().max()) <= 1e-5


@pytest.mark.parametrize("form", ["diffusers", "kohya", "comfyui"])
@pytest.mark.parametrize(("family", "context"), [("sd1", 768), ("sd2", 1024)])
def test_diffusers_adds_the_same_matrices_to_stable_diffusion_1_and_2(
    family: str, context: int, form: str, tmp_path: Path
) -> None:
    """Every linear and convolution of a small UNet with their topology and text width."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64, 64, 64),
        attention_head_dim=8,
        cross_attention_dim=context,
        use_linear_projection=family == "sd2",
    )
    table = next(one for one in TABLES if one.name == family)
    weights = {n: m.weight for n, m in linears_of(unet, "everything").items()}
    layers = {}
    for k, name in enumerate(weights):
        kernel = "x".join(map(str, weights[name].shape[2:]))
        pair = draw(unet.get_submodule(name), 2, seed=k)
        layers[f"unet.{name}" + f"@{kernel}" * bool(kernel)] = pair
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    file = write_adapter(tmp_path / "a.safetensors", renamed(Adapter(layers), table, form))
    assert read_adapter(file).metadata.family == family
    if form == "comfyui":  # diffusers reads none with this beginning for these bases
        file = write_adapter(tmp_path / "b.safetensors", read_adapter(file), "diffusers")
    loader = StableDiffusionPipeline
    state, alphas, metadata = loader.lora_state_dict(str(file), return_lora_metadata=True)
    loader.load_lora_into_unet(state, alphas, unet, metadata=metadata)
    unet.fuse_lora()
    assert len(layers) > 250
    for name, module in linears_of(unet, "everything").items():
        name = name.removesuffix(".base_layer")
        if name not in before:
            continue
        found = (module.weight - before[name]).flatten(1)
        key = next(key for key in layers if key.partition("@")[0] == f"unet.{name}")
        torch.testing.assert_close(found, layers[key].dense(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_diffusers_reads_our_text_encoder_layers(
    form: str, pipeline: StableDiffusionXLPipeline, tmp_path: Path
) -> None:
    encoders = {"text_encoder": pipeline.text_encoder, "text_encoder_2": pipeline.text_encoder_2}
    tokens = torch.tensor([[1, 5, 7, 2]])
    text_layers, expected = {}, {}
    for network, encoder in encoders.items():
        linears = {
            name: module
            for name, module in encoder.named_modules()
            if isinstance(module, nn.Linear) and name.endswith(("_proj", "fc1", "fc2"))
        }
        assert len(linears) > 6
        pairs = {name: draw(linear, 2, k) for k, (name, linear) in enumerate(linears.items())}
        adapted = AdaptedModel(encoder, fixed(pairs))
        with torch.no_grad():
            expected[network] = encoder(tokens).last_hidden_state
        adapted.remove()
        for name, pair in pairs.items():
            text_layers[f"{network}.text_model.{name.removeprefix('text_model.')}"] = pair
    unet = {n: draw(m, 2, 0) for n, m in attention_linears(pipeline.unet).items()}
    file = write_adapter(tmp_path / "a.safetensors", Adapter(unet, text_layers=text_layers), form)
    pipeline.load_lora_weights(str(file))
    for network, encoder in encoders.items():
        with torch.no_grad():
            found = encoder(tokens).last_hidden_state
        torch.testing.assert_close(found, expected[network], rtol=1e-5, atol=1e-5)


def test_peft_computes_what_we_compute(tiny_base: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    unet = UNet2DConditionModel.from_pretrained(tiny_base / "unet")
    layers = {
        name: draw(linear, 2 + k % 3, seed=k)
        for k, (name, linear) in enumerate(attention_linears(unet).items())
    }
    folder = tmp_path / "peft"
    write_adapter(folder, Adapter(layers), form="peft")
    _, adapted = ours(tiny_base, read_adapter(folder))
    theirs = predict(PeftModel.from_pretrained(unet, folder))
    assert float((adapted - theirs).abs().max()) <= 1e-5


def test_files_saved_by_diffusers_and_peft_are_read(tiny_base: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from peft.utils import get_peft_model_state_dict

    unet = UNet2DConditionModel.from_pretrained(tiny_base / "unet")
    config = LoraConfig(
        r=3,
        lora_alpha=6,
        target_modules=["to_q", "to_k", "to_v", "to_out.0"],
        rank_pattern={"to_k": 2},
        alpha_pattern={"to_v": 1.5},
        init_lora_weights=False,
    )
    torch.manual_seed(0)
    unet.add_adapter(config)
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if "lora_" in name:
                parameter.mul_(0.2)
    theirs = predict(unet)
    StableDiffusionXLPipeline.save_lora_weights(
        tmp_path / "diffusers",
        unet_lora_layers=get_peft_model_state_dict(unet),
        unet_lora_adapter_metadata=config.to_dict(),
    )
    plain, adapted = ours(tiny_base, read_adapter(tmp_path / "diffusers"))
    assert float((theirs - plain).abs().max()) > 1e-2
    assert float((theirs - adapted).abs().max()) <= 1e-5

    model = get_peft_model(UNet2DConditionModel.from_pretrained(tiny_base / "unet"), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.mul_(0.2)
    theirs = predict(model)
    model.save_pretrained(tmp_path / "peft")
    _, adapted = ours(tiny_base, read_adapter(tmp_path / "peft"))
    assert float((theirs - adapted).abs().max()) <= 1e-5
