"""What a single-file checkpoint is of is read from its header, before anything is loaded."""

import json
import math
import re
from pathlib import Path

import pytest

from b4m.bases import load_base
from b4m.bases.name_tables import TABLES
from b4m.bases.named import NamedFamily
from b4m.bases.recognition import family_of_checkpoint
from b4m.bases.sdxl.blocks import sdxl_linear_shapes
from b4m.bases.sdxl.family import FAMILY as SDXL
from b4m.errors import B4MError

# What stands beside a denoiser in the files that people download.
BESIDE = {
    "first_stage_model.encoder.conv_in.weight": (128, 3, 3, 3),
    "first_stage_model.decoder.mid.attn_1.q.weight": (512, 512, 1, 1),
    "conditioner.embedders.0.transformer.text_model.encoder.layers.0.mlp.fc1.weight": (3072, 768),
    "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias": (1280,),
    "denoiser.sigmas": (1000,),
}


def write_header(file: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    """A file of halves, all zero, that takes no room on a disk with sparse files."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)
    return file


def sdxl() -> dict[str, tuple[int, ...]]:
    """The attention of SDXL under the names of the original code."""
    return {
        f"model.{SDXL.comfyui_stem('unet', name)}.weight": shape
        for name, shape in sdxl_linear_shapes().items()
    }


def checkpoint(family: NamedFamily) -> dict[str, tuple[int, ...]]:
    """Two hundred linears of a family under the original code's names, in sizes that it has."""
    shapes: dict[str, tuple[int, ...]] = {}
    for whole in family.entries():
        widths = [w[0] for p, w in family.widths.items() if re.search(p, whole.parts[0])]
        columns = widths[0] if widths else 64
        rows = (sum(whole.heights) or 1) * columns
        shapes[f"model.diffusion_model.{whole.original}.weight"] = (rows, columns)
        if len(shapes) == 200:
            break
    return shapes


def test_sdxl_is_recognised_with_all_that_its_file_holds(tmp_path: Path) -> None:
    file = write_header(tmp_path / "any-name.safetensors", {**sdxl(), **BESIDE})
    assert family_of_checkpoint("any", file) == "sdxl"


@pytest.mark.parametrize(
    "family", [one for one in TABLES if any(one.entries())], ids=lambda family: family.name
)
def test_a_checkpoint_of_another_family_is_refused_by_its_name(
    family: NamedFamily, tmp_path: Path
) -> None:
    file = write_header(tmp_path / "model.safetensors", {**checkpoint(family), **BESIDE})
    twins = {"flux1": "FLUX.1", "chroma": "FLUX.1|Chroma"}
    title = twins.get(family.name, re.escape(family.title))
    with pytest.raises(B4MError, match=rf"is a checkpoint of ({title}), .*; give a .* of SDXL$"):
        load_base(str(file))


def test_what_no_family_knows_is_refused_with_what_was_found(tmp_path: Path) -> None:
    shapes = {f"encoder.layer.{k}.query.weight": (8, 8) for k in range(3)}
    file = write_header(tmp_path / "bert.safetensors", shapes)
    found = "it has 3 layers (encoder.layer.0.query, encoder.layer.1.query)"
    with pytest.raises(B4MError, match=re.escape(f"{file}: is of no known family; {found};")):
        load_base(str(file))


@pytest.mark.parametrize("ending", [".lora_down.weight", ".lora_A.weight", ".lokr_w1", ".alpha"])
def test_an_adapter_given_as_a_base_is_called_one(ending: str, tmp_path: Path) -> None:
    names = (".lora_up.weight", ending) if ending == ".alpha" else (ending,)
    shapes = {f"lora_unet_mid_block_attentions_0_proj_in{name}": (4, 8) for name in names}
    file = write_header(tmp_path / "lora.safetensors", shapes)
    with pytest.raises(B4MError, match="lora.safetensors: is an adapter file; give the base"):
        load_base(str(file))


def test_what_is_not_a_safetensors_file_is_refused(tmp_path: Path) -> None:
    for name, content in (("a.ckpt", b"PK\x03\x04"), ("b.safetensors", b""), ("c.txt", b"x" * 99)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(B4MError, match=f"{name}: is not a safetensors file; give a folder"):
            load_base(str(tmp_path / name))
