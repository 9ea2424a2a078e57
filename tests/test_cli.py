"""The command line says what the library says, and bad input costs one sentence."""

import inspect
import shlex
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from b4m import cli, verbs

Answer = tuple[int, str, str]
NAME = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture
def b4m(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Run a command; gives the exit status, the output and the errors."""

    def call(*arguments: object) -> Answer:
        capsys.readouterr()
        try:
            status = cli.main([str(argument) for argument in arguments])
        except SystemExit as ended:
            status = int(ended.code or 0)
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return call


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A user's folder with one content and one style."""
    folder = tmp_path / "pictures"
    for kind, concept in (("content", "cat"), ("style", "ink")):
        (folder / kind / concept).mkdir(parents=True)
        for number in range(2):
            image = Image.effect_noise((48, 48), 40 + number).convert("RGB")
            image.save(folder / kind / concept / f"{number}.png")
    return folder


def _refused(answer: Answer, out: Path, *words: str) -> None:
    """One sentence with these words, status 2, and nothing written."""
    status, printed, errors = answer
    assert status == 2, printed + errors
    assert errors.startswith("b4m: ")
    assert len(errors.strip().splitlines()) == 1, errors
    assert not [word for word in words if word not in errors], errors
    assert not list(out.parent.glob(f"*{out.stem}*")), "something was left behind"


@pytest.mark.parametrize("name", cli.VERBS)
def test_every_argument_of_a_verb_is_explained(name: str) -> None:
    verb = getattr(verbs, name)
    explained = cli.argument_help(verb)
    assert set(inspect.signature(verb).parameters) - {"settings"} <= set(explained)
    assert all(explained.values())


@pytest.mark.parametrize("name", cli.VERBS)
def test_help_shows_an_example_that_parses(name: str, b4m: Callable[..., Answer]) -> None:
    status, shown, _ = b4m(name, "--help")
    assert status == 0
    for example in cli.EXAMPLES[name]:
        program, *arguments = shlex.split(example)
        assert program == "b4m"
        assert arguments[1] in shown
        parsed, call = cli.parse(arguments)
        assert parsed == name
        inspect.signature(getattr(verbs, name)).bind(**call)


@pytest.mark.parametrize("name", cli.SETTINGS)
def test_every_setting_is_a_flag(name: str, b4m: Callable[..., Answer]) -> None:
    _, shown, _ = b4m(name, "--help")
    flags = [f"--{field.name.replace('_', '-')}" for field in fields(cli.SETTINGS[name])]
    assert [flag for flag in flags if flag not in shown] == []


def test_a_setting_can_be_given_as_a_flag_or_as_a_pair() -> None:
    given = "train --kind content --data d --concept c --out o --rank 4 --set lr-other=0.5".split()
    _, call = cli.parse(given)
    assert call["settings"] == {"rank": "4", "lr_other": "0.5"}


def test_what_is_not_given_is_left_to_the_verb() -> None:
    _, call = cli.parse(["sample", "--out", "x", "--seed", "1", "2", "--seed", "3"])
    assert call == {"out": Path("x"), "seed": [1, 2, 3]}


def test_interrupting_ends_with_130(
    b4m: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(file: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(verbs, "inspect", interrupted)
    monkeypatch.setattr(cli, "_add_arguments", lambda command, *_: command.add_argument("file"))
    assert b4m("inspect", tmp_path)[0] == 130


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


def test_a_truncated_picture_is_refused(
    b4m: Callable[..., Answer], images: Path, tmp_path: Path
) -> None:
    broken = images / "content/cat/0.png"
    broken.write_bytes(broken.read_bytes()[:-200])
    out = tmp_path / "prepared"
    _refused(b4m("prepare", images, "--out", out), out, str(broken))


def test_an_empty_folder_is_refused(
    b4m: Callable[..., Answer], images: Path, tmp_path: Path
) -> None:
    for file in (images / "content/cat").iterdir():
        file.unlink()
    out = tmp_path / "prepared"
    _refused(b4m("prepare", images, "--out", out), out, "cat")


def test_a_source_that_is_not_there_is_refused(b4m: Callable[..., Answer], tmp_path: Path) -> None:
    out = tmp_path / "prepared"
    _refused(b4m("prepare", tmp_path / "nowhere", "--out", out), out, "nowhere")


def test_a_caption_without_the_trigger_is_refused(
    b4m: Callable[..., Answer], images: Path, tmp_path: Path
) -> None:
    (images / "content/cat/0.txt").write_text("a cat on a mat")
    out = tmp_path / "prepared"
    _refused(b4m("prepare", images, "--out", out), out, "0.txt", "snq")


def _adapter(file: Path, value: float = 0.1, **metadata: str) -> Path:
    """One layer in the key style of diffusers."""
    prefix = f"unet.{NAME}.lora"
    down, up = torch.full((2, 64), value), torch.full((64, 2), 0.1)
    tensors = {f"{prefix}.down.weight": down, f"{prefix}.up.weight": up}
    save_file(tensors, file, metadata={f"b4m.{key}": text for key, text in metadata.items()})
    return file


def test_a_file_with_nan_is_refused(b4m: Callable[..., Answer], tmp_path: Path) -> None:
    good = _adapter(tmp_path / "good.safetensors")
    bad = _adapter(tmp_path / "bad.safetensors", value=float("nan"))
    out = tmp_path / "merged.safetensors"
    _refused(b4m("merge", good, bad, "--out", out), out, "bad.safetensors")


def test_a_truncated_adapter_is_refused(b4m: Callable[..., Answer], tmp_path: Path) -> None:
    good = _adapter(tmp_path / "good.safetensors")
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(good.read_bytes()[:-100])
    out = tmp_path / "merged.safetensors"
    _refused(b4m("merge", good, bad, "--out", out), out, "bad.safetensors")


def test_an_unknown_method_is_refused(b4m: Callable[..., Answer], tmp_path: Path) -> None:
    good = _adapter(tmp_path / "good.safetensors")
    out = tmp_path / "merged.safetensors"
    _refused(b4m("merge", good, good, "--method", "magic", "--out", out), out, "magic", "direct")


def test_an_unknown_setting_is_refused(b4m: Callable[..., Answer], tmp_path: Path) -> None:
    good = _adapter(tmp_path / "good.safetensors")
    out = tmp_path / "merged.safetensors"
    _refused(b4m("merge", good, good, "--set", "wieght=1", "--out", out), out, "wieght")


def test_an_adapter_for_another_base_is_refused(
    b4m: Callable[..., Answer], tiny_base: Path, tmp_path: Path
) -> None:
    foreign = _adapter(tmp_path / "foreign.safetensors", base_id="other", base_hash="0" * 64)
    out = tmp_path / "drawn"
    answer = b4m(
        "sample", "--adapter", foreign, "--prompt", "a cat", "--base", tiny_base, "--out", out
    )
    _refused(answer, out, "base")
