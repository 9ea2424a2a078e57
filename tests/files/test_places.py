"""Claims of where adapters are written: told or right, and nothing that was there is lost."""

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from key_styles import adapter, same

from b4m import verbs
from b4m.errors import B4MError
from b4m.files import read_adapter, write_adapter
from b4m.io import check_output

SMALL, LARGE = adapter(), adapter(more=3000)  # 3 kB and 150 kB


def mount(kind: str, folder: Path, options: str) -> None:
    command = ["mount", "-t", kind, "-o", options, kind, str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 128 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("tmpfs", folder, "size=128k")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_told_and_the_old_file_stays(small_disk: Path, tmp_path: Path) -> None:
    file = write_adapter(small_disk / "a.safetensors", SMALL)
    source = write_adapter(tmp_path / "large.safetensors", LARGE)
    for write in (
        lambda: write_adapter(file, LARGE),
        lambda: verbs.convert(source, file),
        lambda: verbs.convert(source, small_disk / "folder", "peft"),
    ):
        with pytest.raises(B4MError, match="MB left; make room"):
            write()
        assert same(read_adapter(file).layers, SMALL.layers)
        assert list(small_disk.iterdir()) == [file]


def test_a_disk_that_another_program_fills_meanwhile_is_told(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The room is looked at before; here it is gone afterwards."""
    file = write_adapter(small_disk / "a.safetensors", SMALL)
    usage = type("Usage", (), {"free": 1 << 40})
    monkeypatch.setattr("b4m.files.tensors.shutil.disk_usage", lambda _: usage)
    with pytest.raises(B4MError, match=r"cannot be written \(No space left .*what was there stays"):
        write_adapter(file, LARGE)
    assert same(read_adapter(file).layers, SMALL.layers)
    assert list(small_disk.iterdir()) == [file]


def test_a_read_only_disk_is_told_before_the_work(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("tmpfs", folder, "size=128k,ro")
    try:
        with pytest.raises(B4MError, match="read-only"):
            check_output(folder / "a.safetensors", ".safetensors")
        with pytest.raises(B4MError, match="read-only|cannot be written"):
            write_adapter(folder / "new/a.safetensors", SMALL)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_of_hard_links_one_gets_the_new_file_and_the_others_keep_the_old(tmp_path: Path) -> None:
    file = write_adapter(tmp_path / "a.safetensors", SMALL)
    os.link(file, tmp_path / "b.safetensors")
    verbs.convert(file, file, "same", rank=2)
    assert {pair.rank for pair in read_adapter(file).layers.values()} == {2}
    assert same(read_adapter(tmp_path / "b.safetensors").layers, SMALL.layers)


@pytest.mark.filterwarnings("ignore:rank 2 loses")
@pytest.mark.parametrize("there", [True, False])
def test_of_a_symbolic_link_the_file_that_it_points_to_is_written(
    tmp_path: Path, there: bool
) -> None:
    (tmp_path / "store").mkdir()
    target, link = tmp_path / "store/a.safetensors", tmp_path / "link.safetensors"
    if there:
        write_adapter(target, LARGE)
    link.symlink_to(target)
    write_adapter(link, SMALL)
    assert link.is_symlink()
    assert same(read_adapter(target).layers, SMALL.layers)
    verbs.convert(link, link, "same", rank=2)
    assert {pair.rank for pair in read_adapter(target).layers.values()} == {2}


def test_of_links_in_a_ring_one_becomes_the_file(tmp_path: Path) -> None:
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    one.symlink_to(two)
    two.symlink_to(one)
    with pytest.raises(B4MError, match="there is no adapter file"):
        read_adapter(one)
    write_adapter(one, SMALL)
    assert same(read_adapter(one).layers, SMALL.layers)


def test_of_two_writers_and_a_reader_nobody_sees_half_a_file(tmp_path: Path) -> None:
    file, found, stop = tmp_path / "a.safetensors", [], threading.Event()
    write_adapter(file, SMALL)

    def write(which: int) -> None:
        for _ in range(20):
            write_adapter(file, (SMALL, LARGE)[which])

    def read() -> None:
        while not stop.is_set():
            found.append({pair.rank for pair in read_adapter(file).layers.values()})

    writers = [threading.Thread(target=write, args=(which,)) for which in (0, 1)]
    reader = threading.Thread(target=read)
    reader.start()
    for one in writers:
        one.start()
    for one in writers:
        one.join()
    stop.set()
    reader.join()
    whole = [{pair.rank for pair in one.layers.values()} for one in (SMALL, LARGE)]
    assert found
    assert all(ranks in whole for ranks in found)
    assert list(tmp_path.iterdir()) == [file]
