"""Contents x styles x methods x seeds."""

from typing import Dict, List

from kfp import dsl

from components.check_outcomes import check_outcomes
from pipelines.resources import Amounts, light
from pipelines.steps import Compared, Tasks, carry_out


@dsl.pipeline(name="compare")
def compare(
    contents: List[str] = ["octopus", "owl", "rocket"],
    styles: List[str] = ["painted-19", "openmoji"],
    methods: List[str] = ["b4m", "duolora", "direct"],
    seeds: List[int] = [0, 1],
    pairing: str = "every",
    source: str = "data/emojigrid",
    base: str = "data/models/mini-sdxl",
    evaluator: str = "data/models/mini-clip",
    train_settings: Dict = {},
    merge_settings: Dict = {},
    sample_settings: Dict = {},
    style_images: int = 5,
    partners: int = 3,
    tasks: int = 8,
    fail: bool = False,
    gpus: str = "0",
    cpu: str = "1",
    memory: str = "4G",
):
    """Compare methods on every pair of some contents and styles.

    Each adapter is trained once and used by all pairs. Jobs share a bounded number of tasks. A job
    that fails is noted in outcomes.csv and takes along only what needs it.

    Args:
        contents: Names of the contents, the things to show.
        styles: Names of the styles, the ways to show them.
        methods: Methods that are compared.
        seeds: One image per pair, method and seed, from the same noise for every method.
        pairing: every content with every style, or matching, first with first and so on.
        source: Folder of an EmojiGrid, or your own folder with content/NAME and style/NAME; or
            where DVC tracks one, dvc+REPOSITORY@REVISION#PATH, with &remote=NAME.
        base: Base model: a folder, a hub id or a single-file checkpoint.
        evaluator: Encoder that compares images: a folder, or an open_clip MODEL:WEIGHTS.
        train_settings: Settings of training, NAME for all methods that have it, or METHOD.NAME.
        merge_settings: Settings of merging, likewise.
        sample_settings: Settings of sampling, likewise.
        style_images: How many images teach a style.
        partners: How many images of the other kind accompany B4M's training.
        tasks: Most tasks of a kind of jobs; 0 gives each job its own.
        fail: End the run as failed when a job failed.
        gpus: Accelerators of a task that runs the base; SDXL needs 1, the small bases none.
        cpu: CPUs that a heavy task asks for.
        memory: Memory that a heavy task gets; 32G suits SDXL.
    """
    compared = Compared(
        concepts={"contents": contents, "styles": styles, "pairing": pairing},
        methods=methods,
        seeds=seeds,
        source=source,
        style_images=style_images,
        partners=partners,
        base=base,
        evaluator=evaluator,
        train_settings=train_settings,
        merge_settings=merge_settings,
        sample_settings=sample_settings,
    )
    amounts = Amounts(gpus=gpus, cpu=cpu, memory=memory)
    done = carry_out("compare", compared, Tasks(most=tasks, bulk=True, amounts=amounts))
    outcomes = done.shown.outputs["outcomes"]
    light(check_outcomes(fail=fail, outcomes=outcomes), "check outcomes")
