"""Claims about SDXL's layer list, against diffusers' own UNet."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from b4m.bases.sdxl import blocks
from b4m.bases.sdxl.family import FAMILY
from b4m.bases.sdxl.model import attention_linears
from b4m.errors import B4MError

SDXL_UNET = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


def test_the_list_is_that_of_a_full_size_sdxl_unet() -> None:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**SDXL_UNET)
    real = {n: (m.out_features, m.in_features) for n, m in attention_linears(unet).items()}
    assert blocks.sdxl_linear_shapes() == real


def test_shapes_have_the_known_inventory() -> None:
    shapes = blocks.sdxl_linear_shapes()
    counts = {(1280, 1280): 360, (1280, 2048): 120, (640, 640): 60, (640, 2048): 20}
    assert Counter(shapes.values()) == counts
    assert sum(out for out, _ in shapes.values()) == 665_600
    assert sum(into for _, into in shapes.values()) == 785_920


def test_every_linear_has_a_role_by_resolution() -> None:
    by_block = {
        name.split(".attentions")[0]: blocks.role_of(name) for name in blocks.sdxl_linear_shapes()
    }
    assert by_block == {
        "down_blocks.1": "style",
        "down_blocks.2": "content",
        "mid_block": "content",
        "up_blocks.0": "content",
        "up_blocks.1": "style",
    }


def test_blora_blocks_hold_eighty_linears_each() -> None:
    names = list(blocks.sdxl_linear_shapes())
    content, style = FAMILY.select(names, "blora-content"), FAMILY.select(names, "blora-style")
    assert len(content) == len(style) == 80
    assert all(name.startswith("up_blocks.0.attentions.0.") for name in content)
    assert all(name.startswith("up_blocks.0.attentions.1.") for name in style)


def test_filters_keep_what_they_say_in_the_order_given() -> None:
    names = list(blocks.sdxl_linear_shapes())
    assert FAMILY.select(names, "") == FAMILY.select(names, "all") == names
    assert len(FAMILY.select(names, "style")) == 80
    assert len(FAMILY.select(names, "content")) == 480
    assert len(FAMILY.select(names, "attn2")) == 280
    both = FAMILY.select(names, "up_blocks.1, down_blocks.1")
    assert both == FAMILY.select(names, "style")
    assert FAMILY.select(names, "up_blocks.0.attentions.1") == FAMILY.select(names, "blora-style")
    for wrong in ("up_blocks.7", "blora-middle", "up_blocks.0.attentions.11"):
        with pytest.raises(B4MError, match="keeps none of 560"):
            FAMILY.select(names, wrong)


def test_names_outside_the_groups_are_refused() -> None:
    for name in ("down_blocks.0.resnets.0.conv1", "up_blocks.1.attentions.10.proj_in"):
        with pytest.raises(B4MError, match="none of SDXL's attention groups"):
            blocks.group_of(name)


def test_a_small_base_of_the_same_topology_has_the_same_groups(tiny_base: Path) -> None:
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(tiny_base / "unet")
    names = attention_linears(unet)
    assert {blocks.group_of(name) for name in names} == set(blocks.GROUPS)
