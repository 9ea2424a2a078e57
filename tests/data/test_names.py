"""Names of contents and styles as folders and people write them."""

import string
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from b4m.data.manifest import ManifestRow, read_manifest, training_rows, write_manifest
from b4m.data.names import canonical, check_name, cut_names, cut_pair
from b4m.data.prepare import prepare
from b4m.errors import B4MError
from b4m.methods import training
from tests.data.worlds import drawing

NAMES = (
    "salt, pepper",
    "c++",
    'it\'s "quoted"',
    "50% off",
    "a b",
    "-dash",
    "caf\u00e9",
    "\u732b",
    "semi;colon",
    "\U0001f419",
    "CON",
)
PIECES = st.text(string.ascii_lowercase + "+,'\" -", min_size=1, max_size=6)
CLEAN = PIECES.map(canonical).filter(lambda name: name.strip(", "))


def _folder(source: Path, *names: str) -> Path:
    for kind, name, number in [
        ("style", "ink", 9),
        *(("content", n, k) for k, n in enumerate(names)),
    ]:
        (source / kind / name).mkdir(parents=True)
        drawing("cone", "flat", number).save(source / kind / name / f"{number}.png")
    return source


@pytest.mark.parametrize("name", NAMES)
def test_whatever_a_folder_is_called_it_can_be_chosen(tmp_path: Path, name: str) -> None:
    out = prepare(_folder(tmp_path / "own", name, "other"), tmp_path / "out", name, "ink")
    rows = read_manifest(out)
    assert {row.concept for row in training_rows(rows, "content", name)} == {canonical(name)}
    both = training("joint").rows(rows, "joint", f"{name}+ink")
    assert [row.concept for row in both] == [canonical(name), "ink"]


def test_a_name_in_another_form_of_unicode_is_the_same_name(tmp_path: Path) -> None:
    composed, apart = (unicodedata.normalize(form, "caf\u00e9 \u00fc") for form in ("NFC", "NFD"))
    for number, (on_disk, asked) in enumerate([(apart, composed), (composed, apart)]):
        source = _folder(tmp_path / f"own-{number}", on_disk)
        rows = read_manifest(prepare(source, tmp_path / f"out-{number}", asked, "ink"))
        assert training_rows(rows, "content", asked)[0].concept == composed


@pytest.mark.parametrize(
    ("first", "second"), [("Mug", "mug"), ("caf\u00e9", "cafe\u0301"), ("a", "A")]
)
def test_folders_that_some_systems_take_for_one_are_refused(
    tmp_path: Path, first: str, second: str
) -> None:
    source = _folder(tmp_path / "own", first, second)
    with pytest.raises(B4MError, match="some systems take for one; rename"):
        prepare(source, tmp_path / "out")


@settings(deadline=None)
@given(names=st.lists(CLEAN, min_size=1, max_size=4, unique=True))
def test_names_with_commas_are_found_among_those_there(names: list[str]) -> None:
    for name in names:
        assert cut_names(name, names) == (name,)
    plain = [name for name in names if "," not in name]
    assert cut_names(", ".join(plain), plain) == tuple(plain)


@settings(deadline=None)
@given(
    contents=st.sets(CLEAN, min_size=1, max_size=3), styles=st.sets(CLEAN, min_size=1, max_size=3)
)
def test_a_pair_is_what_its_plus_signs_allow_or_refused(
    contents: set[str], styles: set[str]
) -> None:
    written: dict[str, list[tuple[str, str]]] = {}
    for content in contents:
        for style in styles:
            written.setdefault(f"{content}+{style}", []).append((content, style))
    for pair, meant in written.items():
        if len(meant) == 1:
            assert cut_pair(pair, contents, styles) == meant[0]
        else:
            with pytest.raises(B4MError, match="may be"):
                cut_pair(pair, contents, styles)


def test_an_unknown_pair_is_answered_with_the_known_names() -> None:
    for pair in ("", "+", "mug", "mug+", "+ink", "mug+oil", "ink+mug"):
        with pytest.raises(B4MError, match="contents mug and the styles ink"):
            cut_pair(pair, {"mug"}, {"ink"})


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        ".git",
        "a/b",
        "../a",
        "a\\b",
        "a\nb",
        "a\0",
        "\udcff",
        "x" * 101,
        "\u732b" * 40,
    ],
)
def test_a_name_that_is_no_file_name_is_refused(name: str) -> None:
    with pytest.raises(B4MError, match="here: the name .*; give it another name"):
        check_name(name, "here")


@pytest.mark.parametrize("concept", ["../../out", "a/b", "/etc", ".hidden", "a\\b"])
def test_a_manifest_cannot_lead_out_of_its_folder(tmp_path: Path, concept: str) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    row = ManifestRow("a.png", "content", concept, "a snq x", "snq", "x", "train", "", "")
    write_manifest(tmp_path, [row])
    with pytest.raises(B4MError, match="line 2: concept: the name"):
        read_manifest(tmp_path)
