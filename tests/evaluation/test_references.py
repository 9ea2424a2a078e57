"""What is compared with what: references, ground truth, prompts without triggers, samples."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from b4m.data.manifest import read_manifest, write_manifest
from b4m.errors import B4MError
from b4m.evaluation.references import Concept, plain_prompt, read_prepared
from b4m.evaluation.samples import read_samples
from tests.evaluation.world import draw, prepare, sample

OCTOPUS = Concept("content", "octopus", "train", (), (), "snq", "animal")
COMIC = Concept("style", "openmoji", "train", (), (), "w@z", "")


@pytest.mark.parametrize(
    ("prompt", "plain"),
    [
        ("a snq animal in w@z style", "an animal in openmoji style"),
        ("a snq in w@z style", "an animal in openmoji style"),
        ("A photo of two snq animal, at night", "A photo of two animal, at night"),
        ("an octopus in flat style", "an octopus in flat style"),
        ("a snqs w@zz", "a snqs w@zz"),
    ],
)
def test_triggers_become_what_they_stand_for(prompt: str, plain: str) -> None:
    prompt = prompt.replace("animal,", "animal ,")
    assert plain_prompt(prompt, (OCTOPUS, COMIC), {}) == plain.replace("animal,", "animal ,")


def test_the_encoders_own_words_go_before_class_words() -> None:
    words = {"octopus": "octopus", "openmoji": "outlined comic"}
    plain = plain_prompt("a snq animal in w@z style", (OCTOPUS, COMIC), words)
    assert plain == "an octopus in outlined comic style"


def test_held_back_images_are_the_references(tmp_path: Path) -> None:
    prepared = read_prepared(prepare(tmp_path / "data", ["fish"], ["outlined"]))
    fish, outlined = prepared.concept("content", "fish"), prepared.concept("style", "")
    assert (fish.role, len(fish.references), len(fish.trained)) == ("reference", 2, 1)
    assert (outlined.name, len(outlined.references), len(outlined.trained)) == ("outlined", 2, 3)
    assert not set(fish.references) & set(fish.trained)
    assert ("style", "partner style") not in prepared.concepts
    assert prepared.ground_truths["fish", "outlined"].alignment == "exact"


@pytest.mark.parametrize("style", ["outlined", "x+outlined"])
@pytest.mark.parametrize("content", ["fish", "c+fish", "fish+"])
def test_a_ground_truth_is_found_whatever_plus_signs_its_names_have(
    tmp_path: Path, content: str, style: str
) -> None:
    folder = prepare(tmp_path / "data", ["fish"], ["outlined"])
    names = {"fish": content, "outlined": style, "fish+outlined": f"{content}+{style}"}
    rows = [
        replace(row, concept=names.get(row.concept, row.concept)) for row in read_manifest(folder)
    ]
    write_manifest(folder, rows)
    assert list(read_prepared(folder).ground_truths) == [(content, style)]


def test_training_images_serve_where_nothing_was_held_back(tmp_path: Path) -> None:
    folder = prepare(tmp_path / "data", ["fish"], ["outlined"])
    rows = read_manifest(folder)
    write_manifest(folder, [row for row in rows if row.role != "reference"])
    fish = read_prepared(folder).concept("content", "fish")
    assert fish.role == "train"
    assert fish.references == fish.trained


def test_an_unknown_concept_is_named_with_those_there_are(tmp_path: Path) -> None:
    prepared = read_prepared(prepare(tmp_path / "data", ["fish", "house"], ["outlined"]))
    with pytest.raises(B4MError, match="no content 'whale' .* it has: fish, house"):
        prepared.concept("content", "whale")
    with pytest.raises(B4MError, match="no content ''"):
        prepared.concept("content", "")


def test_a_damaged_samples_folder_is_one_sentence(tmp_path: Path) -> None:
    folder = sample(tmp_path / "b4m", "b4m", [("fish", "outlined")])
    with pytest.raises(B4MError, match="no samples folder"):
        read_samples([])
    with pytest.raises(B4MError, match=r"no samples\.csv"):
        read_samples([tmp_path])
    with pytest.raises(B4MError, match="same label 'b4m'"):
        read_samples([folder, folder])
    (folder / "images" / "001.png").unlink()
    with pytest.raises(B4MError, match="line 3: the image 'images/001.png' is missing"):
        read_samples([folder])
    draw("fish", "flat").save(folder / "images" / "001.png")
    table = folder / "samples.csv"
    rows = list(csv.reader(table.open()))
    rows[2][rows[0].index("seed")] = "many"
    csv.writer(table.open("w")).writerows(rows)
    with pytest.raises(B4MError, match="line 3: seed, steps and guidance must be numbers"):
        read_samples([folder])
    csv.writer(table.open("w")).writerows([row[2:] for row in rows])
    with pytest.raises(B4MError, match="lacks the columns file, label"):
        read_samples([folder])
