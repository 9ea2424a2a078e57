"""Claims of LoCon, LoHa and LoKr: as low-rank pairs they are the same matrices, to 1e-6 in float64.

By hand, 2026-11-25, beside lycoris-lora 4.1.3 in an environment of its own (torch 2.13): its LoCon,
LoHa and LoKr modules of a linear and of a 3 x 3 convolution, with random weights, plain, Tucker,
decomposed, whole and rank-stabilised (24 in all), saved and read here, equal their `get_weight` to
4.5e-16 of the largest entry. Its `get_diff_weight` applies alpha / r twice to LoHa and LoKr; what
its layers compute in a forward is `get_weight`.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from key_styles import saved
from safetensors.torch import load_file
from torch import Tensor, nn

from b4m.errors import B4MError
from b4m.files import describe, kinds, read_adapter, write_adapter

LAYER = "lora_unet_input_blocks_4_0_in_layers_2"  # SDXL's down_blocks.1.resnets.0.conv1, 3 x 3
CONV = "down_blocks.1.resnets.0.conv1"
LINEAR = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
TO_Q = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def loha(out: int, into: int, r: int) -> tuple[dict[str, Tensor], Tensor]:
    parts = {f"hada_w{k}_a": draw(out, r, seed=k) for k in (1, 2)}
    parts |= {f"hada_w{k}_b": draw(r, into, seed=k + 5) for k in (1, 2)}
    one, two = (parts[f"hada_w{k}_a"] @ parts[f"hada_w{k}_b"] for k in (1, 2))
    return parts, one * two / r


def loha_tucker(out: int, into: int, r: int, size: int) -> tuple[dict[str, Tensor], Tensor]:
    parts: dict[str, Tensor] = {}
    products = []
    for k in (1, 2):
        t, a, b = draw(r, r, size, size, seed=k), draw(r, out, seed=k), draw(r, into, seed=k + 3)
        parts |= {f"hada_t{k}": t, f"hada_w{k}_a": a, f"hada_w{k}_b": b}
        products.append(torch.einsum("ijkl,jr,ip->prkl", t, b, a))
    return parts, products[0] * products[1] / r


def lokr(first: str, second: str) -> tuple[dict[str, Tensor], Tensor]:
    """Factors of 3 x 2 and 4 x 5; each whole or in two; alpha / r acts unless both are whole."""
    parts: dict[str, Tensor] = {}
    whole = []
    for k, how, out, into in ((1, first, 3, 2), (2, second, 4, 5)):
        if how == "whole":
            parts[f"lokr_w{k}"] = draw(out, into, seed=k)
            whole.append(parts[f"lokr_w{k}"])
        else:
            parts |= {f"lokr_w{k}_a": draw(out, 2, seed=k), f"lokr_w{k}_b": draw(2, into, seed=9)}
            whole.append(parts[f"lokr_w{k}_a"] @ parts[f"lokr_w{k}_b"])
    scale = 1.0 if first == second == "whole" else 1 / 2
    return parts, torch.kron(*whole) * scale


def lokr_conv(tucker: bool) -> tuple[dict[str, Tensor], Tensor]:
    w1 = draw(2, 3)
    parts = {"lokr_w1": w1}
    if tucker:
        t, a, b = draw(2, 2, 3, 3), draw(2, 4), draw(2, 5)
        parts |= {"lokr_t2": t, "lokr_w2_a": a, "lokr_w2_b": b}
        w2, scale = torch.einsum("ijkl,ip,jr->prkl", t, a, b).contiguous(), 1 / 2
    else:
        w2, scale = draw(4, 5, 3, 3), 1.0
        parts["lokr_w2"] = w2
    return parts, torch.kron(w1[:, :, None, None], w2) * scale


def locon(tucker: bool) -> tuple[dict[str, Tensor], Tensor]:
    up, mid = draw(6, 3, 1, 1), draw(3, 3, 3, 3)
    down = draw(3, 5, 1, 1) if tucker else draw(3, 5, 3, 3)
    parts = {"lora_up.weight": up, "lora_down.weight": down}
    if not tucker:
        return parts, torch.einsum("or,rikl->oikl", up[..., 0, 0], down) / 3
    return parts | {"lora_mid.weight": mid}, torch.einsum(
        "or,rskl,si->oikl", up[..., 0, 0], mid, down[..., 0, 0]
    ) / 3


CASES: dict[str, Callable[[], tuple[dict[str, Tensor], Tensor]]] = {
    "LoHa": lambda: loha(6, 7, 2),
    "LoHa of a rank above the sizes": lambda: loha(6, 7, 3),
    "LoHa of a convolution, flat": lambda: loha(6, 45, 2),
    "LoHa of a convolution, Tucker": lambda: loha_tucker(6, 5, 2, 3),
    "LoKr, whole and whole": lambda: lokr("whole", "whole"),
    "LoKr, whole and two": lambda: lokr("whole", "two"),
    "LoKr, two and whole": lambda: lokr("two", "whole"),
    "LoKr, two and two": lambda: lokr("two", "two"),
    "LoKr of a convolution": lambda: lokr_conv(tucker=False),
    "LoKr of a convolution, Tucker": lambda: lokr_conv(tucker=True),
    "LoCon": lambda: locon(tucker=False),
    "LoCon, Tucker": lambda: locon(tucker=True),
}


@pytest.mark.parametrize("case", CASES)
def test_a_pair_is_the_dense_product(case: str, tmp_path: Path) -> None:
    """With alpha 1, in float64, through a file of kohya's names and back out as a plain LoRA."""
    parts, dense = CASES[case]()
    is_conv = dense.ndim == 4 or "convolution" in case
    stem, name = (LAYER, CONV) if is_conv else (LINEAR, TO_Q)
    tensors = {f"{stem}.{part}": tensor for part, tensor in parts.items()}
    tensors[f"{stem}.alpha"] = torch.tensor(1.0)
    adapter = read_adapter(saved(tmp_path, tensors))
    pair = adapter.layers[name]
    assert pair.up.dtype == torch.float64
    assert pair.rank <= min(pair.shape)
    error = (pair.dense() - dense.flatten(1)).abs().max()
    assert float(error) <= 1e-6 * float(dense.abs().max())

    again = load_file(write_adapter(tmp_path / "plain.safetensors", adapter, "kohya"))
    up, down = again[f"{stem}.lora_up.weight"], again[f"{stem}.lora_down.weight"]
    if is_conv:
        assert (up.shape[2:], down.shape[2:]) == ((1, 1), (3, 3))
    product = torch.einsum("or,ri->oi", up.flatten(1), down.flatten(1)).double()
    torch.testing.assert_close(product, dense.flatten(1), rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(["whole", "two"]),
    st.sampled_from(["whole", "two"]),
    *(st.integers(1, 5) for _ in range(6)),
)
def test_a_kronecker_product_of_any_sizes_is_exact(
    first: str, second: str, a: int, b: int, c: int, d: int, r1: int, r2: int
) -> None:
    parts: dict[str, Tensor] = {}
    whole = []
    for k, how, out, into, r in ((1, first, a, b, r1), (2, second, c, d, r2)):
        factors = draw(out, r, seed=k), draw(r, into, seed=k)
        whole.append(factors[0] @ factors[1])
        names = {f"lokr_w{k}_a": factors[0], f"lokr_w{k}_b": factors[1]}
        parts |= {f"lokr_w{k}": whole[-1]} if how == "whole" else names
    pair, lost = kinds.pair("LoKr", parts)
    assert lost == 0
    assert pair.rank <= min(a * c, b * d)
    torch.testing.assert_close(pair.dense(), torch.kron(*whole), rtol=1e-9, atol=1e-9)


def test_a_whole_kronecker_product_is_cut_best_to_a_given_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut to the rank, the error is what Eckart and Young say of the dense matrix."""
    monkeypatch.setattr(kinds, "WIDEST", 4)
    parts, dense = lokr("whole", "whole")
    file = saved(tmp_path, {f"{LINEAR}.{part}": tensor for part, tensor in parts.items()})
    with pytest.raises(B4MError, match=r"LoKr of rank 8.*--rank"):
        read_adapter(file)
    pair = read_adapter(file, rank=3).layers[TO_Q]
    sigma = torch.linalg.svdvals(dense)
    assert pair.rank == 3
    error = float((pair.dense() - dense).norm())
    assert error == pytest.approx(float(sigma[3:].square().sum().sqrt()), rel=1e-9)


@pytest.mark.parametrize("kind", ["LoHa", "LoKr", "LoKr, decomposed"])
def test_pefts_layers_hold_the_same_matrices(kind: str, tmp_path: Path) -> None:
    import peft

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 8), nn.Conv2d(4, 6, 3))
    targets: dict[str, object] = {"target_modules": ["0", "1"], "alpha": 3, "r": 2}
    config = {
        "LoHa": lambda: peft.LoHaConfig(**targets),
        "LoKr": lambda: peft.LoKrConfig(**targets, decompose_factor=2),
        "LoKr, decomposed": lambda: peft.LoKrConfig(
            **targets | {"r": 1}, decompose_both=True, decompose_factor=2, use_effective_conv2d=True
        ),
    }[kind]()
    adapted = peft.get_peft_model(model, config).double()
    for name, parameter in adapted.named_parameters():
        if "hada_" in name or "lokr_" in name:
            nn.init.normal_(parameter)
    adapted.save_pretrained(tmp_path)
    layers = read_adapter(tmp_path).layers
    assert len(layers) == 2
    for name, pair in layers.items():
        module = adapted.get_submodule(name.partition("@")[0])
        wanted = module.get_delta_weight("default").detach().flatten(1)
        assert float((pair.dense() - wanted).abs().max()) <= 1e-6 * float(wanted.abs().max())


def test_a_file_of_mixed_kinds_is_described_by_kind(tmp_path: Path) -> None:
    tensors = {f"{LAYER}.{part}": tensor for part, tensor in locon(tucker=False)[0].items()}
    tensors |= {f"{LINEAR}.{part}": tensor for part, tensor in loha(6, 7, 2)[0].items()}
    facts = describe(saved(tmp_path, tensors))
    assert facts["kinds"] == {"LoRA": 1, "LoHa": 1}
    assert facts["groups"] == {"down_blocks.1.attentions.0": 1, "down_blocks.1.resnets.0": 1}
    json.dumps(facts)


def test_a_kernel_that_the_base_does_not_have_is_refused(tmp_path: Path) -> None:
    parts = {"lora_up.weight": draw(6, 2, 1, 1), "lora_down.weight": draw(2, 5, 5, 5)}
    file = saved(tmp_path, {f"{LAYER}.{part}": tensor for part, tensor in parts.items()})
    with pytest.raises(B4MError, match=rf"{CONV}: the kernel is \(5, 5\) and not \(3, 3\)"):
        read_adapter(file)
