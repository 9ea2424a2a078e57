"""What the encoders make of pictures and captions, kept on disk: each is encoded once.

Latents are kept as the posterior's mean and standard deviation, so that training still draws a new
latent each time. Files are keyed by the content (pixels, text), the base's hash and a fingerprint
of the encoders, and written atomically, so several processes may share a folder.
"""

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from b4m.bases.base import Base, Conditioning
from b4m.errors import B4MError
from b4m.io import replacing

_log = logging.getLogger(__name__)
_SAMPLED = 64  # numbers of each weight that the fingerprint looks at


class Cache:
    """Latents and text embeddings of one base in one folder.

    After use the encoders are taken off the accelerator: `Base.offload`.
    """

    def __init__(self, folder: Path, base: Base) -> None:
        self._base = base
        key = f"{base.hash}-{base.pixels}-{_fingerprint(base.helpers)}"
        self._folder = folder / hashlib.sha256(key.encode()).hexdigest()[:16]

    def latents(self, images: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
        """Posterior mean and std (N, C, H, W), on the CPU, of RGB pictures of the base's size."""
        keys = [_digest(f"{p.size}".encode(), p.tobytes()) for p in images]

        def encode(index: int) -> dict[str, Tensor]:
            mean_1CHW, std_1CHW = self._base.encode_images([images[index]])
            return {"mean": mean_1CHW[0], "std": std_1CHW[0]}

        entries = self._entries("latents", keys, encode)
        return (
            torch.stack([entry["mean"] for entry in entries]),
            torch.stack([entry["std"] for entry in entries]),
        )

    def texts(self, captions: Sequence[str]) -> Conditioning:
        """Conditioning of N captions, on the CPU."""
        keys = [_digest(caption.encode()) for caption in captions]

        @torch.no_grad()
        def encode(index: int) -> dict[str, Tensor]:
            encoded = self._base.encode_prompts([captions[index]])
            return {name: value[0] for name, value in encoded.tensors.items()}

        entries = self._entries("texts", keys, encode)
        return Conditioning(
            {name: torch.stack([entry[name] for entry in entries]) for name in entries[0]}
        )

    def _entries(
        self, kind: str, keys: Sequence[str], encode: Callable[[int], dict[str, Tensor]]
    ) -> list[dict[str, Tensor]]:
        """The entry of each key.

        Each is encoded on its own: within a batch the last bits depend on what else is in it, and
        a run killed while filling the cache would go on with other bits.
        """
        folder = self._folder / kind
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / f"{key}.safetensors" for key in keys]
        missing = [index for index, file in enumerate(files) if not file.is_file()]
        found = len(files) - len(missing)
        _log.info("%s: %d of %d are in the cache %s", kind, found, len(files), folder)
        for index in missing:
            if not files[index].is_file():
                _write(files[index], encode(index))
        if missing:
            self._base.offload()
        return [_read(file) for file in files]


def _write(path: Path, entry: dict[str, Tensor]) -> None:
    tensors = {name: value.detach().cpu().contiguous() for name, value in entry.items()}
    with replacing(path) as partial:
        partial.write_bytes(save(tensors))  # save_file's own exceptions are no OSErrors


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise B4MError(f"{path} in the cache is damaged ({error}); delete it") from None


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:32]


def _fingerprint(modules: Sequence[nn.Module]) -> str:
    """Tell encoders apart by some numbers of each weight; the denoiser's hash leaves them out."""
    digest = hashlib.sha256()
    for module in modules:
        for name, value in module.state_dict().items():
            flat = value.detach().flatten()
            sampled = flat[:: max(1, flat.numel() // _SAMPLED)].cpu()
            digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
            digest.update(sampled.double().numpy().tobytes())
    return digest.hexdigest()
