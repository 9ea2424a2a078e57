"""Masks: which part of an image a training looks at.

A mask is a grey image, white where it looks, of the size of its image and beside it: "mug.mask.png"
for "mug.jpg". Where there is none, the image's own transparency is one.
"""

from pathlib import Path

from PIL import Image, ImageOps

from b4m.data.images import FORMATS, SUFFIXES
from b4m.errors import B4MError

_MARK = ".mask"


def mask_file(image: Path) -> Path:
    """Where the mask of an image lies."""
    return image.with_suffix(f"{_MARK}.png")


def is_mask(path: Path) -> bool:
    """Whether a file is a mask by its name, and no image to train on."""
    return path.stem.endswith(_MARK) and any(
        path.with_name(path.stem.removesuffix(_MARK) + suffix).is_file() for suffix in SUFFIXES
    )


def read_mask(image: Path) -> Image.Image | None:
    """The mask of an image, or its transparency; None for an opaque image without one.

    Raises:
        B4MError: if the mask cannot be read or has another size than its image.
    """
    path = mask_file(image)
    try:
        with Image.open(image, formats=FORMATS) as opened:
            whole = ImageOps.exif_transpose(opened)
        if not path.is_file():
            return _transparency(whole)
        with Image.open(path, formats=FORMATS) as opened:
            mask = ImageOps.exif_transpose(opened).convert("L")
    except OSError as error:
        raise B4MError(f"mask {path} cannot be read ({error}); replace it") from None
    if mask.size != whole.size:
        raise B4MError(
            f"mask {path} is {mask.width} x {mask.height} and its image {whole.width} x "
            f"{whole.height}; give both one size"
        )
    return mask


def _transparency(image: Image.Image) -> Image.Image | None:
    if image.mode not in ("RGBA", "LA", "PA") and "transparency" not in image.info:
        return None
    alpha = image.convert("RGBA").getchannel("A")
    return None if alpha.getextrema() == (255, 255) else alpha
