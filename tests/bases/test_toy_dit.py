"""A flow-matching DiT trains, merges and samples through the code that SDXL goes through."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from PIL import Image
from safetensors import safe_open

import b4m.bases
from b4m import methods, verbs
from b4m.adapters.adapter import Adapter
from b4m.adapters.lowrank import LowRank
from b4m.bases.base import Base
from b4m.bases.sampling import attached, sample
from b4m.data.cache import Cache
from b4m.data.manifest import read_manifest, training_rows
from b4m.errors import B4MError
from b4m.files import describe, read_adapter, write_adapter
from b4m.training.losses import Noise, denoising_losses
from b4m.training.training_set import read_training_set
from tests.toy_dit.build import write_toy
from tests.toy_dit.family import FAMILY, LINEARS

CONCEPTS = {"content": "teapot", "style": "stripes"}
TRAINING = {"steps": 100, "rank": 4, "lr": 1e-2, "batch_size": 4, "accumulation": 1}
LEARNING = {"steps": 40, "bank": 8, "lr": 0.03}
SAMPLING = {"steps": 4, "guidance": 3.0}
CLOSED_FORMS = [
    name for name in methods.names("file") if not methods.method(name).learned and name != "blora"
]


@pytest.fixture(scope="module", autouse=True)
def _registered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        registered = {**b4m.bases.FAMILIES, FAMILY.name: "tests.toy_dit"}
        patch.setattr(b4m.bases, "FAMILIES", registered)
        patch.setenv("B4M_WORK", str(tmp_path_factory.mktemp("work")))
        patch.setenv("B4M_TRACKING", "off")
        yield


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_toy(tmp_path_factory.mktemp("toy")))


@pytest.fixture(scope="module")
def base(toy: str) -> Base:
    return b4m.bases.load_base(toy, device="cpu")


@pytest.fixture(scope="module")
def trained(toy: str, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("trained")
    return {
        kind: verbs.train(
            kind, prepared, concept, out / f"{kind}.safetensors", base=toy, settings=TRAINING
        )
        for kind, concept in CONCEPTS.items()
    }


@pytest.fixture(scope="module")
def zipped(toy: str, prepared: Path, trained: dict[str, Path]) -> Path:
    out = trained["content"].with_name("ziplora.safetensors")
    pair = trained["content"], trained["style"]
    return verbs.merge(pair, out, "ziplora", toy, prepared, settings=LEARNING)


def shown(base: Base, data: Path, kind: str, work: Path) -> tuple[torch.Tensor, Noise, object]:
    """Latents, noise and prompts of 32 fixed draws of a concept's images."""
    rows = training_rows(read_manifest(data), kind, CONCEPTS[kind])
    examples = read_training_set(data, rows, base, Cache(work, base))
    generator = torch.Generator().manual_seed(99)
    picks = [index % len(rows) for index in range(32)]
    shown = examples.draw(picks, generator).to(base.device)
    x0_BCHW, text = shown.x0_BCHW, shown.text
    return x0_BCHW, Noise.sample(base, 32, generator), text


@torch.no_grad()
def loss(base: Base, data: Path, kind: str, adapter: Adapter | None, work: Path) -> float:
    x0_BCHW, noise, text = shown(base, data, kind, work)
    with attached(base, adapter):
        return float(denoising_losses(base.model, base, x0_BCHW, noise, text).mean())


@torch.no_grad()
def infidelity(base: Base, data: Path, merged: Path, trained: dict[str, Path], work: Path) -> float:
    """How far the merged predictions are from the single adapters', each on its own images."""
    total = 0.0
    for kind, file in trained.items():
        x0_BCHW, noise, text = shown(base, data, kind, work)
        noisy_BCHW = base.noising.add(x0_BCHW, noise.noise_BCHW, noise.t_B)
        outputs = []
        for one in (file, merged):
            with attached(base, read_adapter(one)):
                outputs.append(base.predict(base.model, noisy_BCHW, noise.t_B, text))
        total += float((outputs[0] - outputs[1]).flatten(1).norm(dim=1).mean())
    return total


def pixels(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image, dtype=np.int16) for image in images])


def test_the_loss_falls_in_training(
    base: Base, prepared: Path, trained: dict[str, Path], tmp_path: Path
) -> None:
    for kind, file in trained.items():
        before = loss(base, prepared, kind, None, tmp_path)
        assert loss(base, prepared, kind, read_adapter(file), tmp_path) < 0.9 * before


def test_adapters_are_named_as_diffusers_names_them_and_say_their_family(
    trained: dict[str, Path],
) -> None:
    with safe_open(trained["content"], framework="pt") as opened:
        header, names = opened.metadata(), set(opened.keys())
    last = "transformer_blocks.1.attn.to_add_out"  # no text leaves the last block
    layers = [f"transformer_blocks.{k}.{linear}" for k in (0, 1) for linear in LINEARS]
    layers.remove(last)
    parts = ("lora.down.weight", "lora.up.weight")
    assert names == {f"transformer.{layer}.{part}" for layer in layers for part in parts}
    assert (header["b4m.family"], header["modelspec.architecture"]) == ("toy-dit", "toy-dit/lora")
    facts = describe(trained["content"])
    assert (facts["base"], facts["layers"]) == ("toy DiT", 15)
    assert facts["groups"] == {"transformer_blocks.0": 8, "transformer_blocks.1": 7}
    assert set(facts["norm_by_role"]) == {"content", "style"}


def text_adapter(rank: int = 2) -> Adapter:
    """Pairs on every linear of the denoiser's first block and two of the text encoders."""
    generator = torch.Generator().manual_seed(5)

    def pair(width: int) -> LowRank:
        up, down = (torch.randn(*s, generator=generator) for s in ((width, rank), (rank, width)))
        return LowRank(up * 0.2, down * 0.2)

    query = "text_model.encoder.layers.0.self_attn.q_proj"
    return Adapter(
        {f"transformer_blocks.0.{linear}": pair(32) for linear in LINEARS},
        text_layers={f"{network}.{query}": pair(16) for network in FAMILY.networks[1:]},
    )


@pytest.mark.parametrize("form", ["diffusers", "kohya", "peft"])
def test_what_is_written_is_read_again(form: str, tmp_path: Path) -> None:
    adapter = text_adapter()
    if form == "peft":
        adapter = Adapter(adapter.layers)
    again = read_adapter(write_adapter(tmp_path / f"{form}.safetensors", adapter, form=form))
    for wanted, found in (
        (adapter.layers, again.layers),
        (adapter.text_layers, again.text_layers),
    ):
        assert wanted.keys() == found.keys()
        assert all(torch.equal(found[name].up, wanted[name].up) for name in wanted)
        assert all(torch.equal(found[name].down, wanted[name].down) for name in wanted)


def test_diffusers_draws_the_same_images_from_the_file(
    base: Base, toy: str, tmp_path: Path
) -> None:
    """Its own pipeline, its own Euler steps, its own loading of adapters of all networks."""
    file = write_adapter(tmp_path / "a.safetensors", text_adapter())
    ours = sample(base, ["a snq pot"], [3], deltas=read_adapter(file), **SAMPLING)
    pipe = StableDiffusion3Pipeline.from_pretrained(
        toy, text_encoder_3=None, tokenizer_3=None, local_files_only=True
    )
    pipe.load_lora_weights(file)
    theirs = pipe(
        "a snq pot",
        num_inference_steps=SAMPLING["steps"],
        guidance_scale=SAMPLING["guidance"],
        generator=torch.Generator().manual_seed(3),
        max_sequence_length=0,
    ).images
    plain = sample(base, ["a snq pot"], [3], **SAMPLING)
    assert abs(pixels(ours) - pixels(theirs)).max() <= 1
    assert abs(pixels(ours) - pixels(plain)).max() > 1


def test_closed_forms_merge_exactly(trained: dict[str, Path], tmp_path: Path) -> None:
    pair = trained["content"], trained["style"]
    content, style = (read_adapter(file) for file in pair)
    direct = read_adapter(verbs.merge(pair, tmp_path / "direct.safetensors", "direct"))
    short = read_adapter(verbs.merge(pair, tmp_path / "svd.safetensors", "svd"))
    assert direct.layers.keys() == short.layers.keys() == content.layers.keys()
    for name, merged in direct.layers.items():
        wanted = content.layers[name].dense() + style.layers[name].dense()
        torch.testing.assert_close(merged.dense(), wanted, atol=1e-6, rtol=1e-5)
        u, s, vh = torch.linalg.svd(wanted.double(), full_matrices=False)
        best = (u[:, :4] * s[:4]) @ vh[:4]
        torch.testing.assert_close(short.layers[name].dense().double(), best, atol=1e-5, rtol=0)
    assert direct.metadata.family == "toy-dit"


@pytest.mark.parametrize("method", CLOSED_FORMS)
def test_every_closed_form_keeps_of_both_adapters_in_all_layers_that_act(
    method: str, trained: dict[str, Path], tmp_path: Path
) -> None:
    content, style = (read_adapter(file).layers for file in trained.values())
    out = verbs.merge([trained["content"], trained["style"]], tmp_path / "m.safetensors", method)
    merged = read_adapter(out).layers
    unused = "transformer_blocks.1.attn.add_q_proj"  # of text that no block reads any more
    assert content[unused].norm() == style[unused].norm() == 0
    assert merged.keys() | {unused} == content.keys()
    for one in (content, style):
        squared = sum(pair.norm() ** 2 for pair in one.values())
        shared = sum(pair.inner(one[name]) for name, pair in merged.items())
        assert shared > 0.3 * squared


def test_a_learned_merge_is_one_adapter_that_keeps_closer_to_both_than_the_direct_merge(
    base: Base, prepared: Path, trained: dict[str, Path], zipped: Path, tmp_path: Path
) -> None:
    pair = trained["content"], trained["style"]
    direct = verbs.merge(pair, tmp_path / "direct.safetensors", "direct")
    far = infidelity(base, prepared, direct, trained, tmp_path)
    assert infidelity(base, prepared, zipped, trained, tmp_path) < 0.9 * far
    assert read_adapter(zipped).metadata.method == "ziplora"
    assert {pair.rank for pair in read_adapter(zipped).layers.values()} == {8}


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("duolora", LEARNING),
        ("ziplora", {**LEARNING, "steps": 0, "init": "lstsq"}),
        ("ziplora", {**LEARNING, "axis": "rows", "init": "lstsq"}),
    ],
    ids=["duolora", "lstsq-columns", "lstsq-rows"],
)
def test_other_learned_merges_make_one_adapter_too(
    method: str,
    settings: dict[str, object],
    base: Base,
    toy: str,
    prepared: Path,
    trained: dict[str, Path],
    tmp_path: Path,
) -> None:
    pair = trained["content"], trained["style"]
    direct = verbs.merge(pair, tmp_path / "direct.safetensors", "direct")
    out = tmp_path / "out.safetensors"
    merged = verbs.merge(pair, out, method, toy, prepared, settings=settings)
    far = infidelity(base, prepared, direct, trained, tmp_path)
    assert infidelity(base, prepared, merged, trained, tmp_path) < far


def test_break_and_make_work_on_a_transformer(toy: str, prepared: Path, tmp_path: Path) -> None:
    short = {**TRAINING, "steps": 3}
    halves = [
        verbs.train(kind, prepared, name, tmp_path / kind / "a.safetensors", "b4m", toy,
                    settings=short)
        for kind, name in CONCEPTS.items()
    ]  # fmt: skip
    out = tmp_path / "made.safetensors"
    made = verbs.merge(halves, out, "b4m", toy, prepared, settings={"steps": 3})
    layers = read_adapter(made).layers
    joined = verbs.merge(halves, out, "b4m", toy, prepared, settings={"steps": 0})
    moved = [name for name, pair in read_adapter(joined).layers.items()
             if not torch.equal(pair.dense(), layers[name].dense())]  # fmt: skip
    assert len(moved) >= 14


def test_text_encoders_learn_beside_the_transformer(
    toy: str, prepared: Path, trained: dict[str, Path], tmp_path: Path
) -> None:
    settings = {**TRAINING, "steps": 3, "text_lr": 1e-2, "text_rank": 2}
    style = verbs.train(
        "style", prepared, "stripes", tmp_path / "text.safetensors", base=toy, settings=settings
    )
    merged = verbs.merge([trained["content"], style], tmp_path / "direct.safetensors", "direct")
    for file in (style, merged):
        networks = read_adapter(file).text_networks()
        assert set(networks) == {"text_encoder", "text_encoder_2"}
        for layers in networks.values():
            assert len(layers) == 2 * 6 + 1  # q, k, v, out and the MLP's two; the projection
            assert all(pair.norm() > 0 for pair in layers.values())


def test_a_sample_follows_its_adapter_and_its_seed_and_nothing_else(
    toy: str, base: Base, zipped: Path, prepared: Path, tmp_path: Path
) -> None:
    merged = read_adapter(zipped)
    prompts, seeds = ["a snq pot in w@z style"], [0, 1, 2]
    together = pixels(sample(base, prompts, seeds, deltas=merged, **SAMPLING))
    alone = pixels(sample(base, prompts, seeds, deltas=merged, batch_size=1, **SAMPLING))
    plain = pixels(sample(base, prompts, seeds, **SAMPLING))
    assert abs(together - alone).max() <= 1
    assert abs(together - plain).reshape(3, -1).max(axis=1).min() > 1
    assert abs(together[0] - together[1]).max() > 1
    written = [
        verbs.sample(tmp_path / name, [zipped], prepared, base=toy, seed=seeds, settings=SAMPLING)
        for name in ("one", "two")
    ]
    for seed in seeds:
        first, second = (sorted((f / "images").iterdir())[seed].read_bytes() for f in written)
        assert first == second


def test_klora_chooses_step_by_step(
    toy: str, trained: dict[str, Path], prepared: Path, tmp_path: Path
) -> None:
    pair = [trained["content"], trained["style"]]
    images = {}
    for combine in ("direct", "klora"):
        folder = verbs.sample(
            tmp_path / combine, pair, prepared, base=toy, combine=combine, settings=SAMPLING
        )
        images[combine] = pixels([Image.open(next((folder / "images").iterdir()))])
    assert abs(images["klora"] - images["direct"]).max() > 1


def test_what_the_family_does_not_know_is_refused_in_its_name(
    toy: str,
    prepared: Path,
    trained: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, pair = tmp_path / "no.safetensors", (trained["content"], trained["style"])
    with pytest.raises(B4MError, match="B-LoRA has found no groups in toy DiT"):
        verbs.merge(pair, out, "blora")
    with pytest.raises(B4MError, match="B-LoRA has found no groups in toy DiT"):
        verbs.train("content", prepared, "teapot", out, "blora", toy, settings=TRAINING)
    monkeypatch.setattr(type(FAMILY), "role_of", lambda self, module: "")
    with pytest.raises(B4MError, match="layer prior is not known for toy DiT"):
        verbs.merge(pair, out, "duolora", toy, prepared, settings=LEARNING)
    assert describe(trained["content"])["norm_by_role"] == {}
    assert not out.exists()


def test_adapters_of_two_families_do_not_merge(trained: dict[str, Path], tmp_path: Path) -> None:
    layer = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    other = write_adapter(
        tmp_path / "sdxl.safetensors", Adapter({layer: LowRank(torch.ones(4, 1), torch.ones(1, 4))})
    )
    with pytest.raises(B4MError, match=r"content\S* is for toy DiT, \S*sdxl\S* for SDXL"):
        verbs.merge([trained["content"], other], tmp_path / "no.safetensors", "direct")


def test_bases_of_no_family_are_refused_with_the_known_ones(toy: str, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "NoSuchPipeline"}')
    with pytest.raises(B4MError, match="NoSuchPipeline is of no known family .*SDXL.*toy DiT"):
        b4m.bases.load_base(str(tmp_path))
