"""The verbs on files: what is reused, what is refused, how adapters act together."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from b4m import verbs
from b4m.errors import B4MError

FAST = {"steps": 2, "rank": 4, "batch_size": 1, "accumulation": 1}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: one picture of a cat, two in ink."""
    folder = tmp_path_factory.mktemp("own")
    for name, colour in (
        ("content/cat/0", "orange"),
        ("style/ink/0", "black"),
        ("style/ink/1", "navy"),
    ):
        image = Image.new("RGB", (48, 48), "white")
        ImageDraw.Draw(image).ellipse((8, 8, 40, 36), fill=colour)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def made(
    images: Path, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Prepared data and a plain adapter of each side."""
    folder = tmp_path_factory.mktemp("made")
    patch = pytest.MonkeyPatch()
    patch.setenv("B4M_WORK", str(folder / "work"))
    patch.setenv("B4M_TRACKING", "off")
    data = verbs.prepare(images, folder / "data", "cat", "ink")
    files = {
        kind: verbs.train(
            kind, data, name, folder / f"{kind}.safetensors", base=str(tiny_base), settings=FAST
        )
        for kind, name in (("content", "cat"), ("style", "ink"))
    }
    patch.undo()
    return {"data": data, "work": folder / "work", **files}


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, made: dict[str, Path]) -> None:
    monkeypatch.setenv("B4M_WORK", str(made["work"]))
    monkeypatch.setenv("B4M_TRACKING", "off")


def _cached(made: dict[str, Path]) -> set[str]:
    return {file.name for file in (made["work"] / "adapters").glob("*.safetensors")}


def test_an_adapter_is_trained_once_and_another_setting_makes_another(
    made: dict[str, Path], tiny_base: Path, tmp_path: Path
) -> None:
    before = _cached(made)
    again = verbs.train(
        "content",
        made["data"],
        "cat",
        tmp_path / "again.safetensors",
        base=str(tiny_base),
        settings=FAST,
    )
    assert _cached(made) == before
    assert again.read_bytes() == made["content"].read_bytes()
    other = verbs.train(
        "content",
        made["data"],
        "cat",
        tmp_path / "other.safetensors",
        base=str(tiny_base),
        settings={**FAST, "seed": 1},
    )
    assert len(_cached(made)) == len(before) + 1
    assert other.read_bytes() != again.read_bytes()


def test_a_new_style_does_not_train_the_content_anew(made: dict[str, Path], tmp_path: Path) -> None:
    from b4m.data.manifest import data_hash, read_manifest
    from b4m.methods import training

    rows = read_manifest(made["data"])
    fewer = [row for row in rows if row.kind != "style"]
    both = [
        data_hash(made["data"], training("lora").rows(part, "content", "cat"))
        for part in (rows, fewer)
    ]
    assert both[0] == both[1]
    joint = training("joint").rows(rows, "joint", "cat+ink")
    assert {row.file for row in joint} == {row.file for row in rows if row.role == "train"}


def test_two_adapters_together_draw_what_their_direct_merge_draws(
    made: dict[str, Path], tiny_base: Path, tmp_path: Path
) -> None:
    merged = verbs.merge(
        [made["content"], made["style"]], tmp_path / "m.safetensors", "direct", str(tiny_base)
    )
    drawn = []
    for number, files in enumerate(([merged], [made["content"], made["style"]])):
        folder = verbs.sample(
            tmp_path / str(number), files, made["data"], base=str(tiny_base), settings={"steps": 2}
        )
        (image,) = sorted((folder / "images").glob("*.png"))
        drawn.append(np.asarray(Image.open(image), dtype=int))
    assert abs(drawn[0] - drawn[1]).max() <= 1


def test_klora_draws_and_has_no_file(
    made: dict[str, Path], tiny_base: Path, tmp_path: Path
) -> None:
    pair = [made["content"], made["style"]]
    with pytest.raises(B4MError, match="has no file"):
        verbs.merge(pair, tmp_path / "k.safetensors", "klora", str(tiny_base))
    folder = verbs.sample(
        tmp_path / "k",
        pair,
        made["data"],
        combine="klora",
        base=str(tiny_base),
        settings={"steps": 2},
    )
    assert "klora" in (folder / "samples.csv").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "shape"}, "unknown kind"),
        ({"method": "joint"}, "does not go with"),
        ({"method": "magic"}, "unknown way of training 'magic'"),
        ({"settings": {"stepz": 3}}, "no setting 'stepz'; the nearest is steps"),
        ({"concept": "dog"}, "dog"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence_and_leaves_nothing(
    made: dict[str, Path], tiny_base: Path, tmp_path: Path, arguments: dict, message: str
) -> None:
    call = {
        "kind": "content",
        "data": made["data"],
        "concept": "cat",
        "method": "lora",
        "base": str(tiny_base),
        "settings": FAST,
        "out": tmp_path / "x.safetensors",
    }
    with pytest.raises(B4MError, match=message):
        verbs.train(**{**call, **arguments})
    assert list(tmp_path.iterdir()) == []


def test_a_picture_of_an_unmade_base_is_refused_before_anything_is_written(
    made: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(B4MError, match="nowhere"):
        verbs.sample(tmp_path / "out", data=made["data"], base=str(tmp_path / "nowhere"))
    assert not (tmp_path / "out").exists()
