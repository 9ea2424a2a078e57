"""Claims of what needs a base's weights: LoRAs of two checkpoints, DoRA, intruder dimensions.

The oracles are dense matrices, torch's SVD, and PEFT's own layers and functions.
"""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.intruders import reduce_intruder_dimension
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from b4m import verbs
from b4m.adapters.adapter import Adapter
from b4m.adapters.lowrank import LowRank
from b4m.adapters.truncation import pair_of
from b4m.errors import B4MError
from b4m.files import read_adapter, write_adapter
from b4m.files.checkpoint import Checkpoint
from b4m.files.clean import pruned, weaken

BLOCK = "transformer_blocks.0"
ORIGINAL = "model.diffusion_model.input_blocks.4.1."
LINEAR = f"{ORIGINAL}{BLOCK}.attn1.to_q"
CROSS = f"{ORIGINAL}{BLOCK}.attn2.to_k"
CONV = "model.diffusion_model.input_blocks.4.0.in_layers.2"
OURS = {
    LINEAR: "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    CROSS: "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k",
    CONV: "down_blocks.1.resnets.0.conv1",
}
SHAPES = {LINEAR: (40, 30), CROSS: (24, 2048), CONV: (20, 10, 3, 3)}


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def checkpoints(folder: Path, changes: dict[str, Tensor]) -> tuple[Path, Path]:
    """SDXL's original names, with other networks beside the denoiser; layers plus the changes."""
    base = {f"{stem}.weight": draw(k, *shape) for k, (stem, shape) in enumerate(SHAPES.items())}
    base[f"{LINEAR}.bias"] = draw(8, 40)
    base["first_stage_model.decoder.conv_in.weight"] = draw(9, 4, 4, 3, 3)
    tuned = {name: tensor.clone() for name, tensor in base.items()}
    for stem, change in changes.items():
        tuned[f"{stem}.weight"] += change.reshape(SHAPES[stem])
    for name, tensors in (("base", base), ("tuned", tuned)):
        save_file({n: t.float() for n, t in tensors.items()}, folder / f"{name}.safetensors")
    return folder / "base.safetensors", folder / "tuned.safetensors"


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 25), st.sampled_from([1.0, 0.9, 0.3]))
def test_a_pair_of_a_matrix_is_torchs_truncated_svd(
    rows: int, columns: int, rank: int, energy: float
) -> None:
    dense = draw(rows * 100 + columns, rows, columns)
    pair, lost = pair_of(dense, rank, energy)
    left, sigma, right = torch.linalg.svd(dense, full_matrices=False)
    shares = sigma.square().cumsum(0) / sigma.square().sum()
    enough = int((shares < energy - 1e-12).sum()) + 1
    kept = min(rank, enough, len(sigma))
    assert pair.rank == kept
    wanted = left[:, :kept] * sigma[:kept] @ right[:kept]
    torch.testing.assert_close(pair.dense(), wanted, rtol=0, atol=1e-9 * float(sigma[0]))
    assert lost == pytest.approx(float(1 - shares[kept - 1]), abs=1e-12)


def test_an_extracted_lora_is_what_was_added(tmp_path: Path) -> None:
    changes = {
        stem: draw(20 + k, shape[0], 3) @ draw(30 + k, 3, *shape[1:]).flatten(1)
        for k, (stem, shape) in enumerate(SHAPES.items())
    }
    base, tuned = checkpoints(tmp_path, changes)
    file = verbs.extract(base, tuned, tmp_path / "lora.safetensors", rank=8, form="kohya")
    read = read_adapter(file)
    assert read.metadata.family == "sdxl"
    for stem, change in changes.items():
        pair = read.layers[OURS[stem]]
        assert (pair.dense() - change).norm() <= 2e-6 * (change.norm() + SHAPES[stem][0])
    ranks = {name: pair.rank for name, pair in read.layers.items()}
    assert min(ranks.values()) >= 3


@pytest.mark.filterwarnings("ignore:rank 2 loses")
def test_what_an_extracted_lora_lacks_is_the_rest_of_the_svd(tmp_path: Path) -> None:
    changes = {LINEAR: draw(5, 40, 30), CONV: draw(6, 20, 90)}
    base, tuned = checkpoints(tmp_path, changes)
    read = read_adapter(verbs.extract(base, tuned, tmp_path / "lora.safetensors", rank=2))
    assert set(read.layers) == {OURS[LINEAR], OURS[CONV]}
    whole = lost = 0.0
    for stem, change in changes.items():
        sigma = torch.linalg.svdvals(change)
        whole, lost = whole + sigma.square().sum(), lost + sigma[2:].square().sum()
        rest = float((change - read.layers[OURS[stem]].dense()).norm())
        assert rest == pytest.approx(float(sigma[2:].norm()), rel=1e-5)
    assert read.metadata.config["energy_lost"] == pytest.approx(float(lost / whole), rel=1e-5)


def test_names_of_the_two_checkpoints_may_differ(tmp_path: Path) -> None:
    """The tuned one as a diffusers folder, in two files."""
    base, _ = checkpoints(tmp_path, {})
    weights, change = load_file(base), draw(7, 40, 1) @ draw(8, 1, 30)
    folder = tmp_path / "tuned/unet"
    folder.mkdir(parents=True)
    for number, stem in enumerate(SHAPES):
        weight = weights[f"{stem}.weight"].clone()
        if stem == LINEAR:
            weight += change.float()
        save_file({f"{OURS[stem]}.weight": weight}, folder / f"part-{number}.safetensors")
    file = verbs.extract(base, tmp_path / "tuned", tmp_path / "lora.safetensors", rank=1)
    (pair,) = read_adapter(file).layers.values()
    assert (pair.dense() - change).norm() <= 1e-5 * change.norm()


def test_what_is_no_matrix_is_told(tmp_path: Path) -> None:
    base, tuned = checkpoints(tmp_path, {LINEAR: draw(7, 40, 1) @ draw(8, 1, 30)})
    weights = load_file(tuned)
    weights[f"{LINEAR}.bias"] += 1
    save_file(weights, tuned)
    with pytest.warns(UserWarning, match=r"1 changed tensors are no matrices .*to_q\.bias"):
        verbs.extract(base, tuned, tmp_path / "lora.safetensors", rank=40)


def test_checkpoints_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    base, tuned = checkpoints(tmp_path, {})
    out = tmp_path / "lora.safetensors"
    with pytest.raises(B4MError, match="no linear layer differs"):
        verbs.extract(base, tuned, out)
    weights = load_file(tuned)
    save_file(weights | {f"{LINEAR}.weight": torch.ones(40, 31)}, tuned)
    with pytest.raises(B4MError, match="are they of one base"):
        verbs.extract(base, tuned, out)
    save_file(weights | {f"{LINEAR}.weight": torch.full((40, 30), torch.nan)}, tuned)
    with pytest.raises(B4MError, match="NaN"):
        verbs.extract(base, tuned, out)
    save_file({"double_blocks.0.img_attn.proj.weight": torch.ones(3072, 3072)}, tuned)
    with pytest.raises(B4MError, match="of one base"):
        verbs.extract(base, tuned, out)
    for wrong in ({"rank": 0}, {"energy": 0.0}, {"energy": 1.5}, {"energy": float("nan")}):
        with pytest.raises(B4MError, match="rank|energy"):
            verbs.extract(base, tuned, out, **wrong)
    assert not out.exists()


def test_a_fused_linear_and_its_parts_are_one(tmp_path: Path) -> None:
    """FLUX.1's qkv in the original code's checkpoint and in diffusers', looked up both ways."""
    qkv = torch.arange(9 * 3072 * 3072 // 3, dtype=torch.float32).reshape(9216, 3072)
    save_file({"double_blocks.0.img_attn.qkv.weight": qkv}, tmp_path / "original.safetensors")
    parts = [f"{BLOCK}.attn.to_{x}" for x in "qkv"]
    rows = dict(zip(parts, qkv.split(3072), strict=True))
    save_file(
        {f"{n}.weight": w.clone() for n, w in rows.items()}, tmp_path / "diffusers.safetensors"
    )
    original, diffusers = (
        Checkpoint(tmp_path / f"{name}.safetensors") for name in ("original", "diffusers")
    )
    family = original.family
    assert family.name == diffusers.family.name == "flux1"
    for checkpoint in (original, diffusers):
        for name, wanted in (
            ("lora_unet_double_blocks_0_img_attn_qkv", qkv),
            ("diffusion_model.double_blocks.0.img_attn.qkv", qkv),
            *((f"transformer.{part}", rows[part]) for part in parts),
        ):
            found = checkpoint.matrix(("", name), family)
            assert found is not None
            assert torch.equal(found, wanted)
        assert checkpoint.matrix(("", "transformer.transformer_blocks.1.attn.to_q"), family) is None


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_q = nn.Linear(30, 40, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.to_q(x)


@pytest.mark.parametrize("weight", [0.75, 0.0])
def test_intruders_are_weakened_as_peft_does(weight: float) -> None:
    model = Toy()
    config = LoraConfig(r=4, lora_alpha=4, target_modules=["to_q"], init_lora_weights=False)
    torch.manual_seed(0)
    adapted = get_peft_model(model, config)
    layer = adapted.base_model.model.to_q
    with torch.no_grad():
        layer.lora_B["default"].weight.copy_(3 * draw(1, 40, 4))
        layer.lora_A["default"].weight.copy_(draw(2, 4, 30))
    pair = LowRank(layer.lora_B["default"].weight.data, layer.lora_A["default"].weight.data)
    result, found = weaken(pair, layer.get_base_layer().weight.data, weight)
    assert found > 0
    reduce_intruder_dimension(adapted, mitigation_lambda=weight, logging_sink=None)
    wanted = layer.get_delta_weight("intruder_reduced")
    torch.testing.assert_close(result.dense(), wanted, rtol=1e-4, atol=1e-4)


def test_a_cleaned_layer_has_the_smallest_rank_that_holds_the_energy(tmp_path: Path) -> None:
    twice = torch.cat([draw(3, 24, 2)] * 3, dim=1)
    pairs = {
        OURS[LINEAR]: LowRank(draw(1, 40, 8), draw(2, 8, 30)),
        OURS[CROSS]: LowRank(twice, draw(4, 6, 2048)),
    }
    source = Adapter({name: pair.to(dtype=torch.float32) for name, pair in pairs.items()})
    for energy in (1.0, 0.99, 0.5):
        for name, pair in pruned(source, energy).layers.items():
            sigma = torch.linalg.svdvals(pairs[name].dense())
            shares = sigma.square().cumsum(0) / sigma.square().sum()
            wanted = int((shares < energy - 1e-9).sum()) + 1
            assert pair.rank == (wanted if energy < 1 else {40: 8, 24: 2}[pair.out_features])
    file = write_adapter(tmp_path / "a.safetensors", source)
    read = read_adapter(verbs.clean(file, tmp_path / "b.safetensors", energy=0.9))
    lost = sum((read.layers[n].dense() - p.dense()).square().sum() for n, p in pairs.items())
    whole = sum(pair.dense().square().sum() for pair in pairs.values())
    assert read.metadata.config["energy_lost"] == pytest.approx(float(lost / whole), rel=1e-4)
    assert 0 < float(lost / whole) <= 0.1


def test_cleaning_with_a_base_weakens_intruders_layer_by_layer(tmp_path: Path) -> None:
    base, _ = checkpoints(tmp_path, {})
    pairs = {OURS[LINEAR]: LowRank(9 * draw(1, 40, 2), draw(2, 2, 30)).to(dtype=torch.float32)}
    file = write_adapter(tmp_path / "a.safetensors", Adapter(pairs))
    read = read_adapter(verbs.clean(file, tmp_path / "b.safetensors", 1.0, base))
    wanted, found = weaken(pairs[OURS[LINEAR]], load_file(base)[f"{LINEAR}.weight"], 0.75)
    assert read.metadata.config["intruders"] == found > 0
    torch.testing.assert_close(read.layers[OURS[LINEAR]].dense(), wanted.dense())
    elsewhere = Adapter({OURS[LINEAR].replace("to_q", "to_v"): pairs[OURS[LINEAR]]})
    other = write_adapter(tmp_path / "c.safetensors", elsewhere)
    with pytest.raises(B4MError, match=r"has no layer .*to_v"):
        verbs.clean(other, tmp_path / "d.safetensors", 1.0, base)


def test_a_dora_with_its_base_is_pefts_change_of_the_weights(tmp_path: Path) -> None:
    base, _ = checkpoints(tmp_path, {})
    model = Toy()
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["to_q"], use_dora=True)
    adapted = get_peft_model(model, config)
    layer = adapted.base_model.model.to_q
    with torch.no_grad():
        layer.get_base_layer().weight.copy_(load_file(base)[f"{LINEAR}.weight"])
        layer.lora_B["default"].weight.copy_(draw(1, 40, 4))
        layer.lora_A["default"].weight.copy_(draw(2, 4, 30))
        layer.lora_magnitude_vector["default"].weight.copy_(draw(3, 40).abs())
    stem = f"unet.{OURS[LINEAR]}"
    file = tmp_path / "dora.safetensors"
    save_file(
        {
            f"{stem}.lora_A.weight": layer.lora_A["default"].weight.data,
            f"{stem}.lora_B.weight": layer.lora_B["default"].weight.data,
            f"{stem}.alpha": torch.tensor(8.0),
            f"{stem}.lora_magnitude_vector": layer.lora_magnitude_vector["default"].weight.data,
        },
        file,
    )
    before = layer.get_base_layer().weight.data.clone()
    layer.merge()
    change = layer.get_base_layer().weight.data - before
    for rank in (30, 5):
        with pytest.warns(UserWarning, match=f"cut to rank {rank}"):
            (pair,) = read_adapter(file, rank=rank, base=base).layers.values()
        left, sigma, right = torch.linalg.svd(change, full_matrices=False)
        best = left[:, :rank] * sigma[:rank] @ right[:rank]
        torch.testing.assert_close(pair.dense(), best, rtol=1e-4, atol=1e-4)
    for wrong in ({}, {"rank": 4}, {"base": base}):
        with pytest.raises(B4MError, match="give its base with --base and a rank"):
            read_adapter(file, **wrong)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("stem", [LINEAR, CONV])
@pytest.mark.filterwarnings("ignore:.*cut to rank")
def test_a_dora_of_lycoris_has_its_norm_over_outputs_or_inputs(
    stem: str, axis: int, tmp_path: Path
) -> None:
    base, _ = checkpoints(tmp_path, {})
    shape = SHAPES[stem]
    down, up = draw(1, 2, *shape[1:]).float(), draw(2, shape[0], 2).float()
    sizes = [1] * len(shape)
    sizes[axis] = shape[axis]
    magnitude = draw(3, *sizes).abs().float()
    name = stem.removeprefix("model.")
    up_file = up[(..., *[None] * (len(shape) - 2))]
    save_file(
        {
            f"{name}.lora_down.weight": down,
            f"{name}.lora_up.weight": up_file,
            f"{name}.dora_scale": magnitude,
        },
        tmp_path / "dora.safetensors",
    )
    (pair,) = read_adapter(tmp_path / "dora.safetensors", rank=90, base=base).layers.values()
    weight = load_file(base)[f"{stem}.weight"]
    whole = weight + (up @ down.flatten(1)).reshape(shape)
    others = [k for k in range(len(shape)) if k != axis]
    wanted = whole / whole.square().sum(others, keepdim=True).sqrt() * magnitude - weight
    torch.testing.assert_close(pair.dense(), wanted.flatten(1), rtol=1e-4, atol=1e-4)
