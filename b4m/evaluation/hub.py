"""Encoders of transformers by hub id or folder: DINOv2, DINOv3, SigLIP; and CSD.

Each is loaded by its own class and looks at images through its own transform, as published. DINO's
feature is the class token after the last norm, SigLIP's the pooled output of its vision tower.

CSD (arXiv 2404.01292) is CLIP's ViT-L/14 vision tower without its projection and a learned style
head, 1024 x 768; the style feature is head^T(tower). A folder holds the tower's
open_clip_config.json (if there is none it is ViT-L-14) and one checkpoint with the keys backbone.*
and last_layer_style.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from b4m.errors import B4MError
from b4m.evaluation.features import encode
from b4m.evaluation.kinds import Features
from b4m.extras import needs
from b4m.io import read_json, sha256

METRICS = {
    "dinov2": "dinov2",
    "dinov2_with_registers": "dinov2",
    "dinov3_vit": "dinov3",
    "dinov3_convnext": "dinov3",
    "siglip": "siglip",
    "siglip_vision_model": "siglip",
    "siglip2_vision_model": "siglip",
}
"""First part of the metric names by transformers' `model_type`."""
CSD = "csd:"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


class HubEncoder:
    """An image encoder of transformers."""

    def __init__(self, name: str, device: str = "cpu") -> None:
        with needs("train", f"evaluator {name}"):
            import transformers
        # a missing hub, a missing file and a broken one are told by many kinds of errors
        try:
            config = transformers.AutoConfig.from_pretrained(name)
            kind = str(config.model_type)
            if kind not in METRICS:
                known = ", ".join(sorted(METRICS))
                raise B4MError(f"evaluator {name!r} is a {kind}; known here are {known}")
            model = transformers.AutoModel.from_pretrained(name, dtype=torch.float32)
            self._transform = transformers.AutoImageProcessor.from_pretrained(name)
            weights = _weights(name)
        except (OSError, ValueError, RuntimeError, ImportError) as error:
            raise B4MError(f"evaluator {name!r} cannot be loaded: {error}") from error
        self._model = getattr(model, "vision_model", model).eval().to(device)
        self._device = device
        self.id = Path(name).name if Path(name).is_dir() else name
        self.metric = METRICS[kind]
        self.weights_hash = sha256(weights)
        self.preprocessing = _words(self._transform.to_dict())

    def encode_images(self, images: Sequence[Image.Image]) -> Features:
        """Unit features (N, D) after the model's own transform."""

        def forward(part: Sequence[Image.Image]) -> torch.Tensor:
            pixels = self._transform(images=list(part), return_tensors="pt")["pixel_values"]
            pooled: torch.Tensor = self._model(pixel_values=pixels.to(self._device)).pooler_output
            return pooled

        return encode([image.convert("RGB") for image in images], forward)


class CsdEncoder:
    """CSD's style feature through open_clip's vision tower."""

    metric = "csd"

    def __init__(self, folder: str, device: str = "cpu") -> None:
        with needs("evaluate", f"evaluator {CSD}{folder}"):
            import open_clip
        where = Path(folder)
        files = [*where.glob("*.safetensors"), *where.glob("*.pth"), *where.glob("*.bin")]
        if len(files) != 1:
            raise B4MError(f"evaluator {CSD}{folder} needs a folder with exactly one checkpoint")
        own = where / "open_clip_config.json"
        config = read_json(own, "take the evaluator anew")["model_cfg"] if own.is_file() else None
        config = config or open_clip.get_model_config("ViT-L-14")
        self._tower = open_clip.model.CLIP(**{**config, "quick_gelu": True}).visual
        self._tower.proj = None
        state = _state(files[0])
        try:
            self._head_DS = state.pop("last_layer_style").float().to(device)
            backbone = {k.removeprefix("backbone."): v for k, v in state.items() if "backbone" in k}
            self._tower.load_state_dict(backbone)
        except (KeyError, RuntimeError) as error:
            raise B4MError(f"{files[0]} is no checkpoint of CSD for this tower: {error}") from None
        self._tower.float().eval().to(device)
        size = self._tower.image_size
        self._transform = open_clip.image_transform(
            size[0] if isinstance(size, tuple) else size, is_train=False, interpolation="bicubic"
        )
        self._device = device
        self.id = f"csd-{where.name}"
        self.weights_hash = sha256(files[0])
        self.preprocessing = "CLIP's own evaluation transform; style head; float32, QuickGELU"

    def encode_images(self, images: Sequence[Image.Image]) -> Features:
        """Unit features (N, S) of the style head."""

        def forward(part: Sequence[Image.Image]) -> torch.Tensor:
            pixels = torch.stack([self._transform(image) for image in part]).to(self._device)
            style: torch.Tensor = self._tower(pixels) @ self._head_DS
            return style

        return encode([image.convert("RGB") for image in images], forward)


def is_hub_name(name: str) -> bool:
    """Whether a name is a folder of transformers, or looks like an id of a hub."""
    folder = Path(name)
    if folder.is_dir():
        return (folder / "config.json").is_file() and not (
            folder / "open_clip_config.json"
        ).is_file()
    return ":" not in name and name.count("/") == 1 and not name.startswith((".", "/"))


def _weights(name: str) -> Path:
    """The one file of weights."""
    from transformers.utils import cached_file

    for file in _WEIGHTS:
        found = cached_file(name, file, _raise_exceptions_for_missing_entries=False)
        if found:
            return Path(found)
    raise B4MError(f"evaluator {name!r} has no single file of weights ({' or '.join(_WEIGHTS)})")


def _state(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint, without the prefix of parallel training."""
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        state = load_file(file)
    else:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
        state = loaded.get("model_state_dict", loaded)
    return {key.removeprefix("module."): value for key, value in state.items()}


def _words(transform: dict[str, Any]) -> str:
    """What a transform does, as it describes itself."""
    kept = {
        key: value
        for key, value in transform.items()
        if key in ("size", "crop_size", "resample", "image_mean", "image_std", "do_center_crop")
        and value is not None
    }
    return f"{transform.get('image_processor_type', 'transform')}: " + ", ".join(
        f"{key} {value}" for key, value in sorted(kept.items())
    )
