"""Claims of large adapters: layers are read, changed and written singly, to the same bits."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from b4m import verbs
from b4m.adapters.adapter import Adapter
from b4m.adapters.lazy import is_lazy
from b4m.errors import B4MError
from b4m.files import read, read_together, with_rank, write_adapter

LAYERS = {
    "flux1": {
        "double_blocks_0_img_attn_qkv": (9216, 3072),
        "single_blocks_3_linear2": (3072, 15360),
        "single_blocks_3_linear1": (21504, 3072),
    },
    "z-image": {
        "layers_7_attention_qkv": (11520, 3840),
        "layers_7_feed_forward_w1": (10240, 3840),
    },
}
WAYS: dict[str, Callable[[Adapter, Adapter], Adapter]] = {
    "one": lambda first, second: first,
    "scaled": lambda first, second: first.scale(0.5),
    "sum": lambda first, second: first + second,
    "one rank": lambda first, second: with_rank(first + second, 3),
    "all layers": lambda first, second: Adapter(first.every(), first.metadata),
}


def kohya_file(base: str, path: Path, seed: int) -> Path:
    """Layers of ranks 1 to 3 as trainers on the original code name them, with an alpha of 1."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for number, (name, (rows, columns)) in enumerate(LAYERS[base].items()):
        stem, rank = f"lora_unet_{name}", 1 + (number + seed) % 3
        tensors[f"{stem}.lora_up.weight"] = torch.randn(rows, rank, generator=generator)
        tensors[f"{stem}.lora_down.weight"] = torch.randn(rank, columns, generator=generator)
        tensors[f"{stem}.alpha"] = torch.tensor(1.0)
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("form", ["", "diffusers", "comfyui"])
@pytest.mark.parametrize("base", LAYERS)
@pytest.mark.filterwarnings("ignore:rank 3 loses")
@pytest.mark.parametrize("way", WAYS)
def test_lazy_layers_give_the_same_file(
    way: str, base: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [kohya_file(base, tmp_path / f"{k}.safetensors", k) for k in (0, 1)]
    written = []
    for largest in (1 << 40, 0):
        monkeypatch.setattr(read, "IN_MEMORY", largest)
        both = read_together(files)
        assert is_lazy(both[0].layers) == (largest == 0)
        result = WAYS[way](*both)
        assert is_lazy(result.layers) == (largest == 0)
        written.append(write_adapter(tmp_path / f"{largest}.safetensors", result, form))
    assert written[0].read_bytes() == written[1].read_bytes()


@pytest.mark.filterwarnings("ignore:rank")
@pytest.mark.parametrize("strong", [False, True])
@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("direct", {"weights": [1, -0.5]}),
        ("direct", {"rank": 2}),
        ("svd", {}),
        ("ties", {"rank": 3}),
        ("ties", {"space": "factors"}),
        ("dare", {"rank": 2}),
        ("dare", {"space": "factors"}),
        ("tsv", {}),
        ("nplora", {}),
    ],
)
def test_closed_merges_of_lazy_layers_give_the_same_file(
    method: str,
    settings: dict[str, object],
    strong: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("B4M_TRACKING", "off")
    files = [kohya_file("z-image", tmp_path / f"{k}.safetensors", k) for k in (0, 1)]
    written = []
    for largest in (1 << 40, 0):
        monkeypatch.setattr(read, "IN_MEMORY", largest)
        out, values = tmp_path / "out.safetensors", settings | {"auto_strength": strong}
        written.append(verbs.merge(files, out, method, settings=values).read_bytes())
    assert written[0] == written[1]


def test_a_file_that_is_replaced_while_it_is_read_is_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read, "IN_MEMORY", 0)
    file = kohya_file("flux1", tmp_path / "a.safetensors", 0)
    (lazy,) = read_together([file])
    before = lazy.loaded()
    write_adapter(file, lazy.scale(2.0))  # onto itself
    for name, pair in lazy.layers.items():
        assert torch.equal(pair.up, before.layers[name].up)
    (after,) = read_together([file])
    for name, pair in after.layers.items():
        torch.testing.assert_close(pair.up, 2 * before.layers[name].up)


def test_a_file_that_is_cut_while_it_is_read_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read, "IN_MEMORY", 0)
    file = kohya_file("flux1", tmp_path / "a.safetensors", 0)
    (lazy,) = read_together([file])
    with file.open("r+b") as stream:
        stream.truncate(5000)
    with pytest.raises(B4MError, match="was cut while it was read"):
        write_adapter(tmp_path / "b.safetensors", lazy)
    assert list(tmp_path.iterdir()) == [file]
