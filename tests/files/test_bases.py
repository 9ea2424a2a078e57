"""Claims of files of any base: recognised, merged, and written so that diffusers reads the same.

The oracle is diffusers: the names and shapes of its models (on the meta device), and its own
converters of other tools' LoRA files and of checkpoints.
"""

import re
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.loaders import lora_pipeline, single_file_utils
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from b4m.adapters.adapter import Adapter
from b4m.adapters.lowrank import LowRank
from b4m.bases.name_tables import TABLES
from b4m.bases.named import NamedFamily, Whole
from b4m.errors import B4MError
from b4m.files import describe, read_adapter, read_together, write_adapter

# diffusers' model with the settings of the published weights, its loader, and the forms it reads.
BASES: dict[str, tuple[str, dict[str, Any], str, tuple[str, ...]]] = {
    "flux1": ("FluxTransformer2DModel", {"guidance_embeds": True}, "Flux", ("kohya",)),
    "chroma": ("ChromaTransformer2DModel", {}, "Flux", ("kohya",)),
    "sd3": (
        "SD3Transformer2DModel",
        {
            "num_layers": 24,
            "num_attention_heads": 24,
            "caption_projection_dim": 1536,
            "joint_attention_dim": 4096,
            "dual_attention_layers": tuple(range(13)),
        },
        "SD3",
        (),
    ),
    "flux2": ("Flux2Transformer2DModel", {}, "Flux2", ("kohya", "comfyui")),
    "qwen-image": ("QwenImageTransformer2DModel", {}, "QwenImage", ("kohya", "comfyui")),
    "z-image": ("ZImageTransformer2DModel", {}, "ZImage", ("kohya",)),
    "wan": ("WanTransformer3DModel", {}, "Wan", ("kohya", "comfyui")),
    "krea2": ("Krea2Transformer2DModel", {}, "Krea2", ("comfyui",)),
    "anima": (
        "CosmosTransformer3DModel",
        {"num_attention_heads": 16, "attention_head_dim": 128, "num_layers": 28},
        "Anima",
        ("comfyui",),
    ),
}
FORMS = ("diffusers", "kohya", "comfyui", "peft")
BLOCK = re.compile(r"\.(\d+)\.")


@cache
def sizes(base: str) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of every linear of diffusers' model."""
    name, settings, *_ = BASES[base]
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # Chroma imports a deprecated name of Flux's
        model = getattr(diffusers, name)(**settings)
    linears = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    return {n: (m.out_features, m.in_features) for n, m in linears.items()}


def family_of(base: str) -> NamedFamily:
    return next(family for family in TABLES if family.name == base)


def wholes(base: str) -> list[Whole]:
    """Linears of the first two blocks of each kind, in the original code; blocks alone."""
    return [
        whole
        for whole in family_of(base).entries()
        if whole.parts[0] in sizes(base)
        and "distilled" not in whole.original  # of Chroma's; FLUX.1's converter refuses them
        and (block := BLOCK.search(whole.original))
        and int(block.group(1)) < 2
    ]


def original_file(base: str, form: str, path: Path, seed: int = 0, alpha: float = 1.0) -> Path:
    """A file as trainers on the original code write it: rank 2; musubi's alpha is 1."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for whole in wholes(base):
        rows = sum(sizes(base)[part][0] for part in whole.parts)
        columns = sizes(base)[whole.parts[0]][1]
        up = torch.randn(rows, 2, generator=generator)
        down = torch.randn(2, columns, generator=generator) / columns
        if form == "kohya":
            stem = f"lora_unet_{whole.original.replace('.', '_')}"
            tensors |= {f"{stem}.lora_up.weight": up, f"{stem}.lora_down.weight": down}
            tensors[f"{stem}.alpha"] = torch.tensor(alpha)
        else:
            stem = f"diffusion_model.{whole.original}"
            tensors |= {f"{stem}.lora_B.weight": up, f"{stem}.lora_A.weight": down}
    save_file(tensors, path)
    return path


def as_diffusers_reads(base: str, file: Path) -> dict[str, LowRank]:
    """Pairs by diffusers' module path, by its own loader's conversion."""
    loader = getattr(lora_pipeline, f"{BASES[base][2]}LoraLoaderMixin")
    state = loader.lora_state_dict(load_file(file))
    result = {}
    for name, down in state.items():
        if name.endswith(".lora_A.weight"):
            up = state[name.replace("lora_A", "lora_B")]
            module = name.removesuffix(".lora_A.weight").removeprefix("transformer.")
            result[module] = LowRank(up.float(), down.float())
    return result


def as_we_write(adapter: Adapter, path: Path) -> dict[str, LowRank]:
    """Pairs by diffusers' module path in the diffusers form."""
    state = load_file(write_adapter(path, adapter, "diffusers"))
    return {
        name.removesuffix(".lora_A.weight").removeprefix("transformer."): LowRank(
            state[name.replace("lora_A", "lora_B")], down
        )
        for name, down in state.items()
        if name.endswith(".lora_A.weight")
    }


def assert_equal(ours: dict[str, LowRank], theirs: dict[str, LowRank]) -> None:
    assert ours.keys() == theirs.keys()
    for name, pair in ours.items():
        assert (pair - theirs[name]).norm() <= 1e-5 * theirs[name].norm(), name


@pytest.mark.parametrize("base", BASES)
def test_every_name_of_a_table_is_a_linear_of_diffusers_model(base: str) -> None:
    family = family_of(base)
    parts = {part for whole in family.entries() for part in whole.parts}
    missing = sorted(set(sizes(base)) - parts)
    # Not in LoRA files: Anima's text conditioner is a model of its own.
    assert not missing, missing[:5]


@pytest.mark.parametrize("form", ["kohya", "comfyui"])
@pytest.mark.parametrize("base", BASES)
def test_files_of_every_base_are_recognised(base: str, form: str, tmp_path: Path) -> None:
    facts = describe(original_file(base, form, tmp_path / "a.safetensors"))
    assert "problem" not in facts
    assert family_of(base).title in facts["base"].split(" or ")
    assert facts["layers"] == len(wholes(base))
    assert facts["key_style"] == form


@pytest.mark.parametrize(
    ("base", "form"), [(base, form) for base, row in BASES.items() for form in row[3]]
)
def test_we_read_what_diffusers_own_converter_reads(base: str, form: str, tmp_path: Path) -> None:
    file = original_file(base, form, tmp_path / "a.safetensors")
    ours = as_we_write(read_adapter(file), tmp_path / "b.safetensors")
    assert_equal(ours, as_diffusers_reads(base, file))
    assert all(sizes(base)[name] == pair.shape for name, pair in ours.items())


@pytest.mark.parametrize("base", BASES)
def test_every_form_of_a_merge_holds_the_same_matrices(base: str, tmp_path: Path) -> None:
    """Content in kohya's form with alpha, style in ComfyUI's: names are brought together."""
    content = original_file(base, "kohya", tmp_path / "content.safetensors", alpha=1)
    style = original_file(base, "comfyui", tmp_path / "style.safetensors", seed=1)
    first, second = read_together([content, style])
    assert first.layers.keys() == second.layers.keys()
    merged = first + second.scale(0.5)
    wanted = as_we_write(merged, tmp_path / "wanted.safetensors")
    for form in FORMS:
        file = write_adapter(tmp_path / f"{form}.safetensors", merged, form)
        assert_equal(as_we_write(read_adapter(file), tmp_path / "again.safetensors"), wanted)
        if form in BASES[base][3] or form == "diffusers":
            assert_equal(as_diffusers_reads(base, file), wanted)


@pytest.mark.parametrize("base", BASES)
def test_files_with_the_same_names_keep_them(base: str, tmp_path: Path) -> None:
    files = [original_file(base, "kohya", tmp_path / f"{k}.safetensors", k, 2.0) for k in (0, 1)]
    first, second = read_together(files)
    merged = load_file(write_adapter(tmp_path / "merged.safetensors", first + second))
    assert merged.keys() == load_file(files[0]).keys()
    states = [load_file(file) for file in files]
    for name, up in merged.items():
        if name.endswith("lora_up.weight"):
            assert torch.equal(up, torch.cat([state[name] for state in states], dim=1))
        elif name.endswith("alpha"):
            assert float(up) == 4.0


def test_two_bases_are_refused(tmp_path: Path) -> None:
    one = original_file("wan", "kohya", tmp_path / "one.safetensors")
    two = original_file("qwen-image", "kohya", tmp_path / "two.safetensors")
    with pytest.raises(B4MError, match=r"one\.safetensors is for Wan, .*two.* for Qwen-Image"):
        read_together([one, two])


def test_the_documentation_claims_what_is_tested() -> None:
    page = (Path(__file__).parents[2] / "docs/files.md").read_text(encoding="utf-8")
    cells = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    rows = {row[0]: dict(zip(FORMS, row[1:], strict=True)) for row in cells if len(row) == 5}
    for base, (_, _, _, loaded) in BASES.items():
        expected = {form: "diffusers" if form in loaded else "we" for form in FORMS}
        assert rows[family_of(base).title] == expected | {"diffusers": "diffusers"}


class _Checkpoint(dict[str, Any]):
    """A checkpoint of weights alone: biases and norms are there when asked for."""

    def pop(self, key: str, *default: Any) -> Any:
        if key not in self and not key.endswith(".weight"):
            return torch.zeros(6)
        return super().pop(key, *default)


@pytest.mark.parametrize(
    ("base", "convert"),
    [
        ("sd3", single_file_utils.convert_sd3_transformer_checkpoint_to_diffusers),
        ("z-image", single_file_utils.convert_z_image_transformer_checkpoint_to_diffusers),
        ("krea2", single_file_utils.convert_krea2_transformer_checkpoint_to_diffusers),
    ],
)
def test_tables_agree_with_the_converters_of_checkpoints(
    base: str, convert: Callable[..., dict[str, Tensor]]
) -> None:
    """Weights that number their rows: each part gets the rows that the table says."""
    family, checkpoint = family_of(base), _Checkpoint()
    for whole in family.entries():
        known = [sizes(base)[part] for part in whole.parts if part in sizes(base)]
        if len(known) == len(whole.parts):
            rows = sum(rows for rows, _ in known)
            checkpoint[f"{whole.original}.weight"] = torch.arange(rows).view(-1, 1)
    checkpoint["pos_embed"] = checkpoint["x_embedder.proj.weight"] = torch.zeros(1)
    expected = dict(checkpoint)
    converted = convert(checkpoint)
    for whole in family.entries():
        if f"{whole.original}.weight" not in expected or whole.parts[0] not in sizes(base):
            continue
        rows = expected[f"{whole.original}.weight"]
        if whole.swapped and len(rows) == 2 * sizes(base)[whole.parts[0]][1]:
            rows = torch.cat(rows.chunk(2)[::-1])
        parts = rows.split([sizes(base)[part][0] for part in whole.parts])
        for part, wanted in zip(whole.parts, parts, strict=True):
            assert torch.equal(converted[f"{part}.weight"], wanted), part
