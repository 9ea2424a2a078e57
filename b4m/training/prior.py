"""Prior preservation (DreamBooth, 2208.12242): images of the class beside those of the concept.

The base keeps what it knows of the class when it is shown its own images of it, or given ones, with
captions without the trigger. Images that the base draws are kept, so they are drawn once for all
trainings of a class.
"""

import hashlib
from pathlib import Path

from PIL import Image

from b4m.bases.sampling import sample
from b4m.data.captions import prior_caption
from b4m.data.images import CAPTION_SUFFIXES, fit_square, images_in, load_image
from b4m.errors import B4MError
from b4m.io import read_text, replacing
from b4m.training.run import Run
from b4m.training.settings import PairSettings
from b4m.training.training_set import TrainingSet

_STEPS = 25


def read_prior(run: Run[PairSettings]) -> TrainingSet | None:
    """Images of the run's class, or None if it shows none.

    Raises:
        B4MError: for a folder that is not there or holds no image.
    """
    settings = run.settings
    if not settings.prior_weight:
        return None
    rows = run.trained()
    captions = [prior_caption(r.caption, r.trigger, r.class_word, r.kind) for r in rows]
    captions = list(dict.fromkeys(captions))
    if settings.prior_folder:
        images, captions = _given(Path(settings.prior_folder), captions[0], run.base.pixels)
    else:
        captions = [captions[n % len(captions)] for n in range(settings.prior_images)]
        images = [_drawn(run, caption, number) for number, caption in enumerate(captions)]
        run.base.offload()
    mean_NCHW, std_NCHW = run.cache.latents(images)
    return TrainingSet(mean_NCHW[None], std_NCHW[None], tuple(captions), run.cache.texts(captions))


def _given(folder: Path, caption: str, pixels: int) -> tuple[list[Image.Image], list[str]]:
    """A folder's images, each with the caption beside it or the one of all."""
    files = images_in(folder) if folder.is_dir() else []
    if not files:
        raise B4MError(f"prior_folder {folder} holds no image; put images of the class there")
    captions = []
    for file in files:
        texts = [path for s in CAPTION_SUFFIXES if (path := file.with_suffix(s)).is_file()]
        captions.append(" ".join(read_text(texts[0]).split()) if texts else caption)
    return [fit_square(load_image(file), pixels) for file in files], captions


def _drawn(run: Run[PairSettings], caption: str, number: int) -> Image.Image:
    """Image `number` of a caption as the base alone draws it, from the disk if it is there."""
    base = run.base
    digest = hashlib.sha256(f"{base.hash} {base.dtype} {_STEPS} {caption}".encode()).hexdigest()
    path = run.workdir / "cache" / f"prior-{digest[:16]}" / f"{number:04d}.png"
    if not path.is_file():
        (image,) = sample(base, [caption], [number], steps=_STEPS)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            image.save(partial, "PNG")
    return load_image(path)
