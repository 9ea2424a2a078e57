"""Claim: files that are larger than memory may be are merged and converted layer by layer."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from b4m.files import read_adapter

RANK, BLOCKS = 64, 24  # 24 times an attention of FLUX.1: 4.7 M numbers each
MEASURED = """
import json, resource, sys
from b4m import verbs
from b4m.files import read
verb, arguments, in_memory = json.loads(sys.argv[1])
read.IN_MEMORY = in_memory
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
getattr(verbs, verb)(**arguments)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def flux_file(path: Path, seed: int) -> Path:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for block in range(BLOCKS):
        for name, rows in (("img_attn.qkv", 9216), ("img_mlp.0", 12288), ("img_mod.lin", 18432)):
            stem = f"diffusion_model.double_blocks.{block % 19}.{name}"
            stem = stem.replace("img", "txt") if block >= 19 else stem
            up = torch.randn(rows, RANK, generator=generator)
            tensors[f"{stem}.lora_B.weight"] = up.to(torch.bfloat16)
            down = torch.randn(RANK, 3072, generator=generator)
            tensors[f"{stem}.lora_A.weight"] = down.to(torch.bfloat16)
    save_file(tensors, path)
    return path


def memory(verb: str, in_memory: int, **arguments: object) -> int:
    """Bytes that a verb takes at its peak, beside what Python, torch and b4m take anyway."""
    call = json.dumps([verb, arguments, in_memory], default=str)
    command = [sys.executable, "-c", MEASURED, call]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1]) * 1024


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:rank 32 loses")
def test_a_large_merge_takes_the_memory_of_its_largest_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("B4M_TRACKING", "off")
    files = [flux_file(tmp_path / f"{seed}.safetensors", seed) for seed in (1, 2)]
    size = files[0].stat().st_size
    call = {"adapters": files, "dtype": "bfloat16"}
    outs = [tmp_path / "whole.safetensors", tmp_path / "lazy.safetensors"]
    whole, lazy = (
        memory("merge", limit, out=out, **call)
        for limit, out in zip((1 << 40, 0), outs, strict=True)
    )
    assert outs[0].read_bytes() == outs[1].read_bytes()
    assert lazy < 0.6 * size < size < whole
    assert lazy < 160e6
    for settings, out in (({"rank": 32}, "cut"), ({"auto_strength": True}, "strong")):
        file = tmp_path / f"{out}.safetensors"
        assert memory("merge", 0, out=file, settings=settings, **call) < 0.6 * size
        assert read_adapter(file).metadata.method == "direct"
    converted = tmp_path / "kohya.safetensors"
    assert memory("convert", 0, file=outs[1], out=converted, form="kohya") < 0.6 * size
