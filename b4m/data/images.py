"""Pictures as training and evaluation read them: whole, upright, RGB on white, square."""

from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from b4m.errors import B4MError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def load_image(path: Path) -> Image.Image:
    """Read a whole picture as RGB: turned as its camera says, transparency over white.

    Raises:
        B4MError: if the file is missing, truncated or no picture.
    """
    try:
        with Image.open(path) as opened:
            opened.load()
            image = ImageOps.exif_transpose(opened)
    except FileNotFoundError:
        raise B4MError(f"image {path} does not exist") from None
    except UnidentifiedImageError:
        raise B4MError(f"{path} is not an image that can be read; give PNG, JPEG or WebP") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise B4MError(f"image {path} is damaged ({error}); replace it") from error
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def fit_square(image: Image.Image, pixels: int) -> Image.Image:
    """Scale the shorter side to `pixels` and cut the middle square."""
    if image.size == (pixels, pixels):
        return image
    return ImageOps.fit(image, (pixels, pixels), Image.Resampling.LANCZOS)


def images_in(folder: Path) -> list[Path]:
    """The picture files of a folder by name; hidden files and others are passed over."""
    return sorted(
        file
        for file in folder.iterdir()
        if file.is_file() and file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
    )
