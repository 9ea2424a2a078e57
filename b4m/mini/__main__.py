"""`b4m mini ...`: build the offline world. Each command resumes where it stopped."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from b4m import torchvision_guard
from b4m.errors import B4MError
from b4m.mini.recipe import RECIPES, BaseRecipe, ClipRecipe, VaeRecipe

Part = TypeVar("Part", VaeRecipe, BaseRecipe, ClipRecipe)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="b4m mini", description=__doc__)
    parser.add_argument(
        "what",
        choices=("grid", "tiles", "vae", "base", "clip", "measure", "publish"),
        help="grid: the pictures that users need; tiles: the whole training grid; "
        "vae, base, clip: train that model; measure: numbers and pictures of "
        "the model cards",
    )
    parser.add_argument(
        "--archives",
        type=Path,
        default=Path("runs/mini/npm"),
        help="folder of the npm archives; missing ones are fetched",
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("runs/mini"),
        help="folder of the training grid, checkpoints and trained models",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("data/emojigrid"), help="grid: folder to write"
    )
    parser.add_argument(
        "--recipe",
        choices=tuple(RECIPES),
        default="laptop",
        help="laptop: 140 contents at 64 px; accelerator: all at 128 px",
    )
    parser.add_argument("--steps", type=int, default=0, help="steps at the most")
    parser.add_argument("--minutes", type=float, default=0.0, help="wall time at the most")
    parser.add_argument("--batch", type=int, default=0, help="pictures per step")
    parser.add_argument(
        "--speed",
        choices=("eager", "compiled"),
        default="eager",
        help="vae, base: compile the model first (worth it on a GPU)",
    )
    parser.add_argument("--workers", type=int, default=0, help="processes that draw; 0: all cores")
    return parser


def _adjusted(recipe: Part, arguments: argparse.Namespace) -> Part:
    schedule = recipe.schedule
    return replace(
        recipe,
        schedule=replace(
            schedule,
            steps=arguments.steps or schedule.steps,
            minutes=arguments.minutes or schedule.minutes,
            batch=arguments.batch or schedule.batch,
        ),
    )


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    torchvision_guard.install()
    arguments = _parser().parse_args(argv)
    try:
        _run(arguments)
    except B4MError as error:
        print(f"b4m: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _run(arguments: argparse.Namespace) -> None:
    if arguments.what == "grid":
        from b4m.mini import grid

        print(grid.write(arguments.archives, arguments.out, workers=arguments.workers))
        return
    from b4m.mini import tiles

    recipe = RECIPES[arguments.recipe]
    recipe = replace(
        recipe,
        vae=_adjusted(recipe.vae, arguments),
        base=_adjusted(recipe.base, arguments),
        clip=_adjusted(recipe.clip, arguments),
    )
    built = tiles.build(arguments.archives, arguments.work, recipe, arguments.workers)
    if arguments.what == "vae":
        from b4m.mini import vae

        vae.train(built, arguments.work, recipe, arguments.speed)
    elif arguments.what == "base":
        from b4m.mini import base

        base.train(built, arguments.work, recipe, arguments.speed)
    elif arguments.what == "clip":
        from b4m.mini import clip

        clip.train(built, arguments.work, recipe)
    elif arguments.what == "measure":
        from b4m.mini import measure

        measure.measure(built, arguments.work, recipe, arguments.work / "card")
    elif arguments.what == "publish":
        from b4m.mini import publish

        publish.publish(arguments.archives, arguments.work, recipe, Path("data"), arguments.workers)


if __name__ == "__main__":
    sys.exit(main())
