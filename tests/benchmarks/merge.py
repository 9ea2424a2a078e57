"""How fast and how large merging is: ours beside PEFT and the naive dense way, in one process.

    python -m tests.benchmarks.merge                                closed forms, SDXL's 560 layers
    python -m tests.benchmarks.merge --base data/models/mini-sdxl   and learned merges on a base
    python -m tests.benchmarks.merge --device cuda --full-unet      and on a random SDXL UNet
    python -m tests.benchmarks.merge --tiny --full-unet             all of it, small: does it run?

Run it in the root of the checkout. It needs torch, diffusers, transformers, peft and accelerate,
and no model weights but those of --base. It prints markdown tables and writes all numbers as JSON.

Learned merges are compared at equal work: the same base, adapters, bank, order and optimizer, and
the table says by how much the two loss curves differ. "s / pair" is 100 steps; ours includes the
teachers' forwards for the 32 entries of the default bank.
"""

import argparse
import gc
import json
import os
import platform
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import b4m
from b4m.adapters.adapter import Adapter
from b4m.bases.base import Base
from b4m.bases.sdxl.blocks import role_of, sdxl_linear_shapes
from b4m.files import write_adapter
from b4m.merging.context import MergeContext
from b4m.merging.layerwise import Pairs, paired
from b4m.merging.mask_learning import MaskedMerge, learn
from b4m.merging.recording import start_by_least_squares
from b4m.merging.teacher_bank import Bank
from b4m.methods.duolora import DuoLoss, start_by_prior
from b4m.methods.ziplora import ZipLoss
from b4m.settings import MaskSettings
from tests import runs
from tests.benchmarks.random_world import random_adapter, random_bank, random_sdxl
from tests.methods.naive import NaiveMerge, naive

GIB = 2**30
DEFAULT_BANK = 32
STEPS_PER_PAIR = 100
CLOSED = ("direct", "nplora", "ties", "dare", "svd")
ZIP, DUO = "ziplora columns", "duolora"


def main() -> None:
    """Run what the flags ask for."""
    flags = _flags()
    torch.manual_seed(0)
    if flags.threads:
        torch.set_num_threads(flags.threads)
    results: dict[str, Any] = {"machine": _machine(flags)}
    print(json.dumps(results["machine"]))
    if not flags.skip_closed:
        results["closed_forms"] = closed_forms(flags)
        _write(flags.out, results)
    if flags.base:
        from b4m.bases import load_base

        base = load_base(flags.base, device=flags.device)
        results[f"learned on {flags.base}"] = learned(base, 8, flags, checkpointing=False)
    if flags.full_unet:
        base = random_sdxl(torch.device(flags.device), "small" if flags.tiny else "full")
        rank = 4 if flags.tiny else flags.rank
        for checkpointing in (True, False):
            title = f"learned on a random SDXL UNet, gradient checkpointing {checkpointing}"
            try:
                results[title] = learned(base, rank, flags, checkpointing)
            except torch.OutOfMemoryError as error:
                print(f"\n{title}: {error}")
                results[title] = str(error)
            _write(flags.out, results)
    _write(flags.out, results)
    print(f"\nall numbers: {flags.out}")


def closed_forms(flags: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds per pair of each closed form on all layers, and PEFT's svd on one of each shape."""
    shapes = sdxl_linear_shapes()
    if flags.tiny:
        shapes = {name: (32, 48) for name in list(shapes)[:8]}
    rows = []
    for device in dict.fromkeys(("cpu", flags.device)):
        content, style = (random_adapter(shapes, flags.rank, seed, device) for seed in (1, 2))
        for method in CLOSED:
            run = partial(runs.merge, method, content, style)
            rank = max(pair.rank for pair in run().layers.values())  # and warms up
            seconds = _timed(run, device)
            what = f"{method}, {len(shapes)} layers"
            row = {"what": what, "device": device, "s / pair": seconds, "result rank": rank}
            rows.append(row | {"peak GiB": _peak(device)})
    content, style = (random_adapter(shapes, flags.rank, seed, "cpu") for seed in (1, 2))
    rows += bytes_on_disk(content, style)
    rows += peft_svd(shapes, flags)
    _table("Closed forms, rank " + str(flags.rank), rows)
    return rows


def peft_svd(shapes: dict[str, tuple[int, int]], flags: argparse.Namespace) -> list[dict[str, Any]]:
    """PEFT's svd merge of one layer of each shape, times the number of such layers."""
    from peft import LoraConfig, get_peft_model

    rows, total = [], 0.0
    for (rows_O, columns_I), count in Counter(shapes.values()).items():
        model = nn.Sequential(nn.Linear(columns_I, rows_O, bias=False))
        rank = min(flags.rank, rows_O, columns_I)
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=["0"], init_lora_weights=False)
        wrapped = get_peft_model(model, config, adapter_name="content")
        wrapped.add_adapter("style", config)
        merge_svd = partial(
            wrapped.base_model.add_weighted_adapter,
            ["content", "style"],
            [1.0, 1.0],
            "merged",
            combination_type="svd",
            svd_rank=rank,
        )
        seconds = _timed(merge_svd, "cpu")
        total += seconds * count
        rows.append({"what": f"PEFT svd, 1 layer {rows_O} x {columns_I}", "device": "cpu",
                     "s / pair": seconds, "peak GiB": _peak("cpu")})  # fmt: skip
    rows.append({"what": f"PEFT svd, {len(shapes)} layers (scaled from one of each shape)",
                 "device": "cpu", "s / pair": total, "peak GiB": _peak("cpu")})  # fmt: skip
    return rows


def bytes_on_disk(content: Adapter, style: Adapter) -> list[dict[str, Any]]:
    """The merged file, and what the dense O x I matrices would take in the same 16 bits."""
    merged = runs.merge("direct", content, style)
    dense = sum(p.out_features * p.in_features for p in merged.layers.values())
    factors = sum(p.up.numel() + p.down.numel() for p in merged.layers.values())
    with tempfile.TemporaryDirectory() as folder:
        file = write_adapter(Path(folder) / "merged.safetensors", merged, dtype="bfloat16")
        size = file.stat().st_size
    return [
        {"what": "merged file, 16 bit", "bytes on disk": size},
        {"what": "dense dW on disk, 16 bit", "bytes on disk": 2 * dense},
        {"what": "frozen weights of a learned merge, factors", "bytes": 2 * factors},
        {"what": "frozen weights of a learned merge, dense (two dW)", "bytes": 4 * dense},
    ]


def learned(
    base: Base, rank: int, flags: argparse.Namespace, checkpointing: bool
) -> list[dict[str, Any]]:
    """Ours and the naive way on one base: seconds per step and pair, peak memory, loss curves."""
    shapes = {n: (m.out_features, m.in_features) for n, m in base.linears().items()}
    adapters = [random_adapter(shapes, rank, seed, str(base.device), 0.08) for seed in (1, 2)]
    adapters = [Adapter({n: p.to(dtype=base.dtype) for n, p in a.layers.items()}) for a in adapters]
    pairs = paired(adapters[0].layers, adapters[1].layers)
    bank = random_bank(base, entries=4)
    unet: Any = base.model
    if checkpointing:
        unet.enable_gradient_checkpointing()
    else:
        unet.disable_gradient_checkpointing()
    rows = []
    for method in (ZIP, DUO):
        ours = measure_ours(base, pairs, bank, method, flags)
        theirs = measure_naive(base, pairs, bank, method, flags)
        curves = zip(ours.pop("losses"), theirs.pop("losses"), strict=True)
        ours["faster per step"] = theirs["s / step"] / ours["s / step"]
        ours["faster per pair"] = theirs["s / pair"] / ours["s / pair"]
        ours["loss differs by"] = max(abs(a - b) / abs(b) for a, b in curves)
        rows += [ours, theirs]
    _table(f"Learned merges, {base.parameters / 1e6:.0f}M UNet, {base.pixels} px, {base.dtype}, "
           f"rank {rank}, gradient checkpointing {checkpointing}", rows)  # fmt: skip
    if not checkpointing:
        starts = [row for method in (ZIP, DUO) for row in least_squares(base, pairs, method, flags)]
        _table("Least-squares start beside gradient steps", starts)
        rows += starts
    return rows


def measure_ours(
    base: Base, pairs: Pairs, bank: Bank, method: str, flags: argparse.Namespace
) -> dict[str, Any]:
    """Teachers once, then steps of the engine."""
    device = base.device.type
    _reset_peak(device)
    state = MaskedMerge(base, pairs, "rank" if method == DUO else "columns")
    losses: list[float] = []
    try:
        teacher_prediction = _timed(
            lambda: _loss(state, bank, method), device
        )  # the first call warms up
        teacher_prediction = min(
            teacher_prediction, _timed(lambda: _loss(state, bank, method), device)
        ) / len(bank)
        loss = _loss(state, bank, method)
        parameters = list(state.parameters().values())
        optimizer = torch.optim.Adam(parameters, lr=0.01)

        def step(index: int) -> None:
            rows = [index % len(bank)]
            value = loss(*state.predictions(state.adapted, bank, rows), rows)["loss"].mean()
            optimizer.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            losses.append(float(value.detach()))

        seconds = _per_step(step, flags.steps, device)
    finally:
        state.close()
    pair = teacher_prediction * DEFAULT_BANK + seconds * STEPS_PER_PAIR
    return {"what": f"{method}, ours", "s / step": seconds,
            "s / entry of the bank": teacher_prediction,
            "s / pair": pair, "peak GiB": _peak(device), "losses": losses}  # fmt: skip


def measure_naive(
    base: Base, pairs: Pairs, bank: Bank, method: str, flags: argparse.Namespace
) -> dict[str, Any]:
    """All forwards at every step, dense dW."""
    device = base.device.type
    _reset_peak(device)
    losses: list[float] = []
    with naive(base, pairs, "rank" if method == DUO else "columns", bank) as state:
        steps = state.train(_naive_losses(state, bank, method), lr=0.01, clip=1.0)
        seconds = _per_step(lambda index: losses.append(next(steps)), flags.steps, device)
    return {"what": f"{method}, naive dense", "s / step": seconds,
            "s / pair": seconds * STEPS_PER_PAIR, "peak GiB": _peak(device),
            "losses": losses}  # fmt: skip


def least_squares(
    base: Base, pairs: Pairs, method: str, flags: argparse.Namespace
) -> list[dict[str, Any]]:
    """Losses over a bank: at the start, after least squares, after 100 gradient steps."""
    bank = random_bank(base, entries=8)
    steps = 10 if flags.tiny else STEPS_PER_PAIR
    device = base.device.type
    rows = []
    for start in ("as the method starts", "least squares", f"{steps} gradient steps"):
        state = MaskedMerge(base, pairs, "rank" if method == DUO else "columns")
        try:
            loss = _loss(state, bank, method)
            seconds = 0.0
            if start == "least squares":
                start_by_least_squares(state, bank)
                seconds = _timed(partial(start_by_least_squares, state, bank), device)
            elif method == DUO:
                start_by_prior(state)
            if start.endswith("gradient steps"):
                with tempfile.TemporaryDirectory() as folder:
                    settings = MaskSettings(steps=steps, checkpoint_every=0)
                    context = MergeContext(settings, workdir=Path(folder))
                    seconds = _timed(partial(learn, state, bank, loss, context, method), device)
            rows.append(
                {"what": f"{method}: {start}", "s": seconds, **_mean_losses(state, bank, loss)}
            )
        finally:
            state.close()
    return rows


def _loss(state: MaskedMerge, bank: Bank, method: str) -> ZipLoss | DuoLoss:
    if method == DUO:
        return DuoLoss(state, bank, cycle=0.01, prior=0.1)
    return ZipLoss(state, bank, similarity=0.01)


def _naive_losses(state: NaiveMerge, bank: Bank, method: str) -> Iterator[torch.Tensor]:
    leads = {name: role_of(name) for name in state.layers}
    index = 0
    while True:
        row = index % len(bank)
        yield state.duo_loss(row, 0.01, 0.1, leads) if method == DUO else state.zip_loss(row, 0.01)
        index += 1


@torch.no_grad()
def _mean_losses(state: MaskedMerge, bank: Bank, loss: ZipLoss | DuoLoss) -> dict[str, float]:
    sums: Counter[str] = Counter()
    for row in range(len(bank)):
        losses = loss(*state.predictions(state.adapted, bank, [row]), [row])
        sums.update({key: float(value.mean()) for key, value in losses.items()})
    means = {key: total / len(bank) for key, total in sums.items()}
    return {"fidelity": means["content"] + means["style"], **means}


def _per_step(step: Callable[[int], None], steps: int, device: str, warm: int = 2) -> float:
    for index in range(warm):
        step(index)
    start = _now(device)
    for index in range(steps):
        step(warm + index)
    return (_now(device) - start) / steps


def _timed(call: Callable[[], object], device: str) -> float:
    start = _now(device)
    call()
    return _now(device) - start


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _reset_peak(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _peak(device: str) -> float:
    """Peak GiB: of the allocations since the last reset on CUDA, of the process elsewhere."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def _machine(flags: argparse.Namespace) -> dict[str, Any]:
    import diffusers
    import peft

    return {
        "device": torch.cuda.get_device_name() if flags.device == "cuda" else "cpu",
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "peft": peft.__version__,
        "b4m": b4m.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def _table(title: str, rows: list[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    print(f"\n### {title}\n\n| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    for row in rows:
        cells = [row.get(column, "") for column in columns]
        texts = [f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells]
        print(f"| {' | '.join(texts)} |", flush=True)


def _write(path: str, results: dict[str, Any]) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(results, indent=1), encoding="utf-8")


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="benchmark of the merge methods")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--base", default="", help="diffusers folder for learned merges")
    parser.add_argument("--full-unet", action="store_true", help="random SDXL UNet, 1024 px")
    parser.add_argument("--skip-closed", action="store_true", help="learned merges only")
    parser.add_argument("--tiny", action="store_true", help="small shapes: a dry run")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5, help="timed steps")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves torch's")
    parser.add_argument("--out", default="runs/benchmarks/merge.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
