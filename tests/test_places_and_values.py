"""Wrong places, seeds and names are told before a base is loaded, and leave nothing behind."""

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from b4m import verbs
from b4m.cli import main
from b4m.data.prepare import prepare
from b4m.errors import B4MError
from b4m.methods import merge_rule
from b4m.settings import resolve
from b4m.tracking import open_tracker
from b4m.verbs.compare import compare
from tests.data.worlds import write_user_folder

NO_BASE = "nowhere"  # loading it would be another error


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("B4M_WORK", str(tmp_path / "work"))
    monkeypatch.setenv("B4M_TRACKING", "off")


def _folder(path: Path) -> Path:
    path.mkdir()
    (path / "thesis.txt").write_text("words")
    return path


def _below_a_file(path: Path) -> Path:
    path.write_text("words")
    return path / "out.safetensors"


VERBS: dict[str, Callable[[Path, Path], object]] = {
    "train": lambda out, data: verbs.train("content", data, "teapot", out, base=NO_BASE),
    "merge": lambda out, data: verbs.merge(["a.safetensors", "b.safetensors"], out),
    "convert": lambda out, data: verbs.convert("a.safetensors", out),
    "clean": lambda out, data: verbs.clean("a.safetensors", out),
    "extract": lambda out, data: verbs.extract("a.safetensors", "b.safetensors", out),
    "sample": lambda out, data: verbs.sample(out, data=data, base=NO_BASE),
    "evaluate": lambda out, data: verbs.evaluate(["samples"], data, out),
    "report": lambda out, data: verbs.report(["samples"], "scores", data, out),
    "prepare": lambda out, data: verbs.prepare(data, out),
    "compare": lambda out, data: compare(data, out, ["teapot"], ["stripes"], base=NO_BASE),
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_refuses_a_place_below_a_file_before_the_work(
    prepared: Path, tmp_path: Path, verb: str
) -> None:
    out = _below_a_file(tmp_path / "file")
    with pytest.raises(B4MError, match="is not a folder; give another place"):
        VERBS[verb](out, prepared)
    assert (tmp_path / "file").read_text() == "words"


@pytest.mark.parametrize("verb", ["train", "merge", "convert", "clean", "extract"])
@pytest.mark.parametrize("name", ["mug", "mug.ckpt", "x.SAFETENSORS", "mug.pt", "mug."])
def test_an_adapter_is_written_only_under_a_name_that_readers_take(
    prepared: Path, tmp_path: Path, verb: str, name: str
) -> None:
    with pytest.raises(B4MError, match=r"does not end in \.safetensors"):
        VERBS[verb](tmp_path / name, prepared)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", ["sample", "prepare", "compare"])
def test_a_folder_with_other_things_is_refused_before_the_work(
    prepared: Path, tmp_path: Path, verb: str
) -> None:
    out = _folder(tmp_path / "thesis")
    with pytest.raises(B4MError, match="holds|exists"):
        VERBS[verb](out, prepared)
    assert (out / "thesis.txt").read_text() == "words"


def test_a_source_is_never_replaced_by_what_is_prepared_of_it(tmp_path: Path) -> None:
    source = write_user_folder(tmp_path / "own")
    before = sorted(source.rglob("*"))
    (tmp_path / "manifest.csv").write_text("name,price\nteapot,3\n")
    for out in (source, tmp_path):
        with pytest.raises(B4MError, match="give another place to write to"):
            prepare(source, out, "teapot", "stripes")
    again = prepare(source, tmp_path / "out", "teapot", "stripes")
    (tmp_path / "link").symlink_to(again)
    with pytest.raises(B4MError):
        prepare(again, tmp_path / "link", "teapot", "stripes")
    assert sorted(source.rglob("*")) == before
    assert (again / "manifest.csv").is_file()


@pytest.mark.parametrize("seed", [[], [-1], [2**64], [2**70, 1], [0, 0], [3, 1, 3]])
def test_seeds_without_an_image_of_their_own_are_one_sentence(
    prepared: Path, tmp_path: Path, seed: list[int]
) -> None:
    with pytest.raises(B4MError, match="seed"):
        verbs.sample(tmp_path / "out", data=prepared, seed=seed, base=NO_BASE)
    if seed:  # a comparison without seeds of its own takes two, or its preset's
        with pytest.raises(B4MError, match="seed"):
            compare(prepared, tmp_path / "c", ["teapot"], ["stripes"], seed=seed, base=NO_BASE)
    assert list(tmp_path.iterdir()) == []


def test_a_prompt_given_twice_is_told_before_its_images_count_twice(tmp_path: Path) -> None:
    with pytest.raises(B4MError, match="prompt 'a cat' is given twice"):
        verbs.sample(tmp_path / "out", prompt=["a cat", "a dog", "a cat"], base=NO_BASE)


@pytest.mark.parametrize(
    ("method", "name", "value"),
    [
        ("dare", "seed", 2**64),
        ("dare", "seed", "18446744073709551616"),
        ("dare", "seed", -1),
        ("direct", "rank", -1),
        ("svd", "rank", "-1"),
        ("direct", "weights", "nan, 1"),
        ("direct", "weights", [1, float("inf")]),
        ("dare", "density", "1e400"),
    ],
)
def test_a_merge_with_a_value_out_of_range_names_the_setting(
    tmp_path: Path, method: str, name: str, value: object
) -> None:
    with pytest.raises(B4MError, match=f"setting {name}="):
        verbs.merge(["a", "b"], tmp_path / "m.safetensors", method, settings={name: value})
    assert resolve(merge_rule("dare").settings, {"seed": 2**64 - 1}, method="dare")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", -1),
        ("lr", "nan"),
        ("lr", "inf"),
        ("lr", "-inf"),
        ("weight_decay", "nan"),
        ("weight_decay", -0.1),
        ("ema_decay", "nan"),
        ("rank", 0),
        ("rank", 1.5),
        ("steps", "ten"),
        ("clip", float("nan")),
        ("text_lr", "-1e-4"),
        ("batch_size", ""),
    ],
)
def test_a_training_with_a_value_out_of_range_names_the_setting(
    prepared: Path, tmp_path: Path, name: str, value: object
) -> None:
    out = tmp_path / "a.safetensors"
    with pytest.raises(B4MError, match=f"setting {name}="):
        verbs.train("content", prepared, "teapot", out, base=NO_BASE, settings={name: value})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a%20b", "a%b", "a?b", "a#b", "a b", "\u732b", "50%", "%2F"])
def test_runs_are_kept_below_the_working_folder_whatever_it_is_called(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from b4m.tracking import tracking_uri

    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    import sqlalchemy

    (tmp_path / name / "runs").mkdir()
    engine = sqlalchemy.create_engine(tracking_uri())
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text("create table t (x int)"))
    assert (tmp_path / name / "runs/mlflow.db").stat().st_size > 0
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_run_in_a_folder_with_a_percent_sign_is_recorded_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a%20b").mkdir()
    monkeypatch.chdir(tmp_path / "a%20b")
    for variable in ("B4M_TRACKING", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(variable, raising=False)
    with open_tracker("x") as run:
        assert run.run_id
    assert (tmp_path / "a%20b/runs/mlflow.db").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["a%20b"]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize("name", ["\u732b", "caf\u00e9", "\U0001f419", "\udcff"])
def test_a_path_that_the_terminal_cannot_show_is_printed_escaped(
    tmp_path: Path, name: str, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = write_user_folder(tmp_path / "own"), tmp_path / name
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    monkeypatch.setattr(sys, "stdout", stream)
    arguments = ["--content", "teapot", "--style", "stripes", "--out", str(out)]
    assert main(["prepare", str(source), *arguments]) == 0
    shown = name.encode(encoding, "backslashreplace")
    assert shown in stream.buffer.getvalue()  # type: ignore[attr-defined]


def test_a_file_whose_name_is_no_text_is_prepared_and_recorded_escaped(tmp_path: Path) -> None:
    source = write_user_folder(tmp_path / "own")
    image = Image.new("RGB", (8, 8), "red")
    image.save(tmp_path / "own/content/teapot" / "caf\udce9.png")
    out = prepare(source, tmp_path / "out", "teapot", "stripes")
    assert "caf\\xe9.png" in (out / "manifest.csv").read_text(encoding="utf-8")
