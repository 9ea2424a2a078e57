"""Every choice of the offline world's training, in one place.

The trainings read a `Recipe` and nothing else. Two are kept: `laptop`, 64 px, for an evening on two
CPU cores, and `accelerator`, the whole grid at 128 px, meant for one GPU and not run on one yet.
"""

from dataclasses import dataclass
from functools import partial

from b4m.testing import Architecture
from b4m.training.loop import LoopConfig


@dataclass(frozen=True)
class Training:
    """How long and how fast: the loop, and AdamW's peak learning rate and weight decay."""

    loop: LoopConfig
    lr: float
    weight_decay: float = 0.01


@dataclass(frozen=True)
class VaeRecipe(Training):
    """Autoencoder on base cells: absolute and squared error, an edge term, a weak KL term.

    Held-out styles look as no base cell does (black on white), so a share of `restyled` of the
    images gets synthetic styles (`b4m.data.restyle`).
    """

    edge: float = 0.5
    squared: float = 4.0
    kl: float = 1e-4
    restyled: float = 0.4


@dataclass(frozen=True)
class BaseRecipe(Training):
    """UNet and both text encoders together, on cached latents of the base cells.

    Attributes:
        painted: share of painted cells among those of the grid drawn for a step.
        others: share of drawn cells of the other base contents, a third of them called by their
            class: an adapter for a new thing starts from all shapes of a class, not from a few.
        synthetic: share of cells in synthetic styles: `described` ones, each restyled at random
            and called by the words for that (`b4m.data.restyle`), and `blends` of two painted
            styles, called by both names. With words that many styles share, adapters reach styles
            that the base has not.
        unconditional: share of captions dropped (embeddings zeroed, as SDXL does).
        nameless: share of captions that call a content by its class alone, with a nonsense word
            before it, so that "a snq animal" means an animal not known yet.
        styleless: share of captions without style words.
        nonsense_style: share of captions with a nonsense word in place of the style words.
        variants: wordings prepared per cell.
        start: folder of a mini-SDXL with the same tokenizer, trained further; none if empty.
    """

    painted: float = 0.35
    unconditional: float = 0.1
    nameless: float = 0.2
    styleless: float = 0.12
    nonsense_style: float = 0.12
    others: float = 0.2
    synthetic: float = 0.25
    described: int = 10_000
    blends: int = 4_000
    start: str = ""
    variants: int = 48


@dataclass(frozen=True)
class ClipRecipe(Training):
    """mini-CLIP, open_clip's classes and loss, on all contents and all styles of the recipe.

    Cells of held-out contents in `unseen_styles` are left out, so that the evaluator can be judged
    on images that it never saw. A batch shows each of its contents twice, in two styles, once more
    in a synthetic style (a content is not a palette), and `mosaics` of four drawings in one style
    each (a style is not a content).
    """

    unseen_styles: tuple[str, ...] = ("openmoji", "noto-v1", "emojione")
    mosaics: int = 48
    pixels: int = 64


@dataclass(frozen=True)
class Recipe:
    """One offline world.

    Attributes:
        architecture: of mini-SDXL.
        contents: base contents that are painted too and that the tokenizer learns from; 0 takes all
            of the grid. Held-out ones, and the drawn cells of all others, come on top.
        vae: training of the autoencoder.
        base: training of UNet and text encoders.
        clip: training of the evaluator.
        vocabulary: rows of the tokenizer.
    """

    architecture: Architecture
    contents: int
    vae: VaeRecipe
    base: BaseRecipe
    clip: ClipRecipe
    vocabulary: int = 2048


_loop = partial(LoopConfig, schedule="cosine", checkpoint_every=50)

RECIPES = {
    # UNet 11.9 M parameters, autoencoder 1.5 M, text encoders 1.8 M, evaluator 4.0 M
    "laptop": Recipe(
        Architecture(64, (96, 128, 128), (1, 1), vae_channels=(16, 48, 96)),
        contents=140,
        vae=VaeRecipe(_loop(3000, 16, warmup=100, ema_decay=0.995), lr=1.5e-3),
        base=BaseRecipe(
            _loop(3000, 64, warmup=100, ema_decay=0.998),
            lr=6e-4,
            painted=0.55,
            nameless=0.15,
            styleless=0.08,
            nonsense_style=0.1,
            others=0.1,
            synthetic=0.55,
        ),
        clip=ClipRecipe(_loop(1500, 128, warmup=200, ema_decay=0.995), 1e-3, weight_decay=0.1),
    ),
    # the same UNet, text encoders and evaluator, autoencoder 2.8 M
    "accelerator": Recipe(
        Architecture(128, (96, 128, 128), (1, 1), vae_channels=(48, 96, 96, 96)),
        contents=0,
        vae=VaeRecipe(_loop(10_000, 128, warmup=200, ema_decay=0.999), lr=1e-3),
        base=BaseRecipe(_loop(20_000, 1024, warmup=400, ema_decay=0.9995), lr=1e-3),
        clip=ClipRecipe(_loop(10_000, 640, warmup=200, ema_decay=0.999), 1e-3, weight_decay=0.1),
    ),
}
