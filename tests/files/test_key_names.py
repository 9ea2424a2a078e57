"""Names of layers survive every tool's form, and a name that is none of them is never guessed."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from key_styles import STYLES

from b4m.adapters.adapter import Adapter
from b4m.adapters.lowrank import LowRank
from b4m.bases.sdxl.blocks import GROUPS, sdxl_linear_shapes
from b4m.bases.sdxl.family import FAMILY
from b4m.files import keys, read_adapter, write_adapter

ATTENTION = list(sdxl_linear_shapes())
OTHERS = [
    f"{group.name}.{inner}"
    for group in GROUPS.values()
    for inner in (
        "proj_in",
        "proj_out",
        *(f"transformer_blocks.{k}.ff.net.0.proj" for k in range(group.depth)),
        *(f"transformer_blocks.{k}.ff.net.2" for k in range(group.depth)),
    )
]
TEXT = [
    f"text_model.encoder.layers.{layer}.{inner}"
    for layer in range(12)
    for inner in (
        *(f"self_attn.{part}_proj" for part in ("q", "k", "v", "out")),
        "mlp.fc1",
        "mlp.fc2",
    )
]
MODULES = st.sampled_from([*ATTENTION, *OTHERS])


@st.composite
def adapters(draw: st.DrawFn, text: bool) -> Adapter:
    """A few layers anywhere, of ranks of their own."""

    def pair(number: int) -> LowRank:
        rank = draw(st.integers(1, 4))
        generator = torch.Generator().manual_seed(number)
        up = torch.randn(3, rank, generator=generator)
        return LowRank(up, torch.randn(rank, 5, generator=generator))

    names = draw(st.lists(MODULES, min_size=1, max_size=4, unique=True))
    networks = st.sampled_from(FAMILY.networks[1:])
    words = st.tuples(networks, st.sampled_from(TEXT)).map(".".join)
    more = draw(st.lists(words, max_size=3, unique=True)) if text else []
    return Adapter(
        {name: pair(number) for number, name in enumerate(names)},
        text_layers={name: pair(100 + number) for number, name in enumerate(more)},
    )


def assert_round_trip(adapter: Adapter, form: str, file: Path) -> None:
    again = read_adapter(write_adapter(file, adapter, form))
    assert again.layers.keys() == adapter.layers.keys()
    assert again.text_layers.keys() == adapter.text_layers.keys()
    for name, pair in (adapter.layers | adapter.text_layers).items():
        found = (again.layers | again.text_layers)[name]
        torch.testing.assert_close(found.dense(), pair.dense(), rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@given(adapter=adapters(text=True), form=st.sampled_from(["diffusers", "kohya"]))
def test_adapters_come_back_from_the_forms_with_text_layers(
    folder: Path, adapter: Adapter, form: str
) -> None:
    assert_round_trip(adapter, form, folder / "some.safetensors")


@given(adapter=adapters(text=False))
def test_adapters_come_back_from_peft_as_they_were(folder: Path, adapter: Adapter) -> None:
    assert_round_trip(adapter, "peft", folder / "peft" / "some.safetensors")


def meaning(name: str) -> tuple[str, str, str] | None:
    """Network, module and part that a tensor's name says; None if it is none of SDXL's."""
    key = keys.parse(name)
    address = FAMILY.address(key.stem) if key else None
    return (address[0], address[1], key.part) if key and address else None


@given(module=MODULES, style=st.sampled_from(sorted(STYLES)))
def test_a_layer_is_known_under_the_name_of_every_tool(module: str, style: str) -> None:
    for part in ("down", "up"):
        assert meaning(STYLES[style](module, part)) == (FAMILY.denoiser, module, part)


def written(network: str, module: str) -> list[tuple[str, ...]]:
    """Names of down and up in diffusers' and in kohya's form."""
    diffusers = keys.diffusers_names(FAMILY, network, module)
    return [diffusers, keys.kohya_names(FAMILY.kohya_stem(network, module))[:2]]


@given(network=st.sampled_from(FAMILY.networks[1:]), module=st.sampled_from(TEXT))
def test_a_layer_of_a_text_encoder_is_known_under_both_written_names(
    network: str, module: str
) -> None:
    for names in written(network, module):
        assert [meaning(name) for name in names] == [
            (network, module, "down"),
            (network, module, "up"),
        ]


def test_distinct_layers_have_distinct_names_in_every_form() -> None:
    every = [(FAMILY.denoiser, name) for name in (*ATTENTION, *OTHERS)]
    every += [(network, name) for network in FAMILY.networks[1:] for name in TEXT]
    for names in zip(*(written(*address) for address in every), strict=True):
        flat = [name for pair in names for name in pair]
        assert len(set(flat)) == len(flat) == 2 * len(every)


LETTERS = st.text(alphabet="unet_downblcksmitra.0123456789Alor", max_size=30)


@given(st.text() | LETTERS, MODULES, st.integers(0, 80), st.sampled_from(sorted(STYLES)))
def test_a_name_that_is_changed_is_another_layer_or_none(
    text: str, module: str, place: int, style: str
) -> None:
    name = STYLES[style](module, "down")
    for changed in (text, name[:place] + text + name[place:], name[:place] + name[place + 1 :]):
        found = meaning(changed)
        assert found is None or FAMILY.known(*found[:2])
