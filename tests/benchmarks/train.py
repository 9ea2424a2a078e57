"""How fast and how large training is: ours beside what it replaces, at equal loss curves.

    python -m tests.benchmarks.train                              on mini-SDXL
    python -m tests.benchmarks.train --tiny --steps 4             tiny and random: does it run?
    python -m tests.benchmarks.train --base FOLDER --rank 64      on another base

Run it in the root of the checkout, on one prepared folder that it makes itself. Two pairs:

    lora    beside the arithmetic of diffusers' train_text_to_image_lora_sdxl.py: in every step the
            VAE encodes the images and the text encoders the captions, PEFT's layers carry the
            adapter
    break   beside that of the scripts released with B4M: in every step the VAE encodes the image
            and its three partners, each has a forward and a backward of its own

Every variant is a process of its own, so its peak memory is its own; seconds are CPU seconds of all
its threads from the first step to the last, which other processes on the machine change little, and
wall seconds beside them. All draw the same images, latents, noise and times, so the loss curves are
the same up to rounding; the table says by how much they differ.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from b4m.adapters.attach import AdaptedModel
from b4m.bases import load_base
from b4m.bases.base import Base, Conditioning
from b4m.data.images import fit_square, load_image
from b4m.data.prepare import prepare
from b4m.methods import break_for_make, training
from b4m.training.loop import Batch
from b4m.training.losses import Noise, denoising_losses
from b4m.training.plain import start_pairs
from b4m.training.randomness import ShuffledIndices, derive_seed
from b4m.training.report import peak_gib
from b4m.training.run import Run
from tests import runs
from tests.data.worlds import write_user_folder

VARIANTS = ("lora ours", "lora naive", "break ours", "break naive")
Step = Callable[[Batch], float]


def main() -> None:
    """Time each variant in a process of its own and print the table."""
    flags = _flags()
    if flags.only:
        print(json.dumps(measure(flags.only, flags)))
        return
    results: dict[str, Any] = {}
    for _ in range(flags.rounds):
        for variant in VARIANTS:
            one = _apart(variant)
            best = results.setdefault(variant, one)
            if one["cpu_s"] < best["cpu_s"]:
                results[variant] = one
    print("| variant | CPU s / step | wall s / step | peak GiB | loss curve differs by |")
    print("|---|---|---|---|---|")
    for variant, one in results.items():
        naive = results[variant.replace("ours", "naive")]
        gap = max(abs(a - b) / abs(b) for a, b in zip(one["losses"], naive["losses"], strict=True))
        numbers = f"{one['cpu_s']:.3f} | {one['wall_s']:.3f} | {one['gib']:.2f} | {gap:.1e}"
        print(f"| {variant} | {numbers} |")
    for way in ("lora", "break"):
        ours, naive = results[f"{way} ours"], results[f"{way} naive"]
        print(f"{way}: {naive['cpu_s'] / ours['cpu_s']:.2f} times as fast")
    if flags.out:
        flags.out.write_text(json.dumps(results, indent=2))


def measure(variant: str, flags: argparse.Namespace) -> dict[str, Any]:
    """Train with one variant; seconds per step, peak memory and the losses of every step."""
    way, who = variant.split()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = _base(flags, folder)
        data = prepare(write_user_folder(folder / "own"), folder / "data", "teapot", "stripes")
        settings = {
            "rank": flags.rank,
            "steps": flags.steps,
            "batch_size": flags.batch_size,
            "accumulation": 1,
            "lr": 1e-3,
            "checkpoint_every": 0,
        }
        method = "lora" if way == "lora" else "b4m"
        run = runs.open_run(method, "style", data, "stripes", base, folder / "work", **settings)
        if who == "ours":
            return _ours(method, run)
        make = naive_lora if way == "lora" else naive_break
        return _timed(make(run), run)


class Watch:
    """Notes every step's loss, and when the first and the last step ended."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.clock: list[tuple[float, float]] = []

    def step(self, loss: float) -> None:
        """One step is over."""
        self.losses.append(loss)
        self.clock.append((time.process_time(), time.perf_counter()))

    def result(self) -> dict[str, Any]:
        """Seconds per step without the first, which warms up."""
        steps = len(self.clock) - 1
        cpu, wall = (
            (last - first) / steps
            for first, last in zip(self.clock[0], self.clock[-1], strict=True)
        )
        return {
            "cpu_s": cpu,
            "wall_s": wall,
            "gib": peak_gib(),
            "losses": self.losses,
        }


def _ours(method: str, run: Run[Any]) -> dict[str, Any]:
    from b4m.training import loop

    watch, finite = Watch(), loop._finite

    def noted(*arguments: Any) -> dict[str, float]:
        values = finite(*arguments)
        watch.step(values["loss"])
        return values

    loop._finite = noted
    training(method).train(run)
    return watch.result()


def _timed(step: Step, run: Run[Any]) -> dict[str, Any]:
    watch, settings = Watch(), run.settings
    order = ShuffledIndices(len(run.trained()), settings.batch_size, settings.seed)
    for position in range(settings.steps):
        seed = derive_seed(settings.seed, "noise", position, 0)
        generator = torch.Generator().manual_seed(seed)
        rows = order.batch(position)
        watch.step(step(Batch(rows, position, generator, rows, slice(None), generator)))
    return watch.result()


def encoded(run: Run[Any], role: str, rows: list[int], generator: torch.Generator) -> Any:
    """Latents and conditioning of images, made anew from pixels and words."""
    base, listed = run.base, run.trained(role)
    with torch.no_grad():
        images = [fit_square(load_image(run.folder / listed[r].file), base.pixels) for r in rows]
        mean_BCHW, std_BCHW = base.encode_images(images)
        text = base.encode_prompts([listed[row].caption for row in rows])
    torch.randint(1, (len(rows),), generator=generator)  # the turn that ours draws: no flips
    return mean_BCHW + std_BCHW * torch.randn(mean_BCHW.shape, generator=generator), text


def naive_lora(run: Run[Any]) -> Step:
    """A step of the diffusers script, on PEFT's layers with our start."""
    from peft import LoraConfig, inject_adapter_in_model

    base, settings, linears = run.base, run.settings, run.linears()
    starts = start_pairs(run, linears)
    base.model.requires_grad_(False)
    rank = settings.rank
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(linears))
    model = inject_adapter_in_model(config, base.model)
    for name, start in starts.items():
        layer: Any = model.get_submodule(name)
        layer.lora_A["default"].weight.data.copy_(start.down)
        layer.lora_B["default"].weight.data.copy_(start.up)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=settings.lr, weight_decay=settings.weight_decay)

    def step(batch: Batch) -> float:
        x0_BCHW, text = encoded(run, "train", batch.rows, batch.generator)
        noise = Noise.sample(base, len(batch.rows), batch.generator)
        loss = denoising_losses(model, base, x0_BCHW, noise, text).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, settings.clip)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def naive_break(run: Run[Any]) -> Step:
    """A step of the released scripts as they are meant: four forwards, four backwards."""
    base, settings = run.base, run.settings
    main = break_for_make.main_factor(run.kind, settings.role)
    other = "up" if main == "down" else "down"
    plps = break_for_make._start(run)
    blocks = {
        factor: [getattr(plp, f"{factor}_learnable") for plp in plps.values()]
        for factor in (main, other)
    }
    rates = {main: settings.lr, other: settings.lr_other}
    optimizers = [
        torch.optim.AdamW(blocks[f], lr=rates[f], weight_decay=settings.weight_decay)
        for f in blocks
    ]
    model = AdaptedModel(base.model, plps)
    count = min(len(run.trained("partner")), break_for_make.PARTNERS_AT_ONCE)
    order = ShuffledIndices(len(run.trained("partner")), count, settings.seed, "partners")

    def backward(learning: str, x0: Tensor, noise: Noise, text: Conditioning, share: int) -> float:
        for factor, parameters in blocks.items():
            for parameter in parameters:
                parameter.requires_grad_(factor == learning)
        loss = denoising_losses(model, base, x0, noise, text).mean() / share
        loss.backward()
        return float(loss.detach())

    def step(batch: Batch) -> float:
        size = len(batch.rows)
        x0, text = encoded(run, "train", batch.rows, batch.generator)
        noise = Noise.sample(base, size, batch.generator)
        partners = encoded(run, "partner", order.batch(batch.position), batch.generator)
        total = backward(main, x0, noise, text, 1)
        for index in range(count):
            row = slice(index, index + 1)
            its = noise[[index % size]]
            total += backward(other, partners[0][row], its, partners[1][row], count)
        for factor in blocks:
            torch.nn.utils.clip_grad_norm_(blocks[factor], settings.clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return total

    return step


def _base(flags: argparse.Namespace, folder: Path) -> Base:
    if flags.tiny:
        from b4m.testing import write_tiny_base

        return load_base(str(write_tiny_base(folder / "tiny")), device=flags.device)
    return load_base(flags.base, device=flags.device)


def _apart(variant: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.benchmarks.train", *sys.argv[1:], "--only", variant]
    environment = os.environ | {"B4M_PROGRESS": "off", "B4M_TRACKING": "off"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--base", default="data/models/mini-sdxl", help="folder of a base")
    parser.add_argument("--tiny", action="store_true", help="a tiny random base instead")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2, help="the fastest of so many counts")
    parser.add_argument("--out", type=Path, help="JSON file for all numbers")
    parser.add_argument("--only", choices=VARIANTS, help="one variant, in this process")
    return parser.parse_args()


if __name__ == "__main__":
    main()
