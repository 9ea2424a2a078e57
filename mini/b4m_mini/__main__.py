"""Build the offline world. A training that was killed goes on when its command is given again."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from b4m import torchvision_guard
from b4m.errors import B4MError

torchvision_guard.install()  # before diffusers and open_clip are imported

from b4m_mini import autoencoder, base, clip, grid, measure, publish, tiles
from b4m_mini.recipe import RECIPES

_COMMANDS = """grid: the images that users need, into --out; tiles: the whole training grid, and the
tokenizer; vae, base, clip: train that model; measure: numbers and images of the model cards;
publish: everything as it lies in data/"""
_STEPS = {"vae": autoencoder.train, "base": base.train, "clip": clip.train}
_STEPS |= {"measure": measure.measure, "tiles": lambda tiles: None}


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parser = argparse.ArgumentParser("python -m b4m_mini", description=__doc__, epilog=_COMMANDS)
    option = parser.add_argument
    option("command", choices=("grid", *_STEPS, "publish"))
    option("--archives", type=Path, default=Path("runs/mini/npm"), help="npm archives")
    option("--work", type=Path, default=Path("runs/mini"), help="grid, checkpoints, models")
    option("--out", type=Path, default=Path("data/emojigrid"), help="grid: folder to write")
    option("--recipe", choices=RECIPES, default="laptop", help="see b4m_mini/recipe.py")
    option("--steps", type=int, help="optimizer steps instead of the recipe's")
    option("--batch-size", type=int, help="images per step instead of the recipe's")
    option("--start", default="", help="base: folder of a mini-SDXL that is trained further")
    option("--lr", type=float, help="base: peak learning rate instead of the recipe's")
    option("--workers", type=int, help="processes that render; one per core if left out")
    try:
        _run(parser.parse_args(argv))
    except B4MError as error:
        print(f"b4m_mini: {error}", file=sys.stderr)
        return 2
    return 0


def _run(arguments: argparse.Namespace) -> None:
    archives, workers = arguments.archives, arguments.workers
    if arguments.command == "grid":
        print(grid.write(archives, arguments.out, workers))
        return
    recipe = RECIPES[arguments.recipe]
    given = {"steps": arguments.steps, "batch_size": arguments.batch_size}
    changes = {name: value for name, value in given.items() if value is not None}
    for name in ("vae", "base", "clip"):
        part = getattr(recipe, name)
        recipe = replace(recipe, **{name: replace(part, loop=replace(part.loop, **changes))})
    base_lr = arguments.lr or recipe.base.lr
    recipe = replace(recipe, base=replace(recipe.base, start=arguments.start, lr=base_lr))
    built = tiles.build(archives, arguments.work, recipe, workers)
    if arguments.command == "publish":
        publish.publish(archives, built, Path("data"), workers)
    else:
        _STEPS[arguments.command](built)


if __name__ == "__main__":
    sys.exit(main())
