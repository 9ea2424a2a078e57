"""Every setting acts: for each method and field, another value gives another adapter or image.

Fields that say how a run is carried out, and leave its result as it is, are few; for each it is
shown what else it does.
"""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from b4m import verbs
from b4m.adapters.adapter import Adapter
from b4m.adapters.lowrank import LowRank
from b4m.bases.base import Base
from b4m.files import write_adapter
from b4m.methods import METHODS, TRAININGS, merge_rule, names, training
from b4m.plan import SUM
from b4m.settings import Settings, resolve
from b4m.verbs.sample import settings_of
from b4m.verbs.workspace import load
from tests import runs
from tests.methods.draws import adapters_of

EXECUTION = {
    *("precision", "gradient_checkpointing", "checkpoint_every", "sample_every"),
    *("sample_prompts", "sample_seeds"),
}
"""How a training or a learned merge is carried out. The rules do not see the precision: the verbs
load the base in it."""
ELSEWHERE = {
    *("keep", "patience", "validate_every", "validate_draws"),  # training/test_judging
    *("masked", "unmasked_weight", "shuffle_tags", "keep_tags"),  # training/test_shown
    *("prior_weight", "prior_images", "prior_folder"),  # training/test_shown
    *("buckets", "bucket_step"),  # training/test_buckets
}
"""What acts under conditions of its own, shown in tests of its own."""

MERGES = names("file")
SAMPLERS = [SUM, *names("images")]
FAST = {"rank": 2, "steps": 3, "batch_size": 2, "accumulation": 1, "lr": 1e-2}
LEARNED = {
    "b4m": {"steps": 3, "batch_size": 2, "accumulation": 1, "lr": 1e-2},
    "duolora": {"steps": 3, "bank": 3},
    "ziplora": {"steps": 3, "bank": 3},
    "ssr": {"bank": 3},
}
OTHER: dict[str, object] = {
    "accumulation": 2,
    "alpha": 10.0,
    "anchor": 5.0,
    "auto_strength": True,
    "axis": "rows",
    "bank": 4,
    "basis_scale": 0.5,
    "basis_seed": 1,
    "batch_size": 1,
    "beta": 100.0,
    "block_alphas": "attn2=1",
    "block_ranks": "attn2=1",
    "blocks": "attn2",
    "caption_dropout": 0.9,
    "clip": 1e-4,
    "cycle": 1.0,
    "damping": 1.0,
    "debiased": True,
    "density": 0.3,
    "ema_decay": 0.9,
    "error_of": "x0",
    "flip": True,
    "guidance": 2.0,
    "huber_delta": 1.0,
    "init": "lstsq",
    "loss": "huber",
    "lr": 2e-2,
    "lr_end": 0.5,
    "lr_other": 1e-3,
    "min_snr_gamma": 5.0,
    "mu": 2.0,
    "negative": "a red car",
    "noise_offset": 0.5,
    "optimizer": "lion",
    "pattern": "s*",
    "preconditioner": "plain",
    "prior": 1.0,
    "projection": "hard",
    "rank": 1,
    "rank_dropout": 0.5,
    "restarts": 1,
    "restyle": 0.5,
    "restyle_copies": 2,
    "restyle_words": "nonsense",
    "role": "content-up",
    "scale": 0.5,
    "schedule": "cosine",
    "score": "energy",
    "seed": 1,
    "similarity": 1.0,
    "space": "factors",
    "split": 0.25,
    "steps": 2,
    "t_density": "low-noise",
    "t_max": 0.5,
    "t_min": 0.5,
    "text_encoders": "second",
    "text_lr": 1e-2,
    "text_lr_2": 1e-3,
    "text_rank": 1,
    "text_rank_2": 1,
    "text_stop": 0.5,
    "up_lr_ratio": 4.0,
    "warmup": 2,
    "weight_decay": 0.9,
    "weights": (1.0, 0.5),
}
"""Another value of each field than the ones above and the defaults."""
NEEDS: dict[str, dict[str, object]] = {
    "huber_delta": {"loss": "huber"},
    "lr_end": {"schedule": "linear"},
    "restarts": {"schedule": "linear"},
    "restyle_copies": {"restyle": 0.9},
    "restyle_words": {"restyle": 0.9},
    "text_encoders": {"text_lr": 1e-2},
    "text_lr_2": {"text_lr": 1e-2},
    "text_rank": {"text_lr": 1e-2},
    "text_rank_2": {"text_lr": 1e-2},
    "text_stop": {"text_lr": 1e-2},
    "score": {"beta": 0.9},
}
"""What must be set for a field to act at all."""


def acting(fields: dict[str, object]) -> list[str]:
    return [name for name in fields if name not in EXECUTION | ELSEWHERE]


def table(methods: list[str], model: Callable[[str], type[Settings]]) -> list[tuple[str, str]]:
    return [(name, field) for name in methods for field in acting(model(name).model_fields)]


def tensors(adapter: Adapter) -> dict[str, torch.Tensor]:
    pairs = adapter.layers | adapter.text_layers
    parts = ("up", "down")
    return {f"{name}.{part}": getattr(pair, part) for name, pair in pairs.items() for part in parts}


def same(first: Adapter, second: Adapter) -> bool:
    one, two = tensors(first), tensors(second)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache of latents and captions for all; every run has other settings, so another key."""
    return tmp_path_factory.mktemp("work")


Trained = Callable[..., Adapter]


@pytest.fixture(scope="module")
def trained(base: Base, prepared: Path, work: Path) -> Trained:
    """Trains a content (or both) in one of the ways; the same call gives the same object."""

    @cache
    def train(way: str, **changes: object) -> Adapter:
        kind, concept = ("joint", "teapot+stripes") if way == "joint" else ("content", "teapot")
        settings = {**FAST, **({"lr_other": 1e-2} if way == "b4m" else {}), **changes}
        return runs.train(way, kind, prepared, concept, base, work, **settings)

    return train


def trainings() -> list[tuple[str, str]]:
    """What B-LoRA and joint training read is read by the code that plain LoRA shares with them."""
    every = table(list(TRAININGS), lambda way: training(way).settings)
    assert {f for way, f in every if way != "b4m"} == {f for way, f in every if way == "lora"}
    shared = {"rank", "lr", "seed", "blocks"}
    return [(way, field) for way, field in every if way in ("lora", "b4m") or field in shared]


@pytest.mark.parametrize(("way", "field"), trainings())
def test_a_setting_of_training_changes_the_adapter(trained: Trained, way: str, field: str) -> None:
    needed = NEEDS.get(field, {})
    assert not same(trained(way, **needed), trained(way, **{**needed, field: OTHER[field]}))


@pytest.fixture(scope="module")
def halves(base: Base, prepared: Path, work: Path) -> list[Adapter]:
    """What B4M's make joins."""
    return [
        runs.train("b4m", kind, prepared, concept, base, work, **FAST)
        for kind, concept in (("content", "teapot"), ("style", "stripes"))
    ]


@pytest.fixture(scope="module")
def merged(base: Base, prepared: Path, work: Path, halves: list[Adapter]) -> Callable[..., Adapter]:
    """Merges with one of the methods; the same call gives the same object."""

    @cache
    def merge(method: str, **changes: object) -> Adapter:
        both = halves if method == "b4m" else adapters_of(base)
        learned = LEARNED.get(method, {})
        settings = {**learned, **changes}
        given = (base, prepared, work) if METHODS[method].learned else ()
        return runs.merge(method, *both, *given, **settings)

    return merge


@pytest.mark.parametrize(("method", "field"), table(MERGES, lambda m: merge_rule(m).settings))
def test_a_setting_of_a_merge_changes_the_adapter(
    merged: Callable[..., Adapter], method: str, field: str
) -> None:
    needed = NEEDS.get(field, {})
    assert not same(merged(method, **needed), merged(method, **{**needed, field: OTHER[field]}))


@pytest.fixture(scope="module")
def files(base: Base, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A content and a style adapter; some layers have few large entries, others many small ones."""
    folder = tmp_path_factory.mktemp("files")
    paths = []
    for kind, adapter in zip(("content", "style"), adapters_of(base), strict=True):
        layers = {
            name: _spiky(pair) if (index % 2 == 0) == (kind == "content") else pair
            for index, (name, pair) in enumerate(adapter.layers.items())
        }
        path = folder / f"{kind}.safetensors"
        paths.append(write_adapter(path, Adapter(layers, adapter.metadata)))
    return paths


def _spiky(pair: LowRank) -> LowRank:
    """About the same sum of |entries|, in few of them."""
    return LowRank(pair.up * (torch.arange(len(pair.up)) % 8 == 0)[:, None] * 4.0, pair.down)


Sampled = Callable[..., bytes]


@pytest.fixture(scope="module")
def sampled(
    files: list[Path], tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sampled]:
    """Two images by one of the ways to combine adapters, as bytes."""
    patch = pytest.MonkeyPatch()
    patch.setenv("B4M_TRACKING", "off")
    folder = tmp_path_factory.mktemp("samples")

    @cache
    def sample(combine: str, **changes: object) -> bytes:
        out = verbs.sample(
            folder / str(len(list(folder.iterdir()))),
            files,
            prompt=["a snq teapot in w@z style"],
            seed=(0, 1),
            combine=combine,
            base=str(tiny_base),
            settings={"steps": 3, **changes},
        )
        images = sorted((out / "images").glob("*.png"))
        assert len(images) == 2
        return b"".join(np.asarray(Image.open(image)).tobytes() for image in images)

    yield sample
    patch.undo()


SAMPLING = [(way, field) for way in SAMPLERS for field in settings_of(way).model_fields]


@pytest.mark.parametrize(("way", "field"), [each for each in SAMPLING if each[1] != "batch_size"])
def test_a_setting_of_sampling_changes_the_images(sampled: Sampled, way: str, field: str) -> None:
    needed = NEEDS.get(field, {})
    value = "bf16" if field == "precision" else OTHER[field]
    assert sampled(way, **needed) != sampled(way, **{**needed, field: value})


@pytest.mark.parametrize("way", SAMPLERS)
def test_images_generated_together_are_those_generated_alone(
    sampled: Sampled, tiny_base: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load(str(tiny_base), resolve(settings_of(way), {}))
    calls: list[int] = []
    generate = type(base).generate

    def counted(self: Base, prompts: list[str], *rest: object, **options: object) -> object:
        calls.append(len(prompts))
        return generate(self, prompts, *rest, **options)

    monkeypatch.setattr(type(base), "generate", counted)
    # a seed of its own, so that nothing is taken from the calls before
    together, alone = (
        np.frombuffer(sampled(way, batch_size=size, guidance=3.5), np.uint8) for size in (2, 1)
    )
    assert calls == [2, 1, 1]
    assert np.abs(together.astype(int) - alone).max() <= 1


class Watch:
    """Looks at the working folder when numbers are reported, and keeps the steps of previews."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoints: list[int] = []
        self.images: list[int] = []

    def metrics(self, values: object, step: int) -> None:
        self.checkpoints.append(len(list(self.folder.glob("checkpoint-*.pt"))))

    def image(self, name: str, image: object, step: int) -> None:
        self.images.append(step)


def with_field(model: Callable[[str], type[Settings]], methods: list[str], field: str) -> list[str]:
    return [name for name in methods if field in model(name).model_fields]


@pytest.mark.parametrize("way", TRAININGS)
def test_checkpoints_and_previews_leave_the_adapter_as_it_is(
    base: Base, prepared: Path, tmp_path: Path, way: str
) -> None:
    kind, concept = ("joint", "teapot+stripes") if way == "joint" else ("content", "teapot")
    results = []
    for every in (0, 4):
        watch = Watch(tmp_path / str(every))
        settings = {**FAST, "steps": 11, "checkpoint_every": every, "sample_every": every}
        results.append(
            runs.train(way, kind, prepared, concept, base, watch.folder, watch, **settings)
        )
        assert bool(max(watch.checkpoints)) == bool(every)
        assert watch.images == ([4, 8] if every else [])
        assert not list(watch.folder.glob("checkpoint-*.pt"))
    assert same(*results)


@pytest.mark.parametrize(
    "method", with_field(lambda m: merge_rule(m).settings, MERGES, "checkpoint_every")
)
def test_checkpoints_leave_the_merge_as_it_is(
    base: Base, prepared: Path, tmp_path: Path, halves: list[Adapter], method: str
) -> None:
    both = halves if method == "b4m" else adapters_of(base)
    results = []
    for every in (0, 4):
        watch = Watch(tmp_path / str(every))
        settings = {**LEARNED[method], "steps": 11, "checkpoint_every": every}
        given = (base, prepared, watch.folder, watch)
        results.append(runs.merge(method, *both, *given, **settings))
        assert bool(max(watch.checkpoints)) == bool(every)
    assert same(*results)


@pytest.fixture
def forgetting(base: Base) -> Iterator[list[bool]]:
    """Whether activations are being forgotten, at every call of the base's middle block."""
    seen: list[bool] = []
    middle = base.model.get_submodule("mid_block")
    handle = middle.register_forward_hook(lambda one, *_: seen.append(one.gradient_checkpointing))
    try:
        yield seen
    finally:
        handle.remove()


@pytest.mark.parametrize("way", TRAININGS)
def test_gradient_checkpointing_leaves_the_adapter_as_it_is(
    trained: Trained, way: str, forgetting: list[bool]
) -> None:
    saving = trained(way, gradient_checkpointing=True)
    assert all(forgetting)
    assert forgetting
    _close(saving, trained(way))


@pytest.mark.parametrize(
    "method", with_field(lambda m: merge_rule(m).settings, MERGES, "gradient_checkpointing")
)
def test_gradient_checkpointing_leaves_the_merge_as_it_is(
    merged: Callable[..., Adapter], method: str, forgetting: list[bool]
) -> None:
    saving = merged(method, gradient_checkpointing=True)
    assert any(forgetting)
    _close(saving, merged(method))


def _close(first: Adapter, second: Adapter) -> None:
    for name, pair in first.layers.items():
        torch.testing.assert_close(pair.dense(), second.layers[name].dense(), rtol=1e-3, atol=1e-5)
