"""Images as training and evaluation read them: whole, upright, RGB on white, square.

Only PNG, JPEG and WebP are read, told apart by their content. Pillow opens many formats more, some
through other programs: Ghostscript, for one, would be started on a PostScript file named a.png.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from b4m.errors import B4MError

FORMATS = ("PNG", "JPEG", "WEBP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".jpe", ".webp")
CAPTION_SUFFIXES = (".txt", ".TXT")
_STRIP = 512  # rows
_ORIENTATION = 0x0112  # tag of EXIF
_TURNS: Mapping[object, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def load_image(path: Path) -> Image.Image:
    """Read a whole image as RGB: turned as its camera says, transparency over white.

    Of several frames it is the first; of 16 bits the upper eight.

    Raises:
        B4MError: if the file is missing, truncated, no image of `FORMATS` or too large.
    """
    if not path.is_file():
        raise B4MError(f"image {path} {'is not a file' if path.exists() else 'does not exist'}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, which is not used
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as opened:
                deep = any(str(tile.args).endswith(";16B") for tile in opened.tile)
                opened.load()
                return _on_white(_eight_bits(_upright(opened), deep))
    except UnidentifiedImageError:
        raise B4MError(f"{path} is not an image that can be read; give PNG, JPEG or WebP") from None
    except PermissionError:
        raise B4MError(f"image {path} may not be read; change its permissions") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        millions = (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        raise B4MError(f"image {path} has more than {millions} million pixels; scale it") from None
    except Exception as error:  # a decoder raises anything on bytes that it does not expect
        raise B4MError(f"image {path} is damaged ({error!r}); replace it") from error


def _upright(image: Image.Image) -> Image.Image:
    """Turned as EXIF says; whatever else is wrong in EXIF does not matter."""
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION))
    except Exception:  # cameras and editors write anything
        turn = None
    return image if turn is None else image.transpose(turn)


def _eight_bits(image: Image.Image, deep: bool) -> Image.Image:
    """Greys of 16 bits in 8; Pillow's own conversion makes all but the darkest of them white.

    Of colours Pillow has kept the upper eight bits, but not of the colour that is clear.

    Args:
        image: of any mode.
        deep: whether the file has 16 bits.
    """
    clear = image.info.get("transparency")
    if deep and isinstance(clear, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in clear)
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    grey = Image.fromarray((values >> 8).astype(np.uint8))
    if clear is not None:
        seen = (values != clear).astype(np.uint8) * 255
        grey.putalpha(Image.fromarray(seen))
    return grey


def _on_white(image: Image.Image) -> Image.Image:
    """RGB of any mode, strip by strip, so that a large image is in memory only twice."""
    clear = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
    result = Image.new("RGB", image.size)
    for top in range(0, image.height, _STRIP):
        part = image.crop((0, top, image.width, min(top + _STRIP, image.height)))
        if clear:
            part = part.convert("RGBA")
            part = Image.alpha_composite(Image.new("RGBA", part.size, "white"), part)
        result.paste(part.convert("RGB"), (0, top))
    return result


def fit_square(image: Image.Image, pixels: int) -> Image.Image:
    """Scale the shorter side to `pixels` and cut the middle square."""
    if image.size == (pixels, pixels):
        return image
    return ImageOps.fit(image, (pixels, pixels), Image.Resampling.LANCZOS)


def images_in(folder: Path) -> list[Path]:
    """The image files of a folder by name; a warning names what else lies there.

    Hidden files and captions of images are passed over in silence.
    """
    seen = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    images = [path for path in seen if path.is_file() and path.suffix.lower() in SUFFIXES]
    stems = {path.stem for path in images}
    others = [
        path.name
        for path in seen
        if path not in images and not (path.suffix in CAPTION_SUFFIXES and path.stem in stems)
    ]
    if others:
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        warnings.warn(
            f"{folder}: {', '.join(others[:5])}{more} not used; images are {', '.join(SUFFIXES)}",
            stacklevel=2,
        )
    return images
