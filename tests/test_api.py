"""The names that `import b4m` gives: few, light, and a merge in six lines."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import b4m
from b4m import verbs
from b4m.adapters.metadata import Metadata

STANDARD = sys.stdlib_module_names
LAYER = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"


def _adapter(seed: int, rank: int = 4, **metadata: str) -> b4m.Adapter:
    generator = torch.Generator().manual_seed(seed)
    up, down = (torch.randn(shape, generator=generator) for shape in ((64, rank), (rank, 48)))
    return b4m.Adapter({LAYER: b4m.LowRank(up, down)}, Metadata(**metadata))


def test_every_public_name_is_there() -> None:
    for name in b4m.__all__:
        assert getattr(b4m, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'mrege'"):
        b4m.mrege  # noqa: B018


def test_importing_the_package_imports_nothing_else() -> None:
    code = "import sys; before = set(sys.modules); import b4m; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ours = [name for name in done.stdout.split() if name.split(".")[0] not in STANDARD]
    assert ours == ["b4m"]


def test_two_files_are_merged_without_a_data_folder(tmp_path: Path) -> None:
    a, b, out = (tmp_path / f"{name}.safetensors" for name in ("a", "b", "merged"))
    b4m.write_adapter(a, _adapter(1))
    b4m.write_adapter(b, _adapter(2))

    content, style = b4m.read_adapter(a), b4m.read_adapter(b)
    merged = b4m.merge(content, style, method="svd", rank=3)
    b4m.write_adapter(out, merged)

    expected = content.layers[LAYER].dense() + style.layers[LAYER].dense()
    u, sigma, vt = torch.linalg.svd(expected.double())
    best = (u[:, :3] * sigma[:3]) @ vt[:3]
    written = b4m.read_adapter(out)
    assert written.layers[LAYER].rank == 3
    torch.testing.assert_close(written.layers[LAYER].dense().double(), best, atol=1e-4, rtol=1e-4)
    assert written.metadata.method == "svd"


def test_paths_and_adapters_give_the_same_merge_as_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("B4M_TRACKING", "off")
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    b4m.write_adapter(a, _adapter(1))
    b4m.write_adapter(b, _adapter(2))
    values = {"mu": 0.25, "weights": [-0.5, 1]}
    of_paths = b4m.write_adapter(
        tmp_path / "1.safetensors", b4m.merge(a, str(b), method="nplora", **values)
    )
    adapters = b4m.read_adapter(a), b4m.read_adapter(b)
    of_adapters = b4m.write_adapter(
        tmp_path / "2.safetensors", b4m.merge(*adapters, method="nplora", **values)
    )
    of_verb = verbs.merge([a, b], tmp_path / "3.safetensors", "nplora", settings=values)
    assert of_paths.read_bytes() == of_adapters.read_bytes() == of_verb.read_bytes()


def test_a_merge_refuses_in_one_sentence() -> None:
    content, style = _adapter(1), _adapter(2)
    with pytest.raises(b4m.B4MError, match=r"svd has no setting 'rnak'; the nearest is rank"):
        b4m.merge(content, style, method="svd", rnak=3)
    with pytest.raises(b4m.B4MError, match="unknown method 'magic'"):
        b4m.merge(content, style, method="magic")
    one, two = (
        _adapter(1, base_id="one", base_hash="1" * 64),
        _adapter(2, base_id="two", base_hash="2" * 64),
    )
    with pytest.raises(b4m.B4MError, match="for base one .* for two"):
        b4m.merge(one, two)
