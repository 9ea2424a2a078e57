"""Damaged images, manifests and captions: read, or one sentence; nothing half-written, no hang."""

import io
import os
import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from b4m.bases.locate import read_recipe
from b4m.data.images import load_image
from b4m.data.manifest import ManifestRow, read_manifest, write_manifest
from b4m.data.prepare import prepare
from b4m.errors import B4MError
from b4m.evaluation.samples import read_samples
from b4m.files import read_adapter
from tests.data.worlds import write_user_folder
from tests.fuzz import TIMES, little_memory

ROW = ManifestRow("a.png", "content", "mug", "a snq mug", "snq", "mug", "train", "CC0", "here")
T = TypeVar("T")
Damage = Callable[[random.Random, bytes], bytes]


def _flip(random: random.Random, content: bytes) -> bytes:
    data = bytearray(content)
    for _ in range(random.randint(1, 8)):
        data[random.randrange(len(data))] = random.randrange(256)
    return bytes(data)


def _cut(random: random.Random, content: bytes) -> bytes:
    return content[: random.randrange(len(content))]


def _repeat(random: random.Random, content: bytes) -> bytes:
    start = random.randrange(len(content))
    piece = content[start : start + random.randint(1, 200)] * random.choice([1, 2, 50])
    return content[:start] + piece + content[start:]


def _extreme(random: random.Random, content: bytes) -> bytes:
    """Lengths, sizes and offsets of four bytes at their ends, in the header as a rule."""
    start = random.randrange(min(len(content), random.choice([40, len(content)])))
    number = random.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\0\0\0\1"])
    return content[:start] + number + content[start + 4 :]


def _join(random: random.Random, content: bytes) -> bytes:
    return content[random.randrange(len(content)) :] + content


DAMAGES: tuple[Damage, ...] = (_flip, _cut, _repeat, _extreme, _join)


def _try(call: Callable[[], T]) -> tuple[T | None, str]:
    """The result, or the sentence that refuses it; any other exception is the test's failure."""
    try:
        return call(), ""
    except B4MError as error:
        return None, str(error)


def _images() -> Iterator[bytes]:
    noise = np.random.default_rng(0).integers(0, 255, (24, 32, 4), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "words"
    for kind, mode in (
        ("PNG", "RGBA"),
        ("PNG", "P"),
        ("PNG", "L"),
        ("JPEG", "RGB"),
        ("JPEG", "CMYK"),
        ("WEBP", "RGBA"),
        ("MPO", "RGB"),
    ):
        stream = io.BytesIO()
        Image.fromarray(noise).convert(mode).save(stream, kind, exif=exif)
        yield stream.getvalue()
    stream = io.BytesIO()
    Image.fromarray(noise[..., 0].astype(np.uint16) * 200).save(stream, "PNG")
    yield stream.getvalue()


@pytest.mark.parametrize("times", TIMES)
def test_six_hundred_damaged_images_are_read_or_told(tmp_path: Path, times: int) -> None:
    source, path, whole = random.Random(0), tmp_path / "a.png", list(_images())
    read = 0
    for number in range(600 * times):
        content = source.choice(DAMAGES)(source, whole[number % len(whole)])
        path.write_bytes(content)
        with little_memory():
            image, told = _try(lambda: load_image(path))
        assert image.mode == "RGB" if image else ("a.png" in told and "\n" not in told)
        read += image is not None
    assert 0 < read < 600 * times, "some damage is harmless, some is not"
    assert os.listdir(tmp_path) == ["a.png"]


MANIFEST_PIECES = (
    *(b'"', b",", b"\n", b"\r", b"\0", b"\xff", b"\xef\xbb\xbf", b";", b"\t", b"../", b"+", b"snq"),
    *(b"content", b"truth", b"reference", b"x" * 200_000, b'""', b"\r\n", "\u2028".encode(), b"''"),
)


@pytest.mark.parametrize("times", TIMES)
def test_four_hundred_damaged_manifests_are_read_or_told(tmp_path: Path, times: int) -> None:
    source = random.Random(1)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    path = write_manifest(tmp_path, [ROW, ROW])
    whole, read = path.read_bytes(), 0
    for number in range(400 * times):
        content = source.choice(DAMAGES)(source, whole)
        if number % 2:
            at = source.randrange(len(whole))
            content = whole[:at] + source.choice(MANIFEST_PIECES) + whole[at:]
        path.write_bytes(content)
        with little_memory():
            rows, told = _try(lambda: read_manifest(tmp_path))
        assert rows or str(tmp_path) in told
        for row in rows or ():
            assert row.file == "a.png"
            assert all(word in row.caption for word in row.trigger.split())
        read += rows is not None
    assert 0 < read < 400 * times


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_a_manifest_that_an_office_program_saved_is_read(
    tmp_path: Path, encoding: str, ends: str
) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    path = write_manifest(tmp_path, [ROW])
    path.write_bytes((path.read_text() + "\n\n").replace("\n", ends).encode(encoding))
    assert read_manifest(tmp_path) == [ROW]


@pytest.mark.parametrize("times", TIMES)
def test_eighty_damaged_captions_are_read_or_told_and_leave_nothing(
    tmp_path: Path, times: int
) -> None:
    source, own, read = random.Random(2), write_user_folder(tmp_path / "own"), 0
    caption = own / "content/teapot/teapot-0.txt"
    whole = "a photo of snq teapot, it\u2019s \u732b on a table"
    for number in range(80 * times):
        encoded = whole.encode(source.choice(["utf-8", "utf-8-sig", "utf-16"]))
        caption.write_bytes(source.choice(DAMAGES)(source, encoded))
        out = tmp_path / f"out-{number}"
        with little_memory():
            _, told = _try(lambda out=out: prepare(own, out, "teapot", "stripes", partners=0))
        assert out.exists() != ("teapot-0.txt" in told)
        if out.exists():
            rows = [row for row in read_manifest(out) if row.concept == "teapot"]
            assert "snq" in rows[0].caption.replace(",", " ").split()
            assert "\ufeff" not in rows[0].caption[:1]
            read += 1
    assert 0 < read < 80 * times
    left = {path.name for path in tmp_path.iterdir() if path.name.startswith(".")}
    assert left == set()


CAPTIONS = {
    "utf-8-sig": "a snq mug",
    "utf-16": "a snq mug \u2019",
    "utf-8": "a snq mug \u732b\u00a0 on\ta\r\ntable\r",
}


@pytest.mark.parametrize("encoding", CAPTIONS)
def test_captions_of_every_editor_are_one_line_without_marks(tmp_path: Path, encoding: str) -> None:
    own = write_user_folder(tmp_path / "own")
    file = own / "content/teapot/teapot-0.txt"
    file.write_bytes(CAPTIONS[encoding].encode(encoding))
    rows = read_manifest(prepare(own, tmp_path / "out", "teapot", "stripes"))
    (row,) = (row for row in rows if (row.kind, row.role) == ("content", "train"))
    assert row.caption == " ".join(CAPTIONS[encoding].split())


@pytest.mark.parametrize("text", ["", "  \n\t", "\ufeff", "snqs", "a mug"])
def test_a_caption_without_the_trigger_names_its_file(tmp_path: Path, text: str) -> None:
    own = write_user_folder(tmp_path / "own")
    (own / "content/teapot/teapot-0.txt").write_text(text, encoding="utf-8")
    with pytest.raises(B4MError, match=r"teapot-0\.txt: the caption .* lacks the trigger word"):
        prepare(own, tmp_path / "out", "teapot", "stripes")
    assert not (tmp_path / "out").exists()


def test_kohyas_repeats_are_left_out_of_the_caption_and_told(tmp_path: Path) -> None:
    own = write_user_folder(tmp_path / "own")
    for number, (name, word) in enumerate(
        {
            "10_mug": "mug",
            "1_sea_lion": "sea lion",
            "100_ohwx man": "ohwx man",
            "007_x": "x",
        }.items()
    ):
        (own / "content/teapot").rename(own / "content" / name)
        with pytest.warns(UserWarning, match="kohya's repeats"):
            out = prepare(own, tmp_path / f"out-{number}", name, "stripes", partners=0)
        assert f"a snq {word}," in (out / "manifest.csv").read_text()
        (own / "content" / name).rename(own / "content/teapot")
    (own / "content/teapot").rename(own / "content/80s")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepare(own, tmp_path / "plain", "80s", "stripes", partners=0)


def test_a_copy_of_an_image_is_told_and_not_held_back_from_itself(tmp_path: Path) -> None:
    own = write_user_folder(tmp_path / "own", contents=4)
    first = own / "content/teapot/teapot-0.png"
    (own / "content/teapot/copy.png").write_bytes(first.read_bytes())
    with pytest.warns(UserWarning, match=r"teapot-0\.png is a copy of copy\.png"):
        out = prepare(own, tmp_path / "out", "teapot", "stripes")
    rows = [row for row in read_manifest(out) if row.concept == "teapot" and row.role != "partner"]
    assert len(rows) == 4


def _samples(folder: Path, content: bytes) -> object:
    (folder / "samples.csv").write_bytes(content)
    return read_samples([folder])


def _recipe(folder: Path, content: bytes) -> object:
    (folder / "b4m.json").write_bytes(content)
    return read_recipe(folder)


def _peft(folder: Path, content: bytes) -> object:
    (folder / "peft").mkdir(exist_ok=True)
    (folder / "peft/adapter_config.json").write_bytes(content)
    stem = "base_model.model.transformer_blocks.0.attn.to_q"
    tensors = {f"{stem}.lora_A.weight": torch.ones(2, 3), f"{stem}.lora_B.weight": torch.ones(4, 2)}
    save_file(tensors, folder / "peft/adapter_model.safetensors")
    return read_adapter(folder / "peft")


CONFIGS: dict[str, tuple[Callable[[Path, bytes], object], bytes]] = {
    "samples.csv": (
        _samples,
        b"file,label,method,content,style,prompt,seed,steps,guidance,base_id,base_hash,adapter_hash\n"
        b'a.png,b4m,b4m,mug,ink,"a snq mug, in w@z style",0,25,5.0,mini,00,11\n',
    ),
    "adapter_config.json": (
        _peft,
        b'{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "alpha_pattern": {"to_q": 8}, '
        b'"rank_pattern": {}, "use_rslora": false, "target_modules": ["to_q"]}',
    ),
    "b4m.json": (_recipe, b'{"recipe": {"train": {"steps": 10, "lr": 1e-4}, "merge": {}}}'),
}


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_hundred_damaged_configs_are_read_or_told(tmp_path: Path, name: str, times: int) -> None:
    source, read = random.Random(3), 0
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    reader, whole = CONFIGS[name]
    assert reader(tmp_path, whole)
    for _ in range(100 * times):
        content = source.choice(DAMAGES)(source, whole)
        with little_memory():
            result, told = _try(lambda content=content: reader(tmp_path, content))
        assert result is not None or str(tmp_path) in told
        read += result is not None
    assert 0 < read < 100 * times
    for content in (b"", b"[" * 100_000, b"[]", b"null", b"{\xff}", "{}".encode("utf-16-le")):
        _, told = _try(lambda content=content: reader(tmp_path, content))
        assert name in told
