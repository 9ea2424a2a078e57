"""Pictures are read whole, upright and on white, or refused with a sentence."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from b4m.data.captions import check_trigger, merged_caption, style_caption, with_article
from b4m.data.images import fit_square, load_image
from b4m.errors import B4MError


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_truncated_pictures_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(B4MError, match="damaged|no picture"):
        load_image(path)


def test_text_and_missing_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(B4MError, match="is not an image that can be read"):
        load_image(tmp_path / "a.png")
    with pytest.raises(B4MError, match="does not exist"):
        load_image(tmp_path / "b.png")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_becomes_white(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGBA", (4, 4), (200, 0, 0, 0))
    if mode == "P":
        image.quantize(4).save(tmp_path / "a.png", transparency=0)
    else:
        image.convert(mode).save(tmp_path / "a.png")
    assert set(load_image(tmp_path / "a.png").get_flattened_data()) == {(255, 255, 255)}


def test_camera_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 4), "white")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    image.save(tmp_path / "a.jpg", exif=exif)
    assert load_image(tmp_path / "a.jpg").size == (4, 8)


def test_square_keeps_the_middle() -> None:
    image = Image.new("RGB", (12, 4), "black")
    image.paste("white", (4, 0, 8, 4))
    assert set(fit_square(image, 4).get_flattened_data()) == {(255, 255, 255)}


def test_triggers_count_only_as_whole_words() -> None:
    check_trigger("a snq, in w@z style", "snq w@z", "here")
    with pytest.raises(B4MError, match="here: .* lacks the trigger word 'snq'"):
        check_trigger("a snqs", "snq", "here")


def test_captions_read_as_english() -> None:
    assert merged_caption("sea animal") == "a snq sea animal in w@z style"
    assert style_caption("a lion", "flat sticker") == "a lion in w@z flat sticker style"
    assert [with_article(name) for name in ("owl", "lion", "the sun")] == [
        "an owl",
        "a lion",
        "the sun",
    ]
