"""Pictures of one's own and a random evaluator: enough for a whole run in seconds."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

CLIP = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {
            "image_size": 32,
            "layers": 1,
            "width": 32,
            "head_width": 16,
            "patch_size": 16,
        },
        "text_cfg": {
            "context_length": 77,
            "vocab_size": 49408,
            "width": 16,
            "heads": 2,
            "layers": 1,
        },
    },
    "preprocess_cfg": {
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "interpolation": "bicubic",
        "resize_mode": "squash",
    },
}


@pytest.fixture(scope="session", autouse=True)
def _callers_by_name() -> Iterator[None]:
    """KFP reads the whole stack for the name of a caller, at every setter of a task.

    Below pytest, with thousands of modules, that takes ten times as long as all the rest.
    """
    from kfp.dsl import pipeline_task

    def stack() -> list[tuple[object, ...]]:
        return [(None, "", 0, sys._getframe(depth).f_code.co_name) for depth in (1, 2)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline_task, "inspect", SimpleNamespace(stack=stack))
        yield


@pytest.fixture
def own_pictures(tmp_path: Path) -> Path:
    """A user's folder: one picture of each of two contents, two of each of two styles."""
    from PIL import Image, ImageDraw

    folder = tmp_path / "pictures"
    for kind, concept, count, colour in (
        ("content", "cat", 1, "orange"),
        ("content", "car", 1, "red"),
        ("style", "ink", 2, "black"),
        ("style", "chalk", 2, "gray"),
    ):
        (folder / kind / concept).mkdir(parents=True)
        for number in range(count):
            image = Image.new("RGB", (64, 64), "white")
            corner = 8 + 8 * number
            ImageDraw.Draw(image).ellipse((corner, corner, 50, 56), fill=colour)
            image.save(folder / kind / concept / f"round thing {number}.png")
    return folder


@pytest.fixture(scope="session")
def tiny_evaluator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP with random weights as an open_clip folder."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("evaluator")
    (folder / "open_clip_config.json").write_text(json.dumps(CLIP))
    torch.manual_seed(0)
    model = open_clip.model.CLIP(**CLIP["model_cfg"])
    weights = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    return folder
