"""Claims of weights by adapter and by part, and of the strength of a merge."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from b4m.adapters.adapter import Adapter
from b4m.adapters.metadata import Metadata
from b4m.bases.sdxl.blocks import sdxl_linear_shapes
from b4m.errors import B4MError
from b4m.merging.weighting import factors_of, strengthened, weighted
from b4m.settings import MergeSettings, resolve
from b4m.weights import Weight, weights_of
from tests.methods.draws import draw_adapter, draw_pair

DOWN = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
CROSS = "up_blocks.0.attentions.1.transformer_blocks.3.attn2.to_k"
TEXT = "text_encoder.text_model.encoder.layers.1.self_attn.q_proj"
TEXT_2 = "text_encoder_2.text_model.encoder.layers.10.mlp.fc1"
NUMBERS = st.floats(-1e6, 1e6)
PARTS = st.text("abc_.*?012", min_size=1, max_size=8)


def sdxl(seed: int = 0) -> Adapter:
    layers = {name: draw_pair(8, 6, 2, seed + k) for k, name in enumerate((DOWN, CROSS))}
    text = {name: draw_pair(5, 5, 3, seed + 10 + k) for k, name in enumerate((TEXT, TEXT_2))}
    return Adapter(layers, Metadata(family="sdxl"), text)


@given(st.lists(st.builds(Weight, NUMBERS, st.lists(st.tuples(PARTS, NUMBERS)).map(tuple))))
def test_weights_are_the_same_from_text_from_settings_and_from_values(every: list[Weight]) -> None:
    texts = [str(one) for one in every]
    assert weights_of(every) == weights_of(texts) == weights_of(", ".join(texts)) == tuple(every)
    assert resolve(MergeSettings, {"weights": texts}).weights == tuple(texts)
    assert resolve(MergeSettings, {"weights": ",".join(texts)}).weights == tuple(texts)


def test_numbers_and_tables_are_weights_too() -> None:
    wanted = (Weight(1.0), Weight(0.5, (("text_encoder", 0.0),)))
    assert weights_of([1, {"": 0.5, "text_encoder": 0}]) == wanted
    assert weights_of("1, 0.5 text_encoder=0") == weights_of("1,0.5  text_encoder=0.0") == wanted
    assert weights_of(["text_encoder=0"]) == (Weight(1.0, (("text_encoder", 0.0),)),)


_ODD = st.one_of(
    st.text(max_size=12),
    st.text("0.5 =,ab-einf_", max_size=12),
    st.floats(),
    st.booleans(),
    st.none(),
    st.lists(st.one_of(st.text("0.5 =,a", max_size=6), st.floats(), st.none()), max_size=3),
    st.dictionaries(st.text("a ,=", max_size=3), st.one_of(st.floats(), st.text(max_size=3))),
)


@settings(max_examples=400)
@given(_ODD)
def test_any_value_of_weights_is_taken_with_finite_factors_or_refused_in_one_sentence(
    value: object,
) -> None:
    said, taken = "", ()
    try:
        taken = resolve(MergeSettings, {"weights": value}).weights
    except B4MError as error:
        said = str(error)
    assert not said or (said.startswith("setting weights=") and len(said.splitlines()) == 1)
    for weight in weights_of(taken):
        assert math.isfinite(weight.usual)
        assert all(math.isfinite(factor) for _, factor in weight.parts)


@pytest.mark.parametrize(
    ("weight", "factors"),
    [
        ("0.5", (0.5, 0.5, 0.5, 0.5)),
        ("unet=0", (0, 0, 1, 1)),
        ("0.5 text_encoder=0", (0.5, 0.5, 0, 0.5)),
        ("text_encoder_2=2 text_encoder=3", (1, 1, 3, 2)),
        ("down_blocks.1=0.1 blora-style=0.2", (0.1, 0.2, 1, 1)),
        ("attn2=0.3 up_blocks.0.attentions.1=0.4", (1, 0.4, 1, 1)),
        ("up_blocks.0=0.4 attn2=0.3", (1, 0.3, 1, 1)),
        ("content=0.5 style=0.25", (0.25, 0.5, 1, 1)),
        ("*.to_k=0 text_encoder_2.*=0.7", (1, 0, 1, 0.7)),
        ("layers.1=0", (1, 1, 0, 1)),
    ],
)
def test_parts_of_sdxl_are_networks_blocks_groups_roles_and_patterns(
    weight: str, factors: tuple[float, ...]
) -> None:
    (found,) = factors_of([weight], [sdxl()])
    assert tuple(found[name] for name in (DOWN, CROSS, TEXT, TEXT_2)) == factors


NAMED = {
    "kohya": (
        "lora_unet_double_blocks_1_img_attn_proj",
        "lora_unet_double_blocks_11_img_attn_proj",
    ),
    "comfyui": (
        "diffusion_model.double_blocks.1.img_attn.proj",
        "diffusion_model.double_blocks.11.img_attn.proj",
    ),
    "unknown": ("transformer.future.1.mixer", "transformer.future.11.mixer"),
    "convolutions": ("unet.future.1@3x3", "unet.future.11@3x3"),
}


@pytest.mark.parametrize("names", NAMED.values(), ids=NAMED)
def test_parts_of_other_bases_are_found_in_dotted_and_underscored_names(
    names: tuple[str, str],
) -> None:
    layers = {name: draw_pair(4, 4, 1, k) for k, name in enumerate(names)}
    text = {
        f"text.lora_te{k}_text_model_encoder_layers_1_fc": draw_pair(4, 4, 1, k) for k in (1, 2)
    }
    adapter = Adapter(layers, text_layers=text)
    block = "future.1" if "future" in names[0] else "double_blocks.1"
    weight = f"0.5 {block}=2 text_encoder_2=0 text_encoder=3"
    (found,) = factors_of([weight], [adapter])
    assert [found[name] for name in (*names, *text)] == [2, 0.5, 3, 0]
    (found,) = factors_of(["transformer=0 *11*=1"], [adapter])
    assert [found[name] for name in (*names, *text)] == [0, 1, 1, 1]


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (["1"], ["1 weights for 2 adapters"]),
        (["1", "1 mid_blok=2"], ["'mid_blok'", "unet, text_encoder", "blora-style"]),
        (["1", "1 down_blocks=2 down_block=1"], ["'down_block'"]),
    ],
)
def test_a_weight_that_fits_nothing_is_refused(weights: list[str], words: list[str]) -> None:
    with pytest.raises(B4MError) as refused:
        factors_of(weights, [sdxl(), sdxl(20)])
    assert all(word in str(refused.value) for word in words)


def test_a_network_that_no_adapter_has_may_be_named() -> None:
    """So that one command serves files with and without text-encoder layers."""
    adapter = Adapter({DOWN: draw_pair(4, 4, 2, 0)})
    (found,) = weighted([adapter], ["0.5 text_encoder=0"])
    torch.testing.assert_close(found.layers[DOWN].dense(), 0.5 * adapter.layers[DOWN].dense())


def norm(adapter: Adapter, network: str) -> float:
    """From dense matrices in float64."""
    layers = adapter.layers if network == "unet" else adapter.text_networks()[network]
    squares = [pair.to(torch.float64).dense().square().sum() for pair in layers.values()]
    return float(sum(squares)) ** 0.5


@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize("alike", [0.0, 0.9, -0.6])
def test_a_merge_of_automatic_strength_is_as_strong_as_the_strongest_by_dense_norms(
    number: int, alike: float
) -> None:
    first = sdxl()
    sources = [first, *(sdxl(20 * k).scale(0.3 * k) + first.scale(alike) for k in range(1, number))]
    total = sum(sources[1:], start=sources[0])
    found = strengthened(total, sources)
    for network in ("unet", "text_encoder", "text_encoder_2"):
        strongest = max(norm(one, network) for one in sources)
        assert norm(found, network) == pytest.approx(strongest, rel=1e-6)
        told = found.metadata.config["strength"]["denoiser" if network == "unet" else network]
        assert norm(total, network) * told == pytest.approx(strongest, rel=1e-5)


def test_layers_of_a_network_keep_their_proportions() -> None:
    sources = [sdxl(), sdxl(20)]
    total = sources[0] + sources[1]
    found = strengthened(total, sources)
    ratios = [found.layers[name].norm() / total.layers[name].norm() for name in total.layers]
    assert ratios == pytest.approx([ratios[0]] * len(ratios), rel=1e-6)


def test_adapters_that_cancel_or_are_zero_are_left_alone() -> None:
    first = sdxl()
    cancelled = first + first.scale(-1.0)
    assert strengthened(cancelled, [first, first.scale(-1.0)]).metadata.config["strength"] == {
        "denoiser": 1.0,
        "text_encoder": 1.0,
        "text_encoder_2": 1.0,
    }
    zero = first.scale(0.0)
    assert strengthened(zero + zero, [zero, zero]).layers[DOWN].norm() == 0.0


def test_the_norm_of_all_of_sdxl_is_found_without_a_dense_matrix() -> None:
    """Its largest linear has 13 million entries; the Gram matrices have 64."""
    shapes = dict(list(sdxl_linear_shapes().items())[:40])
    sources = [draw_adapter(shapes, 4, seed) for seed in (1, 2)]
    seen: list[tuple[int, ...]] = []

    class Watched(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.ndim == 2:
                seen.append(tuple(out.shape))
            return out

    total = sources[0] + sources[1]
    with Watched():
        strengthened(total, sources)
    assert min(min(shape) for shape in seen) <= 8
    assert max(min(shape) for shape in seen) <= 8
