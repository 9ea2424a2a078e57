"""What is looked at while a training goes on: the loss on held-out images, and sample images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product

import torch
from PIL import Image
from torch import nn

from b4m.bases.sampling import sample
from b4m.data.manifest import ManifestRow, read_manifest
from b4m.training.judging import Judge
from b4m.training.loop import Preview
from b4m.training.losses import Noise, denoising_losses
from b4m.training.randomness import derive_seed
from b4m.training.run import Run
from b4m.training.settings import TrainSettings
from b4m.training.text_layers import TextLayers
from b4m.training.training_set import Augmentation, read_training_set

_STEPS = 20


def held_out(run: Run[TrainSettings]) -> list[ManifestRow]:
    """The images of the run's concepts that are held back from training; without any, its own."""
    concepts = {(row.kind, row.concept) for row in run.trained()}
    rows = [
        row
        for row in read_manifest(run.folder)
        if row.role == "reference" and (row.kind, row.concept) in concepts
    ]
    return rows or list(dict.fromkeys(run.trained()))


def judge(
    run: Run[TrainSettings], model: nn.Module, text: TextLayers | None, rest: Callable[[], None]
) -> Judge | None:
    """A judge by the loss on held-out images, or None if the run has none.

    Their noise and times are the same at every look, the times spread evenly, so two looks differ
    by the weights alone. The loss is the plain squared error, whatever is trained on.

    Args:
        run: says how often and with how many draws.
        model: the denoiser, adapted.
        text: the text layers that captions are encoded under.
        rest: called before a look, to leave what is for training alone.
    """
    settings, base = run.settings, run.base
    if not settings.validate_every:
        return None
    images = read_training_set(run.folder, held_out(run), base, run.cache, Augmentation())
    generator = torch.Generator().manual_seed(derive_seed(settings.seed, "validation"))
    rows = [row for row in range(len(images)) for _ in range(settings.validate_draws)]
    shown = images.draw(rows, generator)
    noise = Noise.sample(base, len(rows), generator)
    times = [
        base.noising.stratified_times(settings.validate_draws, generator)
        for _ in range(len(images))
    ]
    noise = replace(noise, t_B=torch.cat(times).to(base.device))
    parts = [
        slice(first, first + settings.batch_size)
        for first in range(0, len(rows), settings.batch_size)
    ]

    @torch.no_grad()
    def measure() -> float:
        rest()
        losses = []
        for part in parts:
            some = shown[part].to(base.device)
            prompts = some.text if text is None else text.encode(some)
            losses.append(denoising_losses(model, base, some.x0_BCHW, noise[part], prompts))
        return float(torch.cat(losses).double().mean())

    return Judge(measure, settings.validate_every, settings.keep == "best", settings.patience)


def preview(run: Run[TrainSettings], rest: Callable[[], None]) -> Preview:
    """Sample images of the run's prompts with whatever hangs on the base at the time.

    Several of them are also shown as a grid, a line for each prompt.
    """
    settings, base = run.settings, run.base
    prompts = [one.strip() for one in settings.sample_prompts.split("|") if one.strip()]
    prompts = prompts or [run.trained()[0].caption]
    seeds = [settings.seed + number for number in range(settings.sample_seeds)]

    def generate(_step: int) -> Mapping[str, Image.Image]:
        rest()
        images = sample(base, prompts, seeds, steps=_STEPS)
        base.offload()
        if len(images) == 1:
            return {prompts[0]: images[0]}
        names = [f"{prompt}/{seed}" for prompt, seed in product(prompts, seeds)]
        return {"samples": grid(images, len(seeds)), **dict(zip(names, images, strict=True))}

    return generate


def grid(images: Sequence[Image.Image], columns: int) -> Image.Image:
    """Images of one size side by side, line by line."""
    width, height = images[0].size
    lines = -(-len(images) // columns)
    whole = Image.new("RGB", (columns * width, lines * height), "white")
    for number, image in enumerate(images):
        line, column = divmod(number, columns)
        whole.paste(image, (column * width, line * height))
    return whole
