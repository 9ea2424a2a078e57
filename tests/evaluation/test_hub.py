"""Encoders of transformers and CSD: their real classes and transforms, with tiny random weights."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from b4m.errors import B4MError
from b4m.evaluation.encoders import open_encoder
from b4m.evaluation.kinds import TextEncoder
from b4m.evaluation.packaged import gram
from tests.evaluation.conftest import CONFIG
from tests.evaluation.world import draw

IMAGES = [draw("fish", "flat"), draw("house", "stencil").resize((90, 70))]
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32}


def dinov2(folder: Path) -> None:
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    Dinov2Model(Dinov2Config(**SMALL, patch_size=8, mlp_ratio=2)).save_pretrained(folder)
    BitImageProcessor(size={"shortest_edge": 40}, crop_size=32).save_pretrained(folder)


def dinov3(folder: Path) -> None:
    from transformers import DINOv3ViTConfig, DINOv3ViTImageProcessor, DINOv3ViTModel

    config = DINOv3ViTConfig(**SMALL, intermediate_size=32, patch_size=8)
    DINOv3ViTModel(config).save_pretrained(folder)
    DINOv3ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)


def siglip(folder: Path) -> None:
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel

    vision = {**SMALL, "intermediate_size": 32, "patch_size": 8}
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 40}
    config = SiglipConfig(vision_config=vision, text_config={**text, "intermediate_size": 32})
    SiglipModel(config).save_pretrained(folder)
    SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)


@pytest.mark.parametrize(
    ("write", "metric"), [(dinov2, "dinov2"), (dinov3, "dinov3"), (siglip, "siglip")]
)
def test_features_are_those_of_transformers_own_class_and_transform(
    write: Callable[[Path], None], metric: str, tmp_path: Path
) -> None:
    from transformers import AutoImageProcessor, AutoModel

    folder = tmp_path / metric
    torch.manual_seed(0)
    write(folder)
    encoder = open_encoder(str(folder), "cpu")
    assert (encoder.id, encoder.metric) == (metric, metric)
    assert not isinstance(encoder, TextEncoder)
    assert "mean" in encoder.preprocessing
    model = AutoModel.from_pretrained(folder).eval()
    tower = getattr(model, "vision_model", model)
    with torch.no_grad():
        pixels = AutoImageProcessor.from_pretrained(folder)(images=IMAGES, return_tensors="pt")
        expected = torch.nn.functional.normalize(tower(**pixels).pooler_output, dim=1)
    np.testing.assert_allclose(encoder.encode_images(IMAGES), expected.numpy(), atol=1e-5)


def test_csd_is_the_towers_feature_through_the_style_head(tmp_path: Path) -> None:
    import json

    import open_clip

    torch.manual_seed(0)
    model = {**CONFIG["model_cfg"], "quick_gelu": True}
    tower = open_clip.model.CLIP(**model).visual.eval()
    tower.proj = None
    head = torch.randn(32, 24)
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG["model_cfg"]}))
    state = {f"module.backbone.{key}": value for key, value in tower.state_dict().items()}
    state |= {"module.last_layer_style": head, "module.last_layer_content": head}
    torch.save({"model_state_dict": state}, folder / "checkpoint.pth")
    encoder = open_encoder(f"csd:{folder}", "cpu")
    transform = open_clip.image_transform(32, is_train=False, interpolation="bicubic")
    with torch.no_grad():
        features = tower(torch.stack([transform(image) for image in IMAGES]))
    expected = torch.nn.functional.normalize(features @ head, dim=1)
    np.testing.assert_allclose(encoder.encode_images(IMAGES), expected.numpy(), atol=1e-5)
    assert (encoder.id, encoder.metric) == ("csd-tiny", "csd")
    torch.save({"model_state_dict": {}}, folder / "checkpoint.pth")
    with pytest.raises(B4MError, match="is no checkpoint of CSD"):
        open_encoder(f"csd:{folder}", "cpu")


def test_another_model_of_the_hub_is_refused_by_name(tmp_path: Path) -> None:
    from transformers import BertConfig

    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(B4MError, match="is a bert; known here are dinov2"):
        open_encoder(str(tmp_path), "cpu")


def test_a_gram_feature_is_the_same_wherever_strokes_are_and_a_unit_vector() -> None:
    x_BCHW = torch.randn(1, 4, 6, 6).relu()
    moved = x_BCHW.roll((2, 3), dims=(2, 3))
    torch.testing.assert_close(gram(x_BCHW), gram(moved))
    assert gram(x_BCHW).shape == (1, 10)
    assert float(gram(x_BCHW).norm()) == pytest.approx(1.0)
    by_hand = torch.einsum("bchw,bdhw->bcd", x_BCHW, x_BCHW)[0, 0, 1].sqrt()
    ratio = by_hand / torch.einsum("bchw,bdhw->bcd", x_BCHW, x_BCHW)[0, 0, 0].sqrt()
    torch.testing.assert_close(gram(x_BCHW)[0, 1] / gram(x_BCHW)[0, 0], ratio)
