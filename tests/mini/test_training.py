"""The trainings of the offline world: whitening, resuming, and the files that they leave."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import b4m  # noqa: F401  (the torchvision guard)
from b4m.mini import sdxl, vae
from b4m.mini.recipe import Schedule
from b4m.mini.run import Run, learning_rate
from tests.mini import two_processes

SCHEDULE = Schedule(steps=12, minutes=60, batch=4, lr=0.05, ema=0.9, warmup=3)


def test_the_learning_rate_rises_then_falls_to_zero() -> None:
    rates = [learning_rate(SCHEDULE, step, step / SCHEDULE.steps) for step in range(13)]
    assert rates[0] == pytest.approx(SCHEDULE.lr / 3)
    assert max(rates) <= SCHEDULE.lr
    assert rates[-1] == pytest.approx(0.0, abs=1e-12)


def _fit(work: Path, steps: int) -> Run:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    run = Run("line", {"model": model}, SCHEDULE, work)

    def loss_of_step(step: int) -> torch.Tensor:
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step)).to(run.dtype)
        if step == steps:
            raise KeyboardInterrupt
        return (run.working["model"](x).float() - x.float().sum(1, keepdim=True)).square().mean()

    try:
        run.fit(loss_of_step, checkpoint_seconds=0.0)
    except KeyboardInterrupt:
        pass
    return run


def test_a_training_that_was_stopped_ends_as_one_that_was_not(tmp_path: Path) -> None:
    whole = _fit(tmp_path / "whole", steps=-1)
    _fit(tmp_path / "broken", steps=7)
    resumed = _fit(tmp_path / "broken", steps=-1)
    assert resumed.step == whole.step == 12
    for first, second in zip(whole.parameters, resumed.parameters, strict=True):
        assert torch.equal(first, second)
    averaged = [list(run.averaged["model"].parameters()) for run in (whole, resumed)]
    assert all(torch.equal(a, b) for a, b in zip(*averaged, strict=True))


def test_whitened_latents_have_unit_variance_and_decode_to_the_same_pictures() -> None:
    torch.manual_seed(0)
    model = sdxl.build_vae(sdxl.TINY).eval()
    pictures = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    x = pictures.float() / 127.5 - 1.0
    with torch.no_grad():
        before = model.decode(model.encode(x).latent_dist.mean).sample
        vae._whiten(model, pictures)
        latents = model.encode(x).latent_dist.mean
        after = model.decode(latents).sample
    assert latents.mean((0, 2, 3)).abs().max() < 1e-4
    assert (latents.std((0, 2, 3)) - 1).abs().max() < 1e-3
    assert (after - before).abs().max() < 1e-4


def test_psnr_is_that_of_the_definition() -> None:
    class Shift:
        """Decodes everything a tenth of the range too bright."""

        class _Mean:
            def __init__(self, x: torch.Tensor) -> None:
                self.latent_dist = type("Dist", (), {"mean": x})

        def encode(self, x: torch.Tensor) -> "Shift._Mean":
            return self._Mean(x)

        def decode(self, x: torch.Tensor) -> object:
            return type("Out", (), {"sample": x + 0.2})

    pictures = torch.full((2, 3, 8, 8), 100, dtype=torch.uint8)
    assert vae.psnr(Shift(), pictures) == pytest.approx(torch.tensor([20.0, 20.0]), abs=1e-3)


def test_two_processes_train_as_one_with_both_batches(tmp_path: Path) -> None:
    script = Path(__file__).with_name("two_processes.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    free = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    subprocess.run(
        [*command, *free, str(script), str(tmp_path)], check=True, env=environment, timeout=240
    )
    both = torch.load(tmp_path / "line.checkpoint.pt", weights_only=True)
    alone = two_processes.fit(tmp_path / "alone", lambda draw: (2 * draw, 2 * draw + 1))
    half = two_processes.fit(tmp_path / "half", lambda draw: (2 * draw,))
    for name, weight in alone.models["model"].state_dict().items():
        found = both["models"]["model"][name]
        assert torch.allclose(found, weight, atol=2e-3)
        assert not torch.allclose(half.models["model"].state_dict()[name], weight, atol=2e-3)
