"""Image and text encoders, each under its own name with the hash of its weights.

A number from one encoder says nothing beside a number from another: backbone, crop and activation
move a score more than the method under test does. So an encoder carries what a reader needs to
repeat it: `id`, `weights_hash` and `preprocessing`.

`ClipEncoder` is open_clip: a local folder (mini-CLIP), or a published model as "ViT-B-32:openai".
`hub` has those of transformers and CSD, `packaged` those whose weights come in small packages.

Shape legend: N images, M texts, D feature dimensions.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image

from b4m import torchvision_guard
from b4m.errors import B4MError
from b4m.evaluation.features import encode
from b4m.evaluation.hub import CSD, CsdEncoder, HubEncoder, is_hub_name
from b4m.evaluation.kinds import Encoder, Features, Names
from b4m.evaluation.packaged import EfficientNetLite0, HedStyle, MagentaStyle
from b4m.extras import needs
from b4m.io import read_json, sha256

INDEPENDENT: Mapping[str, "Callable[[str], Encoder]"] = {
    EfficientNetLite0.id: EfficientNetLite0,
    MagentaStyle.id: lambda device: MagentaStyle(),
    HedStyle.id: HedStyle,
}
"""Encoders whose weights come inside a package, by name."""

torchvision_guard.install()  # before open_clip is imported


def open_encoder(name: str, device: str = "auto") -> Encoder:
    """The encoder of this name.

    Args:
        name: a folder with open_clip_config.json and its weights; "MODEL:PRETRAINED" as open_clip
            lists them ("ViT-B-32:openai"); a folder or hub id of a DINOv2, DINOv3 or SigLIP;
            "csd:FOLDER"; or one of `INDEPENDENT`.
        device: "cpu", "cuda" or "auto".

    Raises:
        B4MError: for an unknown name, missing weights or a package that is not installed.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if name in INDEPENDENT:
        return INDEPENDENT[name](device)
    if name.startswith(CSD):
        return CsdEncoder(name.removeprefix(CSD), device)
    return HubEncoder(name, device) if is_hub_name(name) else ClipEncoder(name, device)


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
        return encode(
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
        return encode(
            list(ids_MT),
            lambda part: self._model.encode_text(torch.stack(list(part)).to(self._device)),
        )


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
