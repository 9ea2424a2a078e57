"""Claims of K-LoRA: exact sums from blocks, the rule, and what the sampler draws."""

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from b4m.adapters.adapter import Adapter
from b4m.adapters.attach import AdaptedModel
from b4m.bases.base import Base
from b4m.bases.sampling import sample
from b4m.methods import klora
from b4m.methods.klora import (
    EntrySums,
    SelectedDelta,
    Settings,
    balance,
    prefer,
    sampler,
    weight_of,
)
from tests.methods.draws import adapters_of, draw_pair

SETTINGS = Settings(steps=4, guidance=2.0)


def draw(base: Base, settings: Settings, *, adapter: Adapter | None = None) -> Image.Image:
    deltas, hook = adapter, None
    if adapter is None:
        deltas, hook = sampler(*adapters_of(base), base, settings)
    (image,) = sample(
        base,
        ["a snq teapot in w@z style"],
        [0],
        deltas=deltas,
        steps=settings.steps,
        guidance=settings.guidance,
        step_hook=hook,
    )
    return image


def apart(first: Image.Image, second: Image.Image) -> int:
    """Largest difference of two pictures, in levels of 255."""
    a, b = (np.asarray(image, dtype=int) for image in (first, second))
    return int(np.abs(a - b).max())


@pytest.mark.parametrize("block", [1, 50, 1 << 20])
@pytest.mark.parametrize("k", [1, 12, 35, 10_000])
def test_sums_from_blocks_are_those_of_the_dense_matrix(
    block: int, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(klora, "_BLOCK", block)
    pair = draw_pair(20, 30, 4, 0)
    entries = pair.dense().abs().flatten().sort(descending=True).values.double()
    weight = weight_of(pair, k)
    assert weight.top == pytest.approx(float(entries[:k].sum()), rel=1e-5)
    assert weight.total == pytest.approx(float(entries.sum()), rel=1e-5)


def test_style_takes_over_with_time_and_balance_makes_scale_irrelevant() -> None:
    content, style = EntrySums(10.0, 100.0), EntrySums(10.0, 100.0)
    assert [prefer(content, style, 1.0, time) for time in (0.5, 0.99, 1.01, 2.0)] == [
        "content", "content", "style", "style"]  # fmt: skip
    louder = EntrySums(70.0, 700.0)
    gamma = balance([(louder, style)])
    assert gamma == pytest.approx(7.0)
    assert prefer(louder, style, gamma, 0.99) == "content"
    assert prefer(louder, style, gamma, 1.01) == "style"


def test_choices_move_from_content_to_style_over_the_steps(base: Base) -> None:
    attachment, hook = sampler(*adapters_of(base), base, Settings(steps=10))
    adapted = AdaptedModel(base.model, attachment.deltas)
    try:
        shares = []
        for index in range(10):
            hook(index, adapted)
            chosen = Counter(one.selected for one in attachment.deltas.values())
            shares.append(chosen["style"] / len(attachment.deltas))
    finally:
        adapted.remove()
    assert shares == sorted(shares)
    assert shares[0] < 0.1
    assert shares[-1] > 0.9


def test_a_choice_is_one_pair_and_never_both() -> None:
    choice = SelectedDelta(draw_pair(6, 9, 2, 1), draw_pair(6, 9, 3, 2))
    x = torch.randn(4, 9)
    for kind in ("content", "style"):
        choice.selected = kind
        torch.testing.assert_close(choice(x), choice.pairs[kind].apply(x))


def test_at_its_ends_the_rule_draws_the_single_adapters_pictures(base: Base) -> None:
    content, style = adapters_of(base)
    always_content = SETTINGS.model_copy(update={"alpha": 0.0, "beta": 0.0})
    always_style = SETTINGS.model_copy(update={"alpha": 0.0, "beta": 1e9})
    assert apart(draw(base, always_content), draw(base, SETTINGS, adapter=content)) <= 1
    assert apart(draw(base, always_style), draw(base, SETTINGS, adapter=style)) <= 1
    mixed = draw(base, SETTINGS)
    assert apart(mixed, draw(base, SETTINGS, adapter=content)) > 1
    assert apart(mixed, draw(base, SETTINGS, adapter=style)) > 1


def test_a_layer_of_one_side_takes_that_side(base: Base) -> None:
    content, style = adapters_of(base)
    first, second, *_ = content.layers
    some = Adapter({first: content.layers[first]}, content.metadata)
    others = Adapter({second: style.layers[second]}, style.metadata)
    attachment, hook = sampler(some, others, base, SETTINGS)
    for index in range(SETTINGS.steps):
        hook(index, None)
        chosen = [attachment.deltas[name].selected for name in (first, second)]
        assert chosen == ["content", "style"]


def test_text_layers_are_added_up_and_scaled(base: Base) -> None:
    content, style = adapters_of(base)
    one, two = draw_pair(4, 4, 1, 0), draw_pair(4, 4, 2, 1)
    first = Adapter(content.layers, content.metadata, {"text_encoder.x": one})
    second = Adapter(style.layers, style.metadata, {"text_encoder.x": two})
    settings = SETTINGS.model_copy(update={"scale": 0.5})
    attachment, _ = sampler(first, second, base, settings)
    found = attachment.text.text_layers["text_encoder.x"].dense()
    torch.testing.assert_close(found, 0.5 * (one.dense() + two.dense()))
