"""Images as they occur: what cameras, scanners and downloads leave in a folder."""

import io
import os
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, PngImagePlugin

from b4m.data.images import images_in, load_image
from b4m.errors import B4MError

GRID = np.random.default_rng(0).integers(0, 2**16, (8, 12), dtype=np.uint16)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _jpeg_with_exif(orientation: int, denominator: int) -> bytes:
    """Red left, blue right; an orientation and an XResolution of -1/denominator (SRATIONAL)."""
    image = Image.new("RGB", (32, 16), "red")
    image.paste("blue", (16, 0, 32, 16))
    tiff = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 2)
    tiff += struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    tiff += struct.pack("<HHII", 0x011A, 10, 1, 38) + struct.pack("<I", 0)
    tiff += struct.pack("<ii", -1, denominator)
    stream = io.BytesIO()
    image.save(stream, "JPEG", exif=b"Exif\0\0" + tiff, quality=95)
    return stream.getvalue()


@settings(deadline=None, max_examples=25)
@given(orientation=st.integers(0, 9), denominator=st.sampled_from([0, 1, -1, 72]))
def test_only_the_orientation_of_exif_matters(
    orientation: int, denominator: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("exif") / "a.jpg"
    path.write_bytes(_jpeg_with_exif(orientation, denominator))
    plain = Image.open(path).convert("RGB")
    marked = Image.frombytes("RGB", plain.size, plain.tobytes())  # without the file's EXIF
    marked.getexif()[0x0112] = orientation
    wanted = ImageOps.exif_transpose(marked)
    assert load_image(path).tobytes() == wanted.tobytes()


@pytest.mark.parametrize(
    "exif", [b"", b"Exif\0\0", b"MM\0*\0\0", b"\xff" * 40, b"II*\0" + b"\xff" * 20]
)
def test_exif_that_is_none_is_passed_over(tmp_path: Path, exif: bytes) -> None:
    Image.new("RGB", (4, 4), "red").save(tmp_path / "a.png", exif=exif or None)
    assert load_image(tmp_path / "a.png").size == (4, 4)


def test_sixteen_bit_greys_are_the_eight_bit_image_within_one(tmp_path: Path) -> None:
    Image.fromarray(GRID).save(tmp_path / "a.png")
    read = np.asarray(load_image(tmp_path / "a.png"), dtype=float)
    assert abs(read - GRID[..., None] / 257).max() <= 1


def test_the_clear_grey_of_a_sixteen_bit_image_is_white(tmp_path: Path) -> None:
    clear = int(GRID[2, 3])
    Image.fromarray(GRID).save(tmp_path / "a.png", transparency=clear)
    read = np.asarray(load_image(tmp_path / "a.png"))
    assert (read[GRID == clear] == 255).all()
    assert (read[GRID != clear] == (GRID >> 8)[GRID != clear][:, None]).all()


@pytest.mark.parametrize("clear", [(0, 0, 200), (0x1234, 0x5678, 0x9ABC), (0xFFFF, 0, 0)])
def test_the_clear_colour_of_a_sixteen_bit_image_is_white(
    tmp_path: Path, clear: tuple[int, int, int]
) -> None:
    """Known in the upper eight bits, which is all that Pillow reads of such an image."""
    colours = np.array([[clear, (0x8000, 0x8000, 0x8000), (0x1111, 0, 0xAAAA)]], dtype=">u2")
    data = b"".join(b"\0" + row.tobytes() for row in colours)
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", struct.pack(">IIBBBBB", 3, 1, 16, 2, 0, 0, 0))
        + _chunk(b"tRNS", struct.pack(">3H", *clear))
        + _chunk(b"IDAT", zlib.compress(data))
        + _chunk(b"IEND", b"")
    )
    read = np.asarray(load_image(tmp_path / "a.png"))
    assert read[0].tolist() == [[255] * 3, [128] * 3, [0x11, 0, 0xAA]]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("size", [(1, 1), (1, 700), (700, 1), (3, 1300)])
def test_every_mode_and_shape_is_rgb_over_white(
    tmp_path: Path, mode: str, size: tuple[int, int]
) -> None:
    image = Image.new("L", size, 255).convert("I").convert(mode) if mode == "I;16" else None
    image = image or Image.new("RGBA", size, (0, 0, 0, 0)).convert(mode)
    image.save(tmp_path / "a.png")
    read = load_image(tmp_path / "a.png")
    assert (read.mode, read.size) == ("RGB", size)
    if mode in ("LA", "RGBA"):
        assert read.getextrema() == ((255, 255),) * 3


FOREIGN = (
    "EPS",
    "GIF",
    "TIFF",
    "BMP",
    "ICO",
    "DDS",
    "TGA",
    "PDF",
    "PPM",
    "JPEG2000",
    "ICNS",
    "SGI",
)


@pytest.mark.parametrize("kind", FOREIGN)
def test_other_formats_are_refused_by_content_and_no_program_is_started(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(*arguments: object, **options: object) -> None:
        raise AssertionError(f"a process was started: {arguments}")

    Image.new("RGB", (16, 16), "red").save(tmp_path / "a.png", kind)
    for name in ("Popen", "run", "call", "check_call", "check_output"):
        monkeypatch.setattr(subprocess, name, started)
    monkeypatch.setattr(os, "system", started)
    with pytest.raises(B4MError, match=r"a\.png is not an image that can be read; give PNG"):
        load_image(tmp_path / "a.png")


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG", "MPO"])
def test_a_wrong_suffix_does_not_matter(tmp_path: Path, kind: str) -> None:
    Image.new("RGB", (16, 8), "red").save(tmp_path / "a.jfif", kind)
    assert load_image(tmp_path / "a.jfif").size == (16, 8)


def test_of_an_animation_it_is_the_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for name in ("a.webp", "a.png"):
        options = {"lossless": True} if name == "a.webp" else {}
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
        assert load_image(tmp_path / name).getpixel((4, 4)) == (255, 0, 0)


def test_bombs_are_refused_by_their_size_before_they_are_unpacked(tmp_path: Path) -> None:
    for number, (width, height) in enumerate([(10_000, 10_000), (60_000, 60_000), (2**31 - 1, 1)]):
        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        content = _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(bytes(10**6)))
        path = tmp_path / f"{number}.png"
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + content + _chunk(b"IEND", b""))
        with pytest.raises(B4MError, match="million pixels; scale it"):
            load_image(path)


def test_texts_that_unpack_to_gigabytes_are_refused(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("a", "x" * (PngImagePlugin.MAX_TEXT_CHUNK + 1), zip=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", pnginfo=info)
    with pytest.raises(B4MError, match="damaged"):
        load_image(tmp_path / "a.png")


def test_what_is_no_file_is_refused_and_nothing_waits_for_it(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "empty.png").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    for name, message in {
        "folder": "is not a file",
        "pipe": "is not a file",
        "empty": "is not an image",
        "loop": "does not exist",
        "gone": "does not exist",
        "none": "does not exist",
    }.items():
        with pytest.raises(B4MError, match=rf"{name}\.png {message}"):
            load_image(tmp_path / f"{name}.png")


def test_a_link_is_the_image_it_points_to(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), "red").save(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("a.png")
    assert [path.name for path in images_in(tmp_path)] == ["a.png", "b.png"]
    assert load_image(tmp_path / "b.png").getpixel((0, 0)) == (255, 0, 0)


def test_what_is_not_used_of_a_folder_is_said(tmp_path: Path) -> None:
    for name in ("a.JPG", "b.heic", "c.avif", "d.gif", "e.jfif", "f.bmp", "h.txt", ".hidden"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "a.txt").write_text("caption of an image")
    (tmp_path / "g.png").mkdir()
    told = r"b\.heic, c\.avif, d\.gif, f\.bmp, g\.png and 1 more not used; images are \.png, \.jpg"
    with pytest.warns(UserWarning, match=told):
        found = images_in(tmp_path)
    assert [path.name for path in found] == ["a.JPG", "e.jfif"]
