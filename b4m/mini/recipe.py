"""Every choice of the offline world's training, in one place.

`b4m mini vae`, `base` and `clip` read a `Recipe` and nothing else. Two are kept: `laptop`, 64 px,
for an evening on two CPU cores, and `accelerator`, the whole grid at 128 px, planned for about
twenty-five minutes of one data-centre GPU and not run on one yet.

A run ends when its steps are made or its minutes are spent, whichever comes first; the learning
rate falls to zero towards that end, so a run on a slow machine is a shorter one, not a broken one.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from b4m.mini.sdxl import Architecture


@dataclass(frozen=True)
class Schedule:
    """How long and how fast.

    Attributes:
        steps: optimizer steps at the most.
        minutes: wall time at the most.
        batch: pictures per step.
        lr: peak learning rate, reached after `warmup` steps, falling to zero as a cosine.
        weight_decay: AdamW's.
        ema: decay of the averaged weights, which are the ones that are saved.
        seed: of everything random.
    """

    steps: int
    minutes: float
    batch: int
    lr: float
    ema: float
    warmup: int = 200
    weight_decay: float = 0.01
    seed: int = 0


@dataclass(frozen=True)
class VaeRecipe:
    """Autoencoder on base cells: absolute and squared error, an edge term, a weak KL term.

    Held-out styles have looks that no base cell has (black on white), so a share of `recolour` of
    the pictures gets random ones (`b4m.mini.looks`).
    """

    schedule: Schedule
    edge: float = 0.5
    squared: float = 4.0
    kl: float = 1e-4
    recolour: float = 0.4


@dataclass(frozen=True)
class BaseRecipe:
    """UNet and both text encoders together, on cached latents of the base cells.

    Attributes:
        schedule: how long and how fast.
        contents: of the recipe's contents only so many; 0 takes all of them.
        painted: share of painted cells among those of the grid drawn for a step.
        others: share of drawn cells of the other base contents, a third of them called by their
            class: an adapter for a new thing starts from all shapes of a class, not from a few.
        looks: share of cells in made-up looks (`b4m.mini.looks`), of all base contents, each look
            under a word of its own. With them, and with all painted styles, adapters reach looks
            that the base has not.
        unconditional: share of captions dropped (embeddings zeroed, as SDXL does).
        nameless: share of captions that call a content by its class alone, with a nonsense word
            before it, so that "a snq animal" means an animal not known yet.
        styleless: share of captions without style words.
        nonsense_style: share of captions with a nonsense word in place of the style words. With a
            few percent of either and 64 contents, the base learned its cells by heart, and an
            adapter's thing fell apart beside a look without a name; with a quarter of both and 140
            contents it stayed whole. Which of the two changes did it was not measured.
        variants: wordings prepared per cell.
    """

    schedule: Schedule
    contents: int = 0
    painted: float = 0.35
    unconditional: float = 0.1
    nameless: float = 0.2
    styleless: float = 0.12
    nonsense_style: float = 0.12
    others: float = 0.2
    looks: float = 0.25
    variants: int = 48


@dataclass(frozen=True)
class ClipRecipe:
    """mini-CLIP, open_clip's classes and loss, on all contents and all styles of the recipe.

    Cells of held-out contents in `unseen_styles` are left out, so that the evaluator can be judged
    on pictures that it never saw. A batch shows each of its contents twice, in two styles, once
    more in a random look (a thing is no palette), and `mosaics` of four drawings in one style each
    (a style is no thing).
    """

    schedule: Schedule
    unseen_styles: tuple[str, ...] = ("openmoji", "noto-v1", "emojione")
    mosaics: int = 48
    embed_dim: int = 128
    pixels: int = 64
    vision_layers: tuple[int, int, int, int] = (1, 1, 2, 1)
    vision_width: int = 24
    text_width: int = 128
    text_layers: int = 3


@dataclass(frozen=True)
class Recipe:
    """One offline world.

    Attributes:
        architecture: of mini-SDXL.
        contents: base contents that are painted too and that the tokenizer learns from; 0 takes all
            of the grid. Held-out ones, and the drawn cells of all others, come on top.
        painted_styles: painted styles that the base may see, trained on; 0 takes all of them.
        vocabulary: rows of the tokenizer.
        vae: training of the autoencoder.
        base: training of UNet and text encoders.
        clip: training of the evaluator.
    """

    architecture: Architecture
    contents: int
    painted_styles: int
    vocabulary: int
    vae: VaeRecipe
    base: BaseRecipe
    clip: ClipRecipe


# UNet 11.9 M parameters, autoencoder 1.5 M, text encoders 1.8 M, evaluator 4.0 M
LAPTOP = Recipe(
    architecture=Architecture(
        pixels=64,
        unet_channels=(96, 128, 128),
        layers=(1, 1),
        vae_channels=(16, 48, 96),
        latent_channels=16,
    ),
    contents=140,
    painted_styles=0,
    vocabulary=2048,
    vae=VaeRecipe(Schedule(20_000, 25, 16, 1.5e-3, ema=0.995, warmup=100)),
    base=BaseRecipe(
        Schedule(40_000, 95, 64, 6e-4, ema=0.998, warmup=100),
        contents=140,
        painted=0.55,
        nameless=0.15,
        styleless=0.08,
        nonsense_style=0.1,
    ),
    clip=ClipRecipe(Schedule(20_000, 42, 128, 1e-3, ema=0.995, weight_decay=0.1)),
)

# the same UNet, text encoders and evaluator, autoencoder 2.8 M
ACCELERATOR = Recipe(
    architecture=Architecture(
        pixels=128,
        unet_channels=(96, 128, 128),
        layers=(1, 1),
        vae_channels=(48, 96, 96, 96),
        latent_channels=16,
    ),
    contents=0,
    painted_styles=0,
    vocabulary=2048,
    vae=VaeRecipe(Schedule(60_000, 5, 128, 1e-3, ema=0.999)),
    base=BaseRecipe(Schedule(400_000, 13, 1024, 1e-3, ema=0.9995, warmup=400)),
    clip=ClipRecipe(Schedule(40_000, 6, 640, 1e-3, ema=0.999, weight_decay=0.1)),
)

RECIPES: Mapping[str, Recipe] = {"laptop": LAPTOP, "accelerator": ACCELERATOR}
