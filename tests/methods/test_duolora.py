"""Claims of DuoLoRA: singular basis, prior and its sign, re-noising, cycle, number of updates."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from b4m.adapters.adapter import Adapter
from b4m.bases.base import Base
from b4m.bases.sdxl.blocks import role_of
from b4m.data.prepare import prepare
from b4m.files import read_adapter, write_adapter
from b4m.merging.context import MergeContext
from b4m.merging.layerwise import paired
from b4m.merging.mask_learning import MaskedMerge, learn
from b4m.methods.duolora import DuoLoss, Settings, layer_prior, renoised, start_by_prior
from tests import runs
from tests.data.worlds import write_user_folder
from tests.methods.draws import adapters_of, bank_of, look


@pytest.fixture
def merge(base: Base) -> Iterator[MaskedMerge]:
    content, style = adapters_of(base, 4, 4)
    state = MaskedMerge(base, paired(content.layers, style.layers), "rank")
    yield state
    state.close()


@pytest.fixture
def updates() -> Iterator[list[int]]:
    """Grows by one at every step that any optimizer takes."""
    taken: list[int] = []

    def count(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        taken.append(len(taken))

    handle = register_optimizer_step_post_hook(count)
    yield taken
    handle.remove()


def set_masks(merge: MaskedMerge, value: Callable[[str, str], float]) -> None:
    with torch.no_grad():
        for name, masked in merge.masks.items():
            masked.m_content.fill_(value(role_of(name), "content"))
            masked.m_style.fill_(value(role_of(name), "style"))


def prior_gradients(merge: MaskedMerge) -> dict[tuple[str, str], Tensor]:
    """Gradients of the prior by (role of the layer, whose mask)."""
    parameters = merge.parameters()
    gradients = torch.autograd.grad(layer_prior(merge), list(parameters.values()))
    found: dict[tuple[str, str], list[Tensor]] = {}
    for name, gradient in zip(parameters, gradients, strict=True):
        layer, _, kind = name.rpartition(".")
        found.setdefault((role_of(layer), kind), []).append(gradient)
    return {key: torch.cat(parts) for key, parts in found.items()}


@pytest.mark.parametrize("other", [1.0, 1.5])
def test_where_the_wrong_mask_is_as_large_the_prior_raises_the_intended_one(
    merge: MaskedMerge, other: float
) -> None:
    set_masks(merge, lambda role, kind: 1.0 if role == kind else other)
    gradients = prior_gradients(merge)
    for role, wrong in (("content", "style"), ("style", "content")):
        assert (gradients[role, role] < 0).all(), "descent raises the layer's own mask"
        assert (gradients[role, wrong] > 0).all(), "and lowers the other one"


def test_where_the_order_is_right_only_the_sparsity_of_the_own_mask_is_left(
    merge: MaskedMerge,
) -> None:
    set_masks(merge, lambda role, kind: 1.0 if role == kind else 0.5)
    gradients = prior_gradients(merge)
    for role, wrong in (("content", "style"), ("style", "content")):
        assert (gradients[role, role] > 0).all()
        assert (gradients[role, wrong] == 0).all()


def test_prior_is_the_nuclear_norm_hinge_of_the_diagonal_masks(merge: MaskedMerge) -> None:
    torch.manual_seed(0)
    for mask in merge.parameters().values():
        mask.data.normal_()
    terms = []
    for name, masked in merge.masks.items():
        own, other = masked.m_content, masked.m_style
        if role_of(name) == "style":
            own, other = other, own
        nuclear = [torch.linalg.matrix_norm(m.diag(), "nuc") for m in (own, other)]
        terms.append((own.abs().sum() + 2.0 * torch.relu(nuclear[1] - nuclear[0])) / 4)
    torch.testing.assert_close(layer_prior(merge), torch.stack(terms).mean())


def test_every_linear_starts_with_more_ranks_for_its_own_role(merge: MaskedMerge) -> None:
    start_by_prior(merge)
    roles = set()
    for name, masked in merge.masks.items():
        by_kind = {"content": masked.m_content, "style": masked.m_style}
        own = by_kind.pop(role_of(name))
        (other,) = by_kind.values()
        assert own.tolist() == [1, 1, 1, 1]
        assert other.tolist() == [1, 1, 0, 0]
        roles.add(role_of(name))
    assert roles == {"content", "style"}


def test_renoising_with_the_true_noise_gives_the_same_latents(base: Base) -> None:
    torch.manual_seed(0)
    t_B = torch.tensor([5, 400, 998, 999])
    x0, noise = torch.randn(2, 4, 4, 8, 8)
    x = base.noising.add(x0, noise, t_B)
    abar = base.scheduler.alphas_cumprod[t_B].reshape(-1, 1, 1, 1)
    truth = abar.sqrt() * noise - (1 - abar).sqrt() * x0  # what a v-prediction base would say
    assert base.prediction_type == "v_prediction"
    torch.testing.assert_close(renoised(base, truth, x, noise, t_B), x, rtol=1e-5, atol=1e-5)


def test_renoising_is_denoising_and_adding_the_noise_again(base: Base) -> None:
    torch.manual_seed(0)
    t_B = torch.tensor([5, 400, 998])
    x, noise, output = torch.randn(3, 3, 4, 8, 8)
    abar = base.scheduler.alphas_cumprod[t_B].reshape(-1, 1, 1, 1)
    clean = abar.sqrt() * x - (1 - abar).sqrt() * output
    wanted = abar.sqrt() * clean + (1 - abar).sqrt() * noise
    torch.testing.assert_close(renoised(base, output, x, noise, t_B), wanted, rtol=1e-4, atol=1e-4)


def test_cycle_gradient_reaches_both_masks_of_every_layer(base: Base, merge: MaskedMerge) -> None:
    bank = bank_of(base, 2)
    loss = DuoLoss(merge, bank, cycle=1.0, prior=0.0)
    cycle = loss(*merge.predictions(merge.adapted, bank, [0, 1]), [0, 1])["cycle"].sum()
    gradients = torch.autograd.grad(cycle, list(merge.parameters().values()))
    assert all(gradient.abs().max() > 0 for gradient in gradients)


def test_the_own_adapter_removes_what_the_other_one_drew(base: Base, merge: MaskedMerge) -> None:
    bank = bank_of(base, 2)
    called: list[str] = []
    teacher_prediction = merge.teacher_prediction
    merge.teacher_prediction = lambda kind, *rest: (
        called.append(kind),
        teacher_prediction(kind, *rest),
    )[1]  # type: ignore
    DuoLoss(merge, bank, 0.01, 0.1)
    assert called == ["content", "style", "style", "content", "content", "style"]


@pytest.mark.parametrize("images", [1, 4, 5, 6])
def test_max_steps_updates_whatever_the_number_of_pictures(
    images: int, base: Base, tmp_path: Path, updates: list[int]
) -> None:
    own = write_user_folder(tmp_path / "own", contents=images, styles=images)
    data = prepare(own, tmp_path / "data", "teapot", "stripes", style_images=images)
    runs.merge("duolora", *adapters_of(base), base, data, tmp_path, steps=7, bank=4)
    assert len(updates) == 7


def test_singular_basis_and_masks_of_ones_are_the_direct_merge(
    base: Base, prepared: Path, tmp_path: Path
) -> None:
    content, style = adapters_of(base, 3, 5)
    settings = {"steps": 0, "init": "ones", "bank": 1}
    result = runs.merge("duolora", content, style, base, prepared, tmp_path, **settings)
    for name, pair in result.layers.items():
        wanted = content.layers[name] + style.layers[name]
        torch.testing.assert_close(pair.dense(), wanted.dense(), rtol=1e-5, atol=1e-5)
        assert pair.rank == 8


def test_exported_file_gives_the_output_of_the_live_merge(base: Base, tmp_path: Path) -> None:
    content, style = adapters_of(base, 3, 5)
    pairs = {
        name: (first.svd_basis(), second.svd_basis())
        for name, (first, second) in paired(content.layers, style.layers).items()
    }
    bank = bank_of(base, 2)
    state = MaskedMerge(base, pairs, "rank")
    start_by_prior(state)
    loss = DuoLoss(state, bank, 0.01, 0.1)
    learn(state, bank, loss, MergeContext(Settings(steps=5), workdir=tmp_path), "duolora")
    live = look(base, None)
    file = write_adapter(tmp_path / "merged.safetensors", Adapter(state.layers()))
    state.close()
    assert (look(base, read_adapter(file)) - live).abs().max() <= 1e-5
