"""Train low-rank pairs on images and captions with AdamW: what LoRA, B-LoRA and joint do.

They differ only in which linears get a pair and which images are shown.
"""

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor, nn

from b4m.adapters.adapter import Adapter
from b4m.adapters.deltas import LoRADelta, LowRankDelta
from b4m.settings import TrainSettings
from b4m.training.loop import Batch, ParameterGroup, fit
from b4m.training.run import Run, adapted, exported, loop_config
from b4m.training.text_layers import text_layers
from b4m.training.training_set import Noise, denoising_losses, read_training_set


class PairSettings(TrainSettings):
    """What a training of plain pairs reads."""

    alpha: float = Field(0.0, ge=0, description="scale is alpha / rank; 0 means alpha = rank")


def train_pairs(run: Run[PairSettings], linears: Mapping[str, nn.Linear]) -> Adapter:
    """Train a pair beside each linear by the denoising loss on the run's images.

    Args:
        run: what is shown; a row that is listed twice is shown twice as often.
        linears: of the base's denoiser, by module path.
    """
    settings, base = run.settings, run.base
    deltas = start_pairs(run, linears)
    examples = read_training_set(run.folder, run.rows, base, run.cache, run.augmentation)
    group = ParameterGroup(
        named_parameters(deltas),
        torch.optim.AdamW(
            named_parameters(deltas).values(), lr=settings.lr, weight_decay=settings.weight_decay
        ),
    )

    with (
        text_layers(run) as text,
        adapted(base, deltas, settings.gradient_checkpointing) as model,
    ):

        def step(model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
            x0_BCHW, prompts = examples.sample(batch.rows, batch.generator, base.device)
            if text is not None:
                prompts = text.encode([examples.captions[row] for row in batch.rows])
            noise = Noise.sample(base, len(batch.rows), batch.generator)
            loss_B = denoising_losses(model, base, x0_BCHW, noise, prompts, settings.min_snr_gamma)
            return {"loss": loss_B}

        fit(
            step,
            model,
            [group, *([text.group] if text else [])],
            len(examples),
            loop_config(settings),
            workdir=run.workdir,
            fingerprint=run.key,
            tracker=run.tracker,
            name=run.kind,
            preview=run.preview(),
        )
        text_pairs = text.exported() if text else {}
    layers = exported(deltas)
    return Adapter(layers, run.metadata(layers), text_pairs)


def start_pairs(run: Run[PairSettings], linears: Mapping[str, nn.Linear]) -> dict[str, LoRADelta]:
    """A fresh pair beside each linear, scaled by alpha / rank, on the base's device."""
    settings = run.settings
    scaling = settings.alpha / settings.rank if settings.alpha else 1.0
    return {
        name: LoRADelta.start(
            linear.out_features, linear.in_features, settings.rank, run.generator(name), scaling
        ).to(run.base.device)
        for name, linear in linears.items()
    }


def named_parameters(deltas: Mapping[str, LowRankDelta]) -> dict[str, nn.Parameter]:
    """All learnable tensors of the pairs by layer and factor."""
    return {
        f"{layer}.{factor}": parameter
        for layer, delta in deltas.items()
        for factor, parameter in delta.named_parameters()
    }
