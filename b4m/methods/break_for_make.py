"""B4M, break for make (arXiv 2403.19456; ACM TOG 44(2), 2025): learn apart, then make one of both.

Break. Content and style are each trained as a partly learnable projection (`adapters.pairs.PLP`)
    up = [A; B], down = [C  D],  A and C frozen and orthogonal, the same for both runs.
One learnable block is the concept's own (main), the other is trained by partners: pictures of the
other kind, so that the main block learns its concept against several counterparts (the paper's
multi-correspondence projection).
    role content-down:  content's main block is D, style's is B      (released code; the default)
    role content-up:    content's main block is B, style's is D      (the paper's figure)
    main pictures      -> lr       on the main block
    partner pictures   -> lr_other on the other block

Make. Join [A; B] of one with [C  D] of the other and train B and D together on both references,
under AdamW on Riemannian-preconditioned gradients ("riemannian", the journal version) or plain
AdamW ("plain", the preprint). A and C stay frozen. The result is one LoRA of the same rank.

Where the released code departs from this, the paper is followed (tests pin each):
- there each block gets both losses' gradients (the first backward's are not cleared); here a main
  picture reaches only the main block and a partner only the other;
- there the frozen halves are masked gradients, so weight decay shrinks them; here they are buffers;
- there *make* draws half of the layers anew after loading them, and its preconditioned step comes
  after the gradients were cleared; here it starts at exactly the two halves and the step acts;
- there 1000 steps of make, and 9000 of content in spite of its flag; here as many as asked for.
As there, main and partners share noise and timestep, picture by picture.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from b4m.adapters.adapter import Adapter
from b4m.adapters.deltas import PLP, ROLES, join
from b4m.adapters.riemannian import RiemannianAdamW
from b4m.bases.sdxl.conditioning import Conditioning
from b4m.bases.sdxl.load import Base
from b4m.config import MergeSettings, TrainSettings
from b4m.data.cache import Cache
from b4m.data.manifest import (
    ManifestRow,
    data_hash,
    partner_rows,
    read_manifest,
    training_rows,
)
from b4m.errors import B4MError
from b4m.merging.context import MergeContext, require_same_base
from b4m.merging.layerwise import describe
from b4m.train.loop import Batch, LoopConfig, ParameterGroup, Tracker, fit
from b4m.train.randomness import ShuffledIndices
from b4m.train.run import Run, adapted, exported, fingerprint, tensors_hash
from b4m.train.training_set import Noise, denoising_losses, read_training_set

PARTNERS_AT_ONCE = 3


class GradientRouted(nn.Module):
    """A PLP whose main block learns from a batch's first examples, its other block from the rest.

    All examples see the whole delta; what is routed are gradients, so one backward pass gives both
    blocks theirs, each from its own examples alone.

    Args:
        plp: the projection.
        main: "down" or "up", the factor that holds the main block.
        examples: how many examples of each batch are main ones.
    """

    def __init__(self, plp: PLP, main: str, examples: int) -> None:
        super().__init__()
        self.plp = plp
        self.main = main
        self.examples = examples

    @property
    def out_features(self) -> int:
        """O of the linear that this is added to."""
        return self.plp.out_features

    @property
    def in_features(self) -> int:
        """I of the linear that this is added to."""
        return self.plp.in_features

    def forward(self, x: Tensor) -> Tensor:
        up_OR, down_RI = self.plp.up.to(x.dtype), self.plp.down.to(x.dtype)
        still_up, still_down = up_OR.detach(), down_RI.detach()
        pairs = [(still_up, down_RI), (up_OR, still_down)]
        if self.main == "up":
            pairs.reverse()
        parts = x[: self.examples], x[self.examples :]
        return torch.cat(
            [linear(linear(part, down), up) for part, (up, down) in zip(parts, pairs, strict=True)]
        )


def train(
    kind: str,
    data_dir: Path,
    concept: str,
    base: Base,
    settings: TrainSettings,
    workdir: Path,
    tracker: Tracker | None = None,
) -> Adapter:
    """Break: train one half, with partners of the other kind if the data has some.

    Args:
        kind: "content" or "style".
        data_dir: prepared data folder.
        concept: name of the content or style in it.
        base: the model to adapt.
        settings: `lr` of the main block, `lr_other` of the other, `split`, `role`, `basis_seed` and
            `basis_scale` of the projection, and the loop's.
        workdir: for caches and the checkpoint.
        tracker: gets losses and sample pictures.

    Raises:
        B4MError: for an unknown kind, role or concept, or a rank below 1.
    """
    main = main_factor(kind, settings.role)
    run = Run.open("b4m", kind, concept, data_dir, base, settings, workdir)
    rows = training_rows(run.rows, kind, concept)
    partners = partner_rows(run.rows, kind)
    plps = _start(run)
    _fit_break(run, main, plps, rows, partners, tracker)
    layers = exported(plps)
    metadata = replace(
        run.metadata([*rows, *partners], layers),
        basis_seed=settings.basis_seed,
        split=settings.split,
        role=settings.role,
    )
    return Adapter(layers, metadata)


def main_factor(kind: str, role: str) -> str:
    """The factor, "down" or "up", that holds the main block of this kind under this role."""
    if kind not in ("content", "style"):
        raise B4MError(f"b4m trains content or style, not {kind!r}")
    if role not in ROLES:
        raise B4MError(f"role={role!r}; choose one of {', '.join(ROLES)}")
    return "down" if (kind == "content") == (role == "content-down") else "up"


def _start(run: Run) -> dict[str, PLP]:
    settings = run.settings
    if settings.rank < 1:
        raise B4MError(f"setting rank={settings.rank} must be 1 or more")
    if settings.alpha not in (0.0, float(settings.rank)):
        raise B4MError(f"alpha={settings.alpha}: b4m's frozen blocks fix the scale; leave it 0")
    return {
        name: PLP.start(
            module.out_features,
            module.in_features,
            settings.rank,
            run.generator(name),
            layer=name,
            basis_seed=settings.basis_seed,
            split=settings.split,
            scale=settings.basis_scale,
        ).to(run.base.device)
        for name, module in run.linears().items()
    }


def _fit_break(
    run: Run,
    main: str,
    plps: Mapping[str, PLP],
    rows: Sequence[ManifestRow],
    partners: Sequence[ManifestRow],
    tracker: Tracker | None,
) -> None:
    """Train both blocks of each PLP in place, or the main one alone without partners."""
    settings, base = run.settings, run.base
    cache = run.cache
    own = read_training_set(run.folder, rows, base, cache, settings.flip)
    others = (
        read_training_set(run.folder, partners, base, cache, settings.flip) if partners else None
    )
    count = min(len(partners), PARTNERS_AT_ONCE)
    order = ShuffledIndices(len(partners), count, settings.seed, "partners")
    other = "up" if main == "down" else "down"
    groups = [_learner(plps, main, settings.lr, settings)]
    if others is not None:
        groups.append(_learner(plps, other, settings.lr_other, settings))
    else:
        for plp in plps.values():
            _block(plp, other).requires_grad_(False)

    def step(model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        size = len(batch.rows)
        x0_BCHW, text = own.draw(batch.rows, batch.generator, base.device)
        noise = Noise.draw(base, size, batch.generator)
        if others is not None:
            more_PCHW, more_text = others.draw(
                order.batch(batch.position), batch.generator, base.device
            )
            x0_BCHW = torch.cat([x0_BCHW, more_PCHW])
            text = Conditioning.cat([text, more_text])
            noise = noise[[index % size for index in range(size + count)]]
        loss_B = denoising_losses(model, base, x0_BCHW, noise, text, settings.min_snr_gamma)
        if others is None:
            return {"loss": loss_B}
        main_loss, partner_loss = loss_B[:size].mean(), loss_B[size:].mean()
        return {"loss": main_loss + partner_loss, "main": main_loss, "partners": partner_loss}

    deltas = {name: GradientRouted(plp, main, settings.batch_size) for name, plp in plps.items()}
    with adapted(base, deltas, settings.gradient_checkpointing) as model:
        fit(
            step,
            model,
            groups,
            len(own),
            run.plan,
            workdir=run.workdir,
            fingerprint=run.fingerprint([*rows, *partners]),
            tracker=tracker,
            name=run.kind,
            preview=run.preview(rows),
        )


def _learner(
    plps: Mapping[str, PLP], factor: str, lr: float, settings: TrainSettings
) -> ParameterGroup:
    parameters = {f"{name}.{factor}": _block(plp, factor) for name, plp in plps.items()}
    optimizer = torch.optim.AdamW(parameters.values(), lr=lr, weight_decay=settings.weight_decay)
    return ParameterGroup(parameters, optimizer)


def _block(plp: PLP, factor: str) -> nn.Parameter:
    return plp.down_learnable if factor == "down" else plp.up_learnable


def merge(content: Adapter, style: Adapter, context: MergeContext) -> Adapter:
    """Make: join the halves and train them together on both references.

    Args:
        content: a content adapter that *break* trained.
        style: a style adapter, broken on the same basis.
        context: base, data folder and settings (`steps`, `make_lr`, `preconditioner`, `damping`,
            `accumulation`, `weight_decay`, `clip`). With steps 0 the halves are only joined.

    Raises:
        B4MError: for adapters that are no two halves of one basis, or missing data.
    """
    settings = context.settings
    plps = joined(content, style)
    if settings.steps:
        _fit_make(content, style, plps, context)
    layers = exported(plps)
    first = content.metadata
    metadata = replace(
        describe("b4m", content, style, settings),
        rank=max(pair.rank for pair in layers.values()),
        basis_seed=first.basis_seed,
        split=first.split,
        role=first.role,
    )
    return Adapter(layers, metadata)


def joined(content: Adapter, style: Adapter) -> dict[str, PLP]:
    """The two halves as one projection per layer, tensor by tensor as they were trained.

    Raises:
        B4MError: saying why they are no two halves of one basis.
    """
    require_same_base(content, style)
    ours, theirs = content.metadata, style.metadata
    for wanted, adapter in (("content", ours), ("style", theirs)):
        if adapter.method != "b4m" or adapter.stage != wanted:
            what = " ".join(filter(None, (adapter.method or "other", adapter.stage or "adapter")))
            raise B4MError(
                f"make needs a {wanted} adapter trained with method b4m, not a {what} adapter"
            )
    for name in ("basis_seed", "split", "role", "rank"):
        mine, other = getattr(ours, name), getattr(theirs, name)
        if mine != other:
            raise B4MError(
                f"content was broken with {name} {mine}, style with {name} {other}; "
                "train both with the same"
            )
    if set(content.layers) != set(style.layers):
        name = sorted(set(content.layers) ^ set(style.layers))[0]
        raise B4MError(f"only one of the two halves has the layer {name}; train both alike")
    return {
        name: join(pair, style.layers[name], split=ours.split, role=ours.role, layer=name)
        for name, pair in content.layers.items()
    }


def _fit_make(
    content: Adapter, style: Adapter, plps: dict[str, PLP], context: MergeContext
) -> None:
    """Train the joined projections in place; each forward holds pictures of both kinds."""
    settings = context.settings
    base = context.load()
    require_same_base(content, style, base)
    folder, rows = _references(content, style, context)
    cache = Cache(context.workdir / "cache", base)
    sides = [read_training_set(folder, part, base, cache) for part in rows]
    size = settings.batch_size
    orders = [
        ShuffledIndices(len(side), size, settings.seed, kind)
        for side, kind in zip(sides, ("content", "style"), strict=True)
    ]
    for plp in plps.values():
        plp.to(base.device)

    def step(model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        drawn = [
            side.draw(order.batch(batch.position), batch.generator, base.device)
            for side, order in zip(sides, orders, strict=True)
        ]
        x0_BCHW = torch.cat([latents for latents, _ in drawn])
        text = Conditioning.cat([text for _, text in drawn])
        noise = Noise.draw(base, size, batch.generator)[[*range(size)] * 2]
        loss_B = denoising_losses(model, base, x0_BCHW, noise, text)
        first, second = loss_B[:size].mean(), loss_B[size:].mean()
        return {"loss": first + second, "content": first, "style": second}

    with adapted(base, plps, settings.gradient_checkpointing) as model:
        fit(
            step,
            model,
            [_make_learner(plps, settings)],
            max(len(side) for side in sides),
            LoopConfig(
                steps=settings.steps,
                accumulation=settings.accumulation,
                clip=settings.clip,
                checkpoint_every=settings.checkpoint_every,
                seed=settings.seed,
            ),
            workdir=context.workdir,
            fingerprint=fingerprint(
                "make",
                settings,
                base.hash,
                str(base.dtype),
                *(data_hash(folder, part) for part in rows),
                tensors_hash(factor for plp in plps.values() for factor in (plp.up, plp.down)),
            ),
            tracker=context.tracker,
            name="make",
        )


def _references(
    content: Adapter, style: Adapter, context: MergeContext
) -> tuple[Path, list[list[ManifestRow]]]:
    """The data folder, and the training pictures of the content and of the style."""
    if context.data_dir is None:
        raise B4MError("make trains on both references; give the prepared data folder with --data")
    rows = read_manifest(context.data_dir)
    return context.data_dir, [
        training_rows(rows, kind, adapter.metadata.concept)
        for kind, adapter in (("content", content), ("style", style))
    ]


def _make_learner(plps: Mapping[str, PLP], settings: MergeSettings) -> ParameterGroup:
    parameters = {
        f"{name}.{factor}": _block(plp, factor)
        for factor in ("down", "up")
        for name, plp in plps.items()
    }
    if settings.preconditioner == "plain":
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            parameters.values(), lr=settings.make_lr, weight_decay=settings.weight_decay
        )
    else:
        optimizer = RiemannianAdamW(
            plps.values(),
            lr=settings.make_lr,
            weight_decay=settings.weight_decay,
            damping=settings.damping,
        )
    return ParameterGroup(parameters, optimizer)
