"""B4M, break for make (arXiv 2403.19456; ACM TOG 44(2), 2025): learn apart, then make one of both.

Break. Content and style are each trained as a partly learnable projection (`adapters.deltas.PLP`)
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
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from b4m.adapters.adapter import Adapter
from b4m.adapters.deltas import PLP, ROLES, RankDropout, join
from b4m.adapters.lowrank import LowRank
from b4m.adapters.riemannian import RiemannianAdamW
from b4m.adapters.routed import GradientRouted
from b4m.bases.base import Conditioning
from b4m.bases.sampling import encode_prompts_with
from b4m.data.cache import Cache
from b4m.data.manifest import ManifestRow, data_hash, partner_rows, read_manifest, training_rows
from b4m.errors import B4MError
from b4m.merging.context import MergeContext, require_same_base
from b4m.merging.layerwise import describe
from b4m.methods import Merge, Training
from b4m.settings import Execution, Restyling
from b4m.training.key import key
from b4m.training.loop import Batch, fit
from b4m.training.losses import Noise, denoising_losses
from b4m.training.optimizers import Learnable, build
from b4m.training.randomness import ShuffledIndices
from b4m.training.run import Run, adapted, exported, loop_config, tensors_hash
from b4m.training.settings import TrainSettings
from b4m.training.state import ParameterGroup
from b4m.training.text_layers import text_layers
from b4m.training.training_set import Augmentation, Shown, read_training_set
from b4m.training.watching import judge, preview

PARTNERS_AT_ONCE = 3


class BreakSettings(TrainSettings):
    """What *break* reads; `lr` is that of the main block."""

    lr_other: float = Field(1e-5, gt=0, description="learning rate of the other block")
    split: float = Field(0.5, ge=0, lt=1, description="share of each factor that is frozen")
    role: Literal["content-down", "content-up"] = Field(
        "content-down", description="which factor content learns"
    )
    basis_seed: int = Field(0, ge=0, description="seed of the frozen orthogonal basis")
    basis_scale: float = Field(
        1.0, gt=0, description="frozen blocks relative to the released magnitude"
    )


class MakeSettings(Restyling, Execution):
    """What *make* reads."""

    steps: int = Field(100, ge=0, description="optimizer steps; 0 only joins the halves")
    lr: float = Field(1e-4, gt=0, description="learning rate")
    preconditioner: Literal["riemannian", "plain"] = Field(
        "riemannian", description="optimizer: the journal's or the preprint's"
    )
    damping: float = Field(1e-2, gt=0, description="delta of the preconditioner")
    batch_size: int = Field(1, ge=1, description="images of either kind in one forward")
    accumulation: int = Field(4, ge=1, description="forwards per optimizer step")
    weight_decay: float = Field(1e-2, ge=0, description="decoupled weight decay")
    clip: float = Field(1.0, ge=0, description="largest gradient norm; 0 is off")
    seed: int = Field(0, ge=0, description="seed of noise and order")


def rows(manifest: Sequence[ManifestRow], kind: str, concept: str) -> list[ManifestRow]:
    """The concept's training images, then its partners: images of the other kind."""
    return [*training_rows(manifest, kind, concept), *partner_rows(manifest, kind)]


def train(run: Run[BreakSettings]) -> Adapter:
    """Break: train one half, with partners of the other kind if the data has some.

    Raises:
        B4MError: for another kind than content or style.
    """
    settings = run.settings
    main = main_factor(run.kind, settings.role)
    plps = _start(run)
    text_pairs = _fit_break(run, main, plps)
    layers = exported(plps)
    metadata = replace(
        run.metadata(layers),
        basis_seed=settings.basis_seed,
        split=settings.split,
        role=settings.role,
    )
    return Adapter(layers, metadata, text_pairs)


def main_factor(kind: str, role: str) -> str:
    """The factor, "down" or "up", that holds the main block of this kind under this role."""
    if kind not in ("content", "style"):
        raise B4MError(f"b4m trains content or style, not {kind!r}")
    if role not in ROLES:
        raise B4MError(f"role={role!r}; choose one of {', '.join(ROLES)}")
    return "down" if (kind == "content") == (role == "content-down") else "up"


def _start(run: Run[BreakSettings]) -> dict[str, PLP]:
    settings = run.settings
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


def _fit_break(run: Run[BreakSettings], main: str, plps: Mapping[str, PLP]) -> dict[str, LowRank]:
    """Train both blocks of each PLP in place, or the main one alone without partners.

    Returns:
        The pairs of the text encoders, which learn from main images alone.
    """
    settings, base, cache = run.settings, run.base, run.cache
    partners = run.trained("partner")
    own = read_training_set(run.folder, run.trained(), base, cache, run.augmentation)
    flips = Augmentation(flip=settings.flip)
    others = read_training_set(run.folder, partners, base, cache, flips) if partners else None
    count = min(len(partners), PARTNERS_AT_ONCE)
    order = ShuffledIndices(len(partners), count, settings.seed, "partners")
    other = "up" if main == "down" else "down"
    groups = [_group(plps, main, settings.lr, settings)]
    if others is not None:
        groups.append(_group(plps, other, settings.lr_other, settings))
    else:
        for plp in plps.values():
            _block(plp, other).requires_grad_(False)
    dropout = RankDropout(plps.values(), settings.rank_dropout)
    deltas = {name: GradientRouted(plp, main, settings.batch_size) for name, plp in plps.items()}

    with (
        text_layers(run) as text,
        adapted(base, deltas, settings.gradient_checkpointing) as model,
    ):

        def step(model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
            shown = own.draw(batch.whole, batch.common)[batch.mine].to(base.device)
            size, prompts = len(shown), shown.text if text is None else text.encode(shown)
            whole = Noise.sample(base, len(batch.whole), batch.common, settings)
            noise = whole[batch.mine]
            if others is not None:
                more = others.draw(order.batch(batch.position), batch.common).to(base.device)
                shown = Shown.cat([shown, more])
                with torch.no_grad():
                    read = more.text if text is None else text.encode(more)
                prompts = Conditioning.cat([prompts, read])
                again = [index % len(batch.whole) for index in range(count)]
                noise = Noise.cat([noise, whole[again]])
            dropout.draw(batch.common)
            loss_B = denoising_losses(
                model, base, shown.x0_BCHW, noise, prompts, settings, shown.mask_B1HW
            )
            if others is None:
                return {"loss": loss_B}
            main_loss, partner_loss = loss_B[:size].mean(), loss_B[size:].mean()
            return {"loss": main_loss + partner_loss, "main": main_loss, "partners": partner_loss}

        fit(
            step,
            model,
            [*groups, *(text.groups if text else [])],
            len(own),
            loop_config(settings),
            workdir=run.workdir,
            fingerprint=run.key,
            tracker=run.tracker,
            name=run.kind,
            preview=preview(run, dropout.rest),
            judge=judge(run, model, text, dropout.rest),
        )
        return text.exported() if text else {}


def _group(
    plps: Mapping[str, PLP], factor: str, lr: float, settings: BreakSettings
) -> ParameterGroup:
    parameters = {f"{name}.{factor}": _block(plp, factor) for name, plp in plps.items()}
    blocks = list(parameters.values())
    learnable = Learnable([], blocks) if factor == "down" else Learnable(blocks, [])
    return ParameterGroup(parameters, build(settings, learnable, lr))


def _block(plp: PLP, factor: str) -> nn.Parameter:
    return plp.down_learnable if factor == "down" else plp.up_learnable


def merge(content: Adapter, style: Adapter, context: MergeContext[MakeSettings]) -> Adapter:
    """Make: join the halves and train them together on both references.

    Args:
        content: a content adapter that *break* trained.
        style: a style adapter, broken on the same basis.
        context: base, data folder and settings. With steps 0 the halves are only joined.

    Raises:
        B4MError: for adapters that are not two halves of one basis, or missing data.
    """
    settings = context.settings
    plps = joined(content, style)
    if settings.steps:
        _fit_make(content, style, plps, context)
    layers = exported(plps)
    text_pairs = (content + style).text_layers
    first = content.metadata
    metadata = replace(
        describe("b4m", [content, style], settings),
        rank=max(pair.rank for pair in layers.values()),
        basis_seed=first.basis_seed,
        split=first.split,
        role=first.role,
    )
    return Adapter(layers, metadata, text_pairs)


def joined(content: Adapter, style: Adapter) -> dict[str, PLP]:
    """The two halves as one projection per layer, tensor by tensor as they were trained.

    Raises:
        B4MError: saying why they are not two halves of one basis.
    """
    require_same_base([content, style])
    first, second = content.metadata, style.metadata
    for kind, metadata in (("content", first), ("style", second)):
        if metadata.method != "b4m" or metadata.stage != kind:
            what = " ".join(filter(None, (metadata.method or "other", metadata.stage or "adapter")))
            raise B4MError(
                f"make needs a {kind} adapter trained with method b4m, not a {what} adapter"
            )
    for name in ("basis_seed", "split", "role", "rank"):
        one, other = getattr(first, name), getattr(second, name)
        if one != other:
            raise B4MError(
                f"content was broken with {name} {one}, style with {name} {other}; "
                "train both with the same"
            )
    if set(content.layers) != set(style.layers):
        name = sorted(set(content.layers) ^ set(style.layers))[0]
        raise B4MError(f"only one of the two halves has the layer {name}; train both alike")
    return {
        name: join(pair, style.layers[name], split=first.split, role=first.role, layer=name)
        for name, pair in content.layers.items()
    }


def _fit_make(
    content: Adapter, style: Adapter, plps: dict[str, PLP], context: MergeContext[MakeSettings]
) -> None:
    """Train the joined projections in place; each forward holds images of both kinds."""
    settings, base, folder = context.settings, context.base, context.folder
    require_same_base([content, style], base)
    parts = [
        training_rows(read_manifest(folder), kind, adapter.metadata.concept)
        for kind, adapter in (("content", content), ("style", style))
    ]
    cache = Cache(context.workdir / "cache", base)
    restyled = Augmentation.restyling(settings, settings.seed)
    sets = [
        read_training_set(folder, parts[0], base, cache, restyled),
        read_training_set(folder, parts[1], base, cache),
    ]
    if (both := content + style).text_layers:
        sets = [replace(one, text=encode_prompts_with(base, both, one.captions)) for one in sets]
        base.offload()
    size = settings.batch_size
    orders = [
        ShuffledIndices(len(one), size, settings.seed, kind)
        for one, kind in zip(sets, ("content", "style"), strict=True)
    ]

    def step(model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        drawn = [
            one.draw(order.batch(batch.position), batch.generator).to(base.device)
            for one, order in zip(sets, orders, strict=True)
        ]
        both = Shown.cat(drawn)
        noise = Noise.sample(base, size, batch.generator)[[*range(size)] * 2]
        loss_B = denoising_losses(model, base, both.x0_BCHW, noise, both.text)
        first, second = loss_B[:size].mean(), loss_B[size:].mean()
        return {"loss": first + second, "content": first, "style": second}

    with adapted(base, plps, settings.gradient_checkpointing) as model:
        fit(
            step,
            model,
            [_make_group(plps, settings)],
            max(len(one) for one in sets),
            loop_config(settings),
            workdir=context.workdir,
            fingerprint=key(
                "make",
                settings,
                base.hash,
                str(base.dtype),
                [data_hash(folder, part) for part in parts],
                tensors_hash(factor for plp in plps.values() for factor in (plp.up, plp.down)),
                tensors_hash(value for one in sets for value in one.text.tensors.values()),
            ),
            tracker=context.tracker,
            name="make",
        )


def _make_group(plps: Mapping[str, PLP], settings: MakeSettings) -> ParameterGroup:
    factors = ("down", "up")
    parameters = {f"{n}.{f}": _block(plp, f) for f in factors for n, plp in plps.items()}
    if settings.preconditioner == "plain":
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            parameters.values(), lr=settings.lr, weight_decay=settings.weight_decay
        )
    else:
        optimizer = RiemannianAdamW(
            plps.values(),
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            damping=settings.damping,
        )
    return ParameterGroup(parameters, optimizer)


TRAINING = Training(BreakSettings, train, rows)
MERGE = Merge.pair(MakeSettings, merge)
