"""Commands on real files: what they print, where they stop, what they leave."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from b4m import verbs
from b4m.bases import shared_base
from tests.cli.answers import Answer, assert_refused, is_one_sentence, write_adapter


def test_interrupting_ends_with_130(
    b4m: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(files: list[Path]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(verbs, "inspect", interrupted)
    status, printed, errors = b4m("inspect", tmp_path)
    assert (status, printed, errors) == (130, "", "b4m: interrupted\n")


def test_a_place_that_cannot_be_written_ends_with_2(
    b4m: Callable[..., Answer], adapters: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a folder")
    status, _, errors = b4m("merge", *adapters, "--out", tmp_path / "file" / "o.safetensors")
    assert status == 2
    assert is_one_sentence(errors)


@pytest.mark.parametrize("place", ["file/run.log", "folder", "file/a/b.log", f"{'x' * 300}.log"])
def test_a_log_file_that_cannot_be_written_is_told_before_the_work(
    b4m: Callable[..., Answer], adapters: tuple[Path, Path], tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "folder").mkdir()
    out = tmp_path / "merged.safetensors"
    status, printed, errors = b4m("merge", *adapters, "--out", out, "--log-file", tmp_path / place)
    assert (status, printed) == (2, "")
    assert is_one_sentence(errors)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_verbose_and_log_file_say_what_happens_and_leave_the_output_alone(
    b4m: Callable[..., Answer], adapters: tuple[Path, Path], tmp_path: Path
) -> None:
    out, log = tmp_path / "merged.safetensors", tmp_path / "logs/run.log"
    _, quiet, nothing = b4m("merge", *adapters, "--out", out)
    _, printed, errors = b4m("merge", *adapters, "--out", out, "-v", "--log-file", log)
    assert printed == quiet == f"{out}\n"
    assert nothing == ""
    assert str(out) in errors
    assert str(out) in log.read_text(encoding="utf-8")
    assert not logging.getLogger("b4m").handlers
    _, _, detailed = b4m("merge", *adapters, "--out", out, "-vv")
    assert len(detailed) > len(errors)


def test_the_log_of_a_training_tells_a_new_one_from_a_reused_one(
    b4m: Callable[..., Answer],
    tiny_base: Path,
    prepared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("B4M_WORK", str(tmp_path / "work"))
    shared_base.cache_clear()  # a base that is there already is not loaded again
    line = f"train --kind content --data {prepared} --concept teapot --base {tiny_base} --steps 1"
    logs, printed = [], []
    for number in range(2):
        out, log = tmp_path / f"{number}.safetensors", tmp_path / f"{number}.log"
        status, output, errors = b4m(*line.split(), "--out", out, "--log-file", log)
        assert status == 0, errors
        printed.append(output)
        logs.append(log.read_text(encoding="utf-8"))
    assert printed == [f"{tmp_path / '0.safetensors'}\n", f"{tmp_path / '1.safetensors'}\n"]
    for words in ("base ", "0 of 1 are in the cache", "training lora/teapot/s0"):
        assert words in logs[0]
    assert "is reused" in logs[1]
    assert "in the cache" not in logs[1]


def test_prepare_prints_where_it_wrote(
    b4m: Callable[..., Answer], images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "prepared"
    status, printed, errors = b4m(
        "prepare", images, "--content", "cat", "--style", "ink", "--out", out
    )
    assert status == 0, errors
    assert printed.strip() == str(out)
    assert (out / "manifest.csv").is_file()


def test_a_truncated_image_is_refused(
    b4m: Callable[..., Answer], images: Path, tmp_path: Path
) -> None:
    broken = images / "content/cat/0.png"
    broken.write_bytes(broken.read_bytes()[:-200])
    out = tmp_path / "prepared"
    assert_refused(b4m("prepare", images, "--out", out), out, str(broken))


def test_an_empty_folder_is_refused(
    b4m: Callable[..., Answer], images: Path, tmp_path: Path
) -> None:
    for file in (images / "content/cat").iterdir():
        file.unlink()
    out = tmp_path / "prepared"
    assert_refused(b4m("prepare", images, "--out", out), out, "cat")


def test_a_source_that_is_not_there_is_refused(b4m: Callable[..., Answer], tmp_path: Path) -> None:
    out = tmp_path / "prepared"
    assert_refused(b4m("prepare", tmp_path / "nowhere", "--out", out), out, "nowhere")


def test_a_caption_without_the_trigger_is_refused(
    b4m: Callable[..., Answer], images: Path, tmp_path: Path
) -> None:
    (images / "content/cat/0.txt").write_text("a cat on a mat")
    out = tmp_path / "prepared"
    assert_refused(b4m("prepare", images, "--out", out), out, "0.txt", "snq")


def test_a_file_with_nan_is_refused(b4m: Callable[..., Answer], tmp_path: Path) -> None:
    good = write_adapter(tmp_path / "good.safetensors")
    bad = write_adapter(tmp_path / "bad.safetensors", value=float("nan"))
    out = tmp_path / "merged.safetensors"
    assert_refused(b4m("merge", good, bad, "--out", out), out, "bad.safetensors")


def test_a_truncated_adapter_is_refused(b4m: Callable[..., Answer], tmp_path: Path) -> None:
    good = write_adapter(tmp_path / "good.safetensors")
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(good.read_bytes()[:-100])
    out = tmp_path / "merged.safetensors"
    assert_refused(b4m("merge", good, bad, "--out", out), out, "bad.safetensors")


def test_an_adapter_for_another_base_is_refused(
    b4m: Callable[..., Answer], tiny_base: Path, tmp_path: Path
) -> None:
    foreign = write_adapter(tmp_path / "foreign.safetensors", base_id="other", base_hash="0" * 64)
    out = tmp_path / "samples"
    answer = b4m(
        "sample", "--adapter", foreign, "--prompt", "a cat", "--base", tiny_base, "--out", out
    )
    assert_refused(answer, out, "base")
