"""Places are looked at before the work, files are written whole, text is read as people save it."""

import os
import resource
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from b4m import io
from b4m.errors import B4MError
from b4m.io import check_output, read_text, replacing, replacing_folder, write_whole
from b4m.training.checkpoint import write_checkpoint

ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-32")
WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufeff"))


@settings(deadline=None, max_examples=60)
@given(text=WORDS, encoding=st.sampled_from(ENCODINGS))
def test_text_in_unicode_is_read_without_its_mark(
    text: str, encoding: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_bytes(text.encode(encoding))
    assert read_text(path) == text


@pytest.mark.parametrize(
    "content",
    [
        "it\u2019s".encode("cp1252"),
        "caf\u00e9".encode("latin-1"),
        "\u732b".encode("shift_jis"),
        "snq".encode("utf-16-le"),
        "snq".encode("utf-16-be"),
        "snq".encode("utf-16")[:-1],
        b"\xff\xfe\x00",
        b"\x89PNG\r\n\x1a\n\0",
        b"a\0b",
        b"\xc3",
    ],
)
def test_other_encodings_are_one_sentence_that_names_the_file(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(B4MError, match=r"a\.txt is not .*; save it as UTF-8$"):
        read_text(tmp_path / "a.txt")


def test_a_folder_in_the_place_of_a_text_is_one_sentence(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.txt"):
        with pytest.raises(B4MError, match="cannot be read"):
            read_text(path)


def _file_among_parents(folder: Path) -> Path:
    (folder / "a").write_text("x")
    return folder / "a/b/c"


def _name_too_long(folder: Path) -> Path:
    return folder / ("x" * 256)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (_file_among_parents, "is not a folder"),
        (_name_too_long, "too long a name"),
    ],
)
@pytest.mark.parametrize("folder", [False, True])
def test_a_place_that_cannot_be_written_is_refused_and_nothing_is_made(
    tmp_path: Path, place: Callable[[Path], Path], message: str, folder: bool
) -> None:
    path = place(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(B4MError, match=message):
        check_output(path, folder=folder)
    with pytest.raises(B4MError, match="cannot be written"):
        write_whole(path, "x")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_is_not_written_over_a_file_nor_a_file_over_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    with pytest.raises(B4MError, match="is a file, where a folder is to be written"):
        check_output(tmp_path / "file", folder=True)
    with pytest.raises(B4MError, match="is a folder, where a file is to be written"):
        check_output(tmp_path / "folder")
    with pytest.raises(B4MError, match="is a mounted volume"):
        check_output(Path("/proc"), folder=True)
    assert (tmp_path / "file").read_text() == "old"


def test_folders_that_may_not_be_written_and_full_disks_are_told_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
        with pytest.raises(B4MError, match="is read-only to you"):
            check_output(tmp_path / "a")
    usage = type(io.shutil.disk_usage(tmp_path))(100, 100, 0)
    monkeypatch.setattr(io.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(B4MError, match="is full; make room"):
        check_output(tmp_path / "new/a")


@pytest.mark.parametrize("name", ["mug", "mug.ckpt", "x.SAFETENSORS", "a.safetensors.bak", "a."])
def test_a_suffix_that_readers_refuse_is_refused_at_once(tmp_path: Path, name: str) -> None:
    with pytest.raises(B4MError, match=r"does not end in \.safetensors; give"):
        check_output(tmp_path / name, ".safetensors")
    check_output(tmp_path / "a.b.safetensors", ".safetensors")


def test_a_disk_that_fills_up_leaves_the_old_file_and_no_rest(tmp_path: Path) -> None:
    path = write_whole(tmp_path / "a", "old")
    large = {"a": torch.zeros(2**18)}
    limits, before = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(25, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
    try:
        with pytest.raises(B4MError, match=r"a cannot be written \(File too large\); what was"):
            write_whole(path, bytes(2**20))
        with pytest.raises(B4MError, match="a cannot be written; is the disk full"):
            write_checkpoint(path, "f", {"step": 1, "parameters": large})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(25, before)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_links_keep_pointing_and_what_they_point_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/a").write_text("old")
    (tmp_path / "link").symlink_to("real/a")
    (tmp_path / "links").symlink_to("real")
    os.link(tmp_path / "real/a", tmp_path / "hard")
    write_whole(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real/a").read_text() == "new"
    assert (tmp_path / "hard").read_text() == "old", "another name keeps what it had"
    with replacing_folder(tmp_path / "links") as partial:
        (partial / "b").write_text("newer")
    assert (tmp_path / "links").is_symlink()
    assert [path.name for path in (tmp_path / "real").iterdir()] == ["b"]


@pytest.mark.parametrize("fails", [1, 2])
def test_a_folder_is_the_old_or_the_new_one_whenever_the_exchange_stops(
    tmp_path: Path, fails: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, calls, real = tmp_path / "out", [0], os.replace
    out.mkdir()
    (out / "a").write_text("old")

    def replace(source: Path, target: Path) -> None:
        calls[0] += 1
        if calls[0] == fails:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt), replacing_folder(out) as partial:
        (partial / "a").write_text("new")
    assert (out / "a").read_text() == "old"
    assert list(tmp_path.iterdir()) == [out]


def test_of_many_writers_of_one_place_each_writes_whole_and_the_last_one_stays(
    tmp_path: Path,
) -> None:
    problems: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for _ in range(20):
                with replacing_folder(tmp_path / "out") as partial:
                    for name in ("a", "b"):
                        (partial / name).write_text(str(number))
                with replacing(tmp_path / "file") as file:
                    file.write_text(str(number) * 1000)
        except BaseException as error:  # told by the assertion
            problems.append(error)

    writers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert problems == []
    assert (tmp_path / "out/a").read_text() == (tmp_path / "out/b").read_text()
    assert len(set((tmp_path / "file").read_text())) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "out"]
