"""Train low-rank pairs on pictures and captions with AdamW: what LoRA, B-LoRA and joint do.

They differ only in which linears get a pair and which pictures are shown.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from b4m.adapters.adapter import Adapter
from b4m.adapters.deltas import LoRADelta, LowRankDelta
from b4m.data.manifest import ManifestRow
from b4m.errors import B4MError
from b4m.train.loop import Batch, ParameterGroup, Tracker, fit
from b4m.train.run import Run, adapted, exported
from b4m.train.training_set import Noise, denoising_losses, read_training_set


def train_pairs(
    run: Run, rows: Sequence[ManifestRow], linears: Mapping[str, nn.Linear], tracker: Tracker | None
) -> Adapter:
    """Train a pair beside each linear by the denoising loss on the pictures.

    Args:
        run: base, settings and places.
        rows: training pictures; a picture that is listed twice is shown twice as often.
        linears: of the base's UNet, by module path.
        tracker: gets losses and sample pictures.

    Raises:
        B4MError: for a rank below 1.
    """
    settings, base = run.settings, run.base
    deltas = start_pairs(run, linears)
    examples = read_training_set(run.folder, rows, base, run.cache, settings.flip)
    group = ParameterGroup(
        named_parameters(deltas),
        torch.optim.AdamW(
            named_parameters(deltas).values(), lr=settings.lr, weight_decay=settings.weight_decay
        ),
    )

    def step(model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        x0_BCHW, text = examples.draw(batch.rows, batch.generator, base.device)
        noise = Noise.draw(base, len(batch.rows), batch.generator)
        loss_B = denoising_losses(model, base, x0_BCHW, noise, text, settings.min_snr_gamma)
        return {"loss": loss_B}

    with adapted(base, deltas, settings.gradient_checkpointing) as model:
        fit(
            step,
            model,
            [group],
            len(examples),
            run.plan,
            workdir=run.workdir,
            fingerprint=run.fingerprint(rows),
            tracker=tracker,
            name=run.kind,
            preview=run.preview(rows),
        )
    layers = exported(deltas)
    return Adapter(layers, run.metadata(rows, layers))


def start_pairs(run: Run, linears: Mapping[str, nn.Linear]) -> dict[str, LoRADelta]:
    """A fresh pair beside each linear, scaled by alpha / rank, on the base's device."""
    settings = run.settings
    if settings.rank < 1:
        raise B4MError(f"setting rank={settings.rank} must be 1 or more")
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
