"""Train low-rank pairs on images and captions: what LoRA, B-LoRA and joint do.

They differ only in which linears get a pair and which images are shown.
"""

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from b4m.adapters.adapter import Adapter
from b4m.adapters.deltas import LoRADelta, LowRankDelta, RankDropout
from b4m.training.buckets import BucketedSet, read_bucketed_set
from b4m.training.loop import Batch, Order, fit
from b4m.training.losses import Noise, denoising_losses
from b4m.training.optimizers import Learnable, build
from b4m.training.prior import read_prior
from b4m.training.randomness import ShuffledIndices
from b4m.training.run import Run, adapted, exported, loop_config
from b4m.training.settings import PairSettings
from b4m.training.state import ParameterGroup
from b4m.training.text_layers import text_layers
from b4m.training.training_set import Examples, Shown, TrainingSet, read_training_set
from b4m.training.watching import judge, preview


def train_pairs(run: Run[PairSettings], linears: Mapping[str, nn.Linear]) -> Adapter:
    """Train a pair beside each linear by the denoising loss on the run's images.

    Args:
        run: what is shown; a row that is listed twice is shown twice as often.
        linears: of the base's denoiser, by module path.
    """
    settings, base = run.settings, run.base
    deltas = start_pairs(run, linears)
    examples, order = read_examples(run)
    prior = read_prior(run)
    dropout = RankDropout(deltas.values(), settings.rank_dropout)
    learnable = Learnable.of(deltas.values())
    group = ParameterGroup(
        named_parameters(deltas), build(settings, learnable, settings.lr, settings.up_lr_ratio)
    )
    with (
        text_layers(run) as text,
        adapted(base, deltas, settings.gradient_checkpointing) as model,
    ):

        def step(model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
            shown, noise = drawn(run, examples, batch.whole, batch)
            size = len(shown)
            if prior is not None:
                rows = ShuffledIndices(len(prior), len(batch.whole), settings.seed, "prior")
                more, its = drawn(run, prior, rows.batch(batch.position), batch)
                shown, noise = Shown.cat([shown, more]), Noise.cat([noise, its])
            dropout.draw(batch.common)
            prompts = shown.text if text is None else text.encode(shown)
            loss_B = denoising_losses(
                model, base, shown.x0_BCHW, noise, prompts, settings, shown.mask_B1HW
            )
            if prior is None:
                return {"loss": loss_B}
            main, kept = loss_B[:size], loss_B[size:]
            return {"loss": main + settings.prior_weight * kept, "main": main, "prior": kept}

        fit(
            step,
            model,
            [group, *(text.groups if text else [])],
            len(examples),
            loop_config(settings),
            workdir=run.workdir,
            fingerprint=run.key,
            tracker=run.tracker,
            name=run.kind,
            preview=preview(run, dropout.rest),
            order=order,
            judge=judge(run, model, text, dropout.rest),
        )
        text_pairs = text.exported() if text else {}
    layers = exported(deltas)
    return Adapter(layers, run.metadata(layers), text_pairs)


def drawn(
    run: Run[PairSettings], examples: Examples, rows: Sequence[int], batch: Batch
) -> tuple[Shown, Noise]:
    """This process's part of what all draw together, on the base's device.

    Args:
        run: its base and objective.
        examples: that are drawn from.
        rows: of the examples, those of all processes.
        batch: whose common generator draws.
    """
    shown = examples.draw(rows, batch.common)
    size = shown.x0_BCHW.shape[-2:]
    noise = Noise.sample(run.base, len(rows), batch.common, run.settings, size)
    return shown[batch.mine].to(run.base.device), noise[batch.mine]


def read_examples(
    run: Run[PairSettings],
) -> tuple[TrainingSet | BucketedSet, Callable[[int], Order] | None]:
    """What is shown, and in which order by batch size; None for all images shuffled."""
    what = (run.folder, run.rows, run.base, run.cache, run.augmentation)
    if not run.settings.buckets:
        return read_training_set(*what), None
    bucketed = read_bucketed_set(*what, run.settings.bucket_step)
    return bucketed, lambda size: bucketed.order(size, run.settings.seed)


def start_pairs(run: Run[PairSettings], linears: Mapping[str, nn.Linear]) -> dict[str, LoRADelta]:
    """A fresh pair beside each linear, scaled by alpha / rank, on the base's device.

    Raises:
        B4MError: for a block of `block_ranks` or `block_alphas` that has none of the linears.
    """
    settings = run.settings
    ranks = run.by_block("block_ranks", linears)
    alphas = run.by_block("block_alphas", linears)
    deltas = {}
    for name, linear in linears.items():
        rank = int(ranks.get(name, settings.rank))
        alpha = alphas.get(name, settings.alpha)
        deltas[name] = LoRADelta.start(
            linear.out_features,
            linear.in_features,
            rank,
            run.generator(name),
            alpha / rank if alpha else 1.0,
        ).to(run.base.device)
    return deltas


def named_parameters(deltas: Mapping[str, LowRankDelta]) -> dict[str, nn.Parameter]:
    """All learnable tensors of the pairs by layer and factor."""
    return {
        f"{layer}.{factor}": parameter
        for layer, delta in deltas.items()
        for factor, parameter in delta.named_parameters()
    }
