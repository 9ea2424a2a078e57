"""What trainings read: the settings of `b4m train`, in parts that are about one thing each.

Defaults are those of B4M's released scripts, everything else is off: with the defaults a training
is AdamW on the plain squared error. Descriptions are product text: the command line shows them.
"""

from typing import Literal

from pydantic import Field, model_validator

from b4m.settings import Execution, Restyling, Settings

OPTIMIZERS = ("adamw", "adamw8bit", "prodigy", "lion", "adafactor", "riemannian")
"""In the order of `b4m.training.optimizers`, which needs torch."""


class Optimization(Settings):
    """How parameters are moved."""

    optimizer: Literal["adamw", "adamw8bit", "prodigy", "lion", "adafactor", "riemannian"] = Field(
        "adamw", description="what moves the parameters; prodigy finds the rate itself, give lr 1"
    )
    lr: float = Field(1e-4, gt=0, description="learning rate")
    weight_decay: float = Field(1e-2, ge=0, description="decoupled weight decay")
    clip: float = Field(1.0, ge=0, description="largest gradient norm; 0 is off")
    schedule: Literal["constant", "cosine", "linear"] = Field(
        "constant", description="course of the learning rate after the warm-up"
    )
    warmup: int = Field(0, ge=0, description="steps of linear warm-up")
    restarts: int = Field(0, ge=0, description="how often a falling rate begins anew")
    lr_end: float = Field(
        0.0, ge=0, le=1, description="share of the rate that is left where a falling rate ends"
    )
    ema_decay: float = Field(
        0.0, ge=0, lt=1, description="decay of the averaged weights that are the result; 0 is off"
    )


class Objective(Settings):
    """Which error is minimised, and at which noise it is taken."""

    loss: Literal["mse", "huber", "l1"] = Field(
        "mse", description="of an element's error: its square, pseudo-Huber, its size"
    )
    huber_delta: float = Field(
        0.1, gt=0, description="where pseudo-Huber turns from square to line"
    )
    error_of: Literal["output", "noise", "velocity", "x0"] = Field(
        "output", description="what the error is taken of: the network's output, or what it implies"
    )
    min_snr_gamma: float = Field(
        0.0, ge=0, description="min-SNR loss weight (arXiv 2303.09556); 0 is off"
    )
    debiased: bool = Field(
        False, description="weight the error of the noise by 1 / sqrt(SNR) (arXiv 2310.08442)"
    )
    noise_offset: float = Field(
        0.0, ge=0, description="size of the noise that is one number per channel of an image"
    )
    t_density: Literal["own", "uniform", "logit-normal", "high-noise", "low-noise"] = Field(
        "own", description="how often times are drawn; own is the base's"
    )
    t_min: float = Field(0.0, ge=0, lt=1, description="least time as a share, 0 is no noise")
    t_max: float = Field(1.0, gt=0, le=1, description="largest time as a share, 1 is noise alone")
    masked: bool = Field(
        False, description="weigh pixels by the image's mask: NAME.mask.png, or its transparency"
    )
    unmasked_weight: float = Field(
        0.0, ge=0, le=1, description="weight of what the mask leaves out, 1 being what it keeps"
    )

    @model_validator(mode="after")
    def _goes_together(self) -> "Objective":
        if self.t_min >= self.t_max:
            raise ValueError(f"setting t_min={self.t_min} must be less than t_max={self.t_max}")
        weights = [self.error_of != "output", self.min_snr_gamma > 0, self.debiased]
        if sum(weights) > 1:
            raise ValueError(
                "error_of, min_snr_gamma and debiased each say how times are weighted; set one"
            )
        return self


class TextTraining(Settings):
    """Layers of the text encoders."""

    text_lr: float = Field(
        0.0, ge=0, description="learning rate of text-encoder layers; 0 trains none"
    )
    text_rank: int = Field(0, ge=0, description="their rank; 0 is that of the other layers")
    text_encoders: Literal["all", "first", "second"] = Field(
        "all", description="which encoders have trained layers"
    )
    text_lr_2: float = Field(0.0, ge=0, description="rate of the second encoder; 0 is text_lr")
    text_rank_2: int = Field(0, ge=0, description="rank of the second encoder; 0 is text_rank")
    text_stop: float = Field(
        1.0, gt=0, le=1, description="share of the steps after which these layers stay as they are"
    )


class Captions(Settings):
    """What becomes of captions."""

    caption_dropout: float = Field(
        0.0, ge=0, lt=1, description="share of the shown images without their caption"
    )
    shuffle_tags: int = Field(
        0, ge=0, description="orders of a caption's comma-separated tags that are shown; 0 is off"
    )
    keep_tags: int = Field(1, ge=0, description="tags at the beginning that keep their place")


class Judging(Settings):
    """How a training is looked at while it goes on."""

    validate_every: int = Field(
        0, ge=0, description="steps between losses on held-out images; 0 is off"
    )
    validate_draws: int = Field(8, ge=1, description="fixed draws of noise per held-out image")
    keep: Literal["last", "best"] = Field(
        "last", description="which weights are the result; best is by the validation loss"
    )
    patience: int = Field(
        0, ge=0, description="validations without a better one that end the training; 0 is off"
    )
    sample_every: int = Field(0, ge=0, description="steps between sample images; 0 is off")
    sample_prompts: str = Field(
        "", description="their prompts, separated by |; empty is the first caption"
    )
    sample_seeds: int = Field(1, ge=1, description="images of each prompt")

    @model_validator(mode="after")
    def _is_judged(self) -> "Judging":
        if not self.validate_every and (self.keep == "best" or self.patience):
            name = "patience" if self.patience else "keep=best"
            raise ValueError(f"{name} goes by the validation loss; set validate_every")
        return self


class TrainSettings(Optimization, Objective, TextTraining, Captions, Judging, Restyling, Execution):
    """How one adapter is trained (B4M's released scripts: rank 64, 1e-4, 1000 steps)."""

    rank: int = Field(64, ge=1, description="rank of the adapter")
    steps: int = Field(1000, ge=1, description="optimizer steps")
    batch_size: int = Field(1, ge=1, description="images in one forward")
    accumulation: int = Field(4, ge=1, description="forwards per optimizer step")
    blocks: str = Field("", description="only linears whose name has one of these, by commas")
    rank_dropout: float = Field(
        0.0, ge=0, lt=1, description="share of each layer's ranks that a forward leaves out"
    )
    flip: bool = Field(False, description="mirror half of the images")
    seed: int = Field(0, ge=0, description="seed of noise, order and initial values")


class PairSettings(TrainSettings):
    """What a training of plain pairs reads."""

    alpha: float = Field(0.0, ge=0, description="scale is alpha / rank; 0 means alpha = rank")
    up_lr_ratio: float = Field(
        1.0, gt=0, description="rate of up factors by that of down factors (LoRA+, 2402.12354)"
    )
    block_ranks: str = Field(
        "", description="ranks of some blocks, e.g. attn2=4,up_blocks.0=16; the last one counts"
    )
    block_alphas: str = Field("", description="alphas of some blocks, in the same form")
    prior_weight: float = Field(
        0.0, ge=0, description="weight of the loss on images of the class; 0 shows none"
    )
    prior_images: int = Field(16, ge=1, description="images of the class that the base draws")
    prior_folder: str = Field("", description="folder with images of the class to show instead")
    buckets: bool = Field(
        False, description="keep aspect ratios; sizes and crops are told to the base exactly"
    )
    bucket_step: int = Field(
        0, ge=0, description="sides are multiples of this many pixels; 0 is a 16th of the base's"
    )

    @model_validator(mode="after")
    def _has_one_shape(self) -> "PairSettings":
        if self.buckets and self.prior_weight:
            raise ValueError("prior_weight shows square images, which buckets cannot hold; set one")
        return self
