"""Pictures as training and evaluation read them: whole, upright, RGB on white, square."""

from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from b4m.errors import B4MError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def load_picture(path: Path) -> Image.Image:
    """Read a whole picture as RGB: turned as its camera says, transparency over white.

    Raises:
        B4MError: if the file is missing, truncated or no picture.
    """
    try:
        with Image.open(path) as opened:
            opened.load()
            picture = ImageOps.exif_transpose(opened)
    except FileNotFoundError:
        raise B4MError(f"picture {path} does not exist") from None
    except UnidentifiedImageError:
        raise B4MError(f"{path} is no picture that can be read; give PNG, JPEG or WebP") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise B4MError(f"picture {path} is damaged ({error}); replace it") from error
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return picture.convert("RGB")


def fit_square(picture: Image.Image, pixels: int) -> Image.Image:
    """Scale the shorter side to `pixels` and cut the middle square."""
    if picture.size == (pixels, pixels):
        return picture
    return ImageOps.fit(picture, (pixels, pixels), Image.Resampling.LANCZOS)


def pictures_in(folder: Path) -> list[Path]:
    """The picture files of a folder by name; hidden files and others are passed over."""
    return sorted(
        file
        for file in folder.iterdir()
        if file.is_file() and file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
    )
