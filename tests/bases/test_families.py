"""Names tell families apart, in any order and any tool's writing; filters keep whole elements."""

import sys
from collections.abc import Callable, Iterator
from itertools import accumulate
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import b4m.bases
from b4m.adapters.lowrank import LowRank
from b4m.bases import family_of
from b4m.bases.family import Family
from b4m.bases.named import UNKNOWN
from b4m.bases.recognition import recognise
from b4m.bases.sdxl.blocks import BLORA, sdxl_linear_shapes
from b4m.bases.sdxl.family import FAMILY as SDXL
from b4m.errors import B4MError
from b4m.files import keys
from tests.toy_dit.family import FAMILY as TOY
from tests.toy_dit.family import LINEARS, ToyFamily


class Twin(ToyFamily):
    """Another maker's transformer whose linears have the same names."""

    name = "twin"
    title = "Twin"
    pipelines = ("TwinPipeline",)

    def role_of(self, module: str) -> str:
        return ""


TWIN = Twin()
NAMES = {
    "sdxl": list(sdxl_linear_shapes()),
    "toy-dit": [f"transformer_blocks.{k}.{linear}" for k in range(24) for linear in LINEARS],
}
TEXT = [
    f"text_model.encoder.layers.{k}.{linear}"
    for k in range(12)
    for linear in ("self_attn.q_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2")
]
PARTS = {
    "diffusers": keys.diffusers_names,
    "kohya": lambda family, *address: keys.kohya_names(family.kohya_stem(*address)),
    "peft": lambda family, network, module: keys.peft_names(f"base_model.model.{module}"),
}
SIZE = (4, 4)  # of no published base


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "twin.family", SimpleNamespace(FAMILY=TWIN))
        registered = {**b4m.bases.FAMILIES, "toy-dit": "tests.toy_dit", "twin": "twin"}
        patch.setattr(b4m.bases, "FAMILIES", registered)
        yield


def layers_of(family: str) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(NAMES[family]), min_size=1, max_size=20, unique=True)


layers = st.sampled_from([SDXL, TOY]).flatmap(
    lambda family: st.tuples(st.just(family), layers_of(family.name))
)


def of(names: list[str], declared: str = "") -> Family | None:
    return family_of(dict.fromkeys(names, LowRank.zero(*SIZE)), declared)


def parts_of(name: str) -> list[str]:
    """Every run of whole elements of a dotted path."""
    elements = name.split(".")
    return [part for i in range(len(elements)) for part in accumulate(elements[i:], "{}.{}".format)]


# What a block filter keeps


@given(layers, st.data())
def test_a_filter_keeps_the_names_that_hold_its_part_in_their_order(
    drawn: tuple[Family, list[str]], data: st.DataObject
) -> None:
    family, names = drawn
    part = data.draw(st.sampled_from(names).map(parts_of).flatmap(st.sampled_from))
    kept = family.select(names, part)
    assert kept == [name for name in names if part in parts_of(name)]
    assert family.select(kept, part) == kept


@given(layers, st.data())
def test_terms_add_up_whatever_their_order(
    drawn: tuple[Family, list[str]], data: st.DataObject
) -> None:
    family, names = drawn
    parts = st.sampled_from(names).map(parts_of).flatmap(st.sampled_from)
    terms = data.draw(st.lists(parts, min_size=1, max_size=4))
    each = {name for term in terms for name in family.select(names, term)}
    for order in (terms, terms[::-1]):
        assert family.select(names, " , ".join(order)) == [n for n in names if n in each]


@given(layers)
def test_everything_is_kept_by_all_and_by_no_filter_and_roles_share_it(
    drawn: tuple[Family, list[str]],
) -> None:
    family, names = drawn
    assert family.select(names, "") == family.select(names, "all") == names
    roles = {family.role_of(name) for name in names}
    assert roles <= {"content", "style"}
    shares = [family.select(names, role) for role in sorted(roles)]
    assert sorted(name for share in shares for name in share) == sorted(names)


@given(layers, st.text("abcdefgh_", min_size=1, max_size=6), st.booleans())
def test_a_term_that_keeps_nothing_is_refused_also_beside_one_that_keeps_all(
    drawn: tuple[Family, list[str]], ending: str, beside: bool
) -> None:
    family, names = drawn
    term = f"{names[0].split('.')[0]}x{ending}"  # begins like an element, is none
    with pytest.raises(B4MError, match=f"block filter '{term}' keeps none of {len(names)} layers"):
        family.select(names, f"all,{term}" if beside else term)


def test_named_groups_are_known_to_their_family_alone() -> None:
    for kind, group in BLORA.items():
        kept = SDXL.select(NAMES["sdxl"], f"blora-{kind}")
        assert kept == [name for name in NAMES["sdxl"] if name.startswith(f"{group}.")] != []
    with pytest.raises(B4MError, match="give all, content, style or a part"):
        TOY.select(NAMES["toy-dit"], "blora-content")
    with pytest.raises(B4MError, match="give all or a part"):  # it has no roles either
        TWIN.select(NAMES["toy-dit"], "content")


# Which family an adapter's layers are of


@given(layers)
def test_any_layers_of_a_family_tell_it(drawn: tuple[Family, list[str]]) -> None:
    family, names = drawn
    assert of(names) is family
    assert of(names, family.name) is family
    assert of(names, "a family of later times") is family


@given(layers_of("sdxl"), layers_of("toy-dit"), st.randoms(use_true_random=False))
def test_the_majority_of_the_layers_tells(first: list[str], second: list[str], rng: object) -> None:
    mixed = [*first, *second]
    rng.shuffle(mixed)  # type: ignore[attr-defined]
    expected = SDXL if len(first) >= len(second) else TOY
    assert of(mixed) is expected
    if len(first) == len(second):
        assert of(mixed, "toy-dit") is TOY


@given(layers_of("toy-dit"))
def test_where_names_do_not_tell_the_declared_family_counts(names: list[str]) -> None:
    assert of(names) is TOY  # registered first
    assert of(names, "twin") is TWIN
    assert of(names, "sdxl") is TOY


@given(st.lists(st.text("abc.", max_size=8)))
def test_layers_of_no_family_are_of_none(names: list[str]) -> None:
    expected = UNKNOWN if names else None
    assert of(names) is expected
    assert of(names, "toy-dit") is expected


# Which family a file's names are of


@pytest.mark.parametrize("form", PARTS)
@given(drawn=layers, text=st.lists(st.sampled_from(TEXT), max_size=3), data=st.data())
def test_a_file_of_any_tool_is_recognised_and_its_names_mean_what_was_written(
    form: str, drawn: tuple[Family, list[str]], text: list[str], data: st.DataObject
) -> None:
    family, modules = drawn
    addresses = [(family.denoiser, module) for module in modules]
    if form != "peft":
        addresses += [(network, one) for one in text for network in family.networks[1:]]
    name_of: Callable[..., tuple[str, ...]] = PARTS[form]
    meaning = {
        name: (*address, part)
        for address in addresses
        for name, part in zip(name_of(family, *address), ("down", "up", "alpha"), strict=False)
    }
    names = data.draw(st.permutations(sorted(meaning)))
    parsed = {name: keys.parse(name) for name in names}
    stems = {key.stem: SIZE for key in parsed.values() if key is not None}
    assert recognise(stems)[0] is family
    for name, key in parsed.items():
        assert key is not None
        network, module, _ = family.address(key.stem) or ("", "", "")
        assert (network, module, key.part) == meaning[name]


@given(layers_of("toy-dit"))
def test_a_file_whose_names_two_families_know_is_of_the_declared_one(modules: list[str]) -> None:
    stems = {f"transformer.{module}": SIZE for module in modules}
    assert recognise(stems)[:2] == [TOY, TWIN]
    assert recognise(stems, "twin")[:2] == [TWIN, TOY]


@given(st.sets(st.text("abc._", min_size=1, max_size=8)))
def test_a_file_of_no_family_is_of_an_unknown_one(stems: set[str]) -> None:
    assert recognise(dict.fromkeys(stems, SIZE)) == [UNKNOWN]
