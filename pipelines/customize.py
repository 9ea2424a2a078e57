"""One content, one style, one or several methods."""

from typing import Dict, List

from kfp import dsl

from components.publish_adapter import publish_adapter
from pipelines.resources import Amounts, heavy
from pipelines.steps import Compared, Tasks, all_images, carry_out


@dsl.pipeline(name="customize")
def customize(
    content: str = "octopus",
    style: str = "painted-19",
    methods: List[str] = ["b4m", "direct"],
    seeds: List[int] = [0, 1, 2, 3],
    source: str = "data/emojigrid",
    base: str = "data/models/mini-sdxl",
    evaluator: str = "data/models/mini-clip",
    train_settings: Dict = {},
    merge_settings: Dict = {},
    sample_settings: Dict = {},
    style_images: int = 5,
    partners: int = 3,
    tasks: int = 0,
    register_as: str = "",
    minimum: float = 0.0,
    gpus: str = "0",
    cpu: str = "1",
    memory: str = "4G",
):
    """Show one content in one style.

    1. Prepare the images of both. 2. Train the adapters that the methods need. 3. Merge them, once
    per method. 4. Generate images with every method, and for comparison with each adapter alone
    and with the base. 5. Score. 6. Report. 7. Publish the best adapter, with its card.

    Args:
        content: Name of the content, the thing to show.
        style: Name of the style, the way to show it.
        methods: Methods; the first one is the result, the others are compared with it.
        seeds: One image per prompt and seed, from the same noise for every method.
        source: Folder of an EmojiGrid, or your own folder with content/NAME and style/NAME; or
            where DVC tracks one, dvc+REPOSITORY@REVISION#PATH, with &remote=NAME.
        base: Base model: a folder, a hub id or a single-file checkpoint.
        evaluator: Encoder that compares images: a folder, or an open_clip MODEL:WEIGHTS.
        train_settings: Settings of training, NAME for all methods that have it, or METHOD.NAME.
        merge_settings: Settings of merging, likewise.
        sample_settings: Settings of sampling, likewise.
        style_images: How many images teach the style.
        partners: How many images of the other kind accompany B4M's training.
        tasks: Most tasks of a kind of jobs; 0 gives each job its own.
        register_as: Model in MLflow's registry that gets the best adapter as a version, if any.
        minimum: Lowest score of a version.
        gpus: Accelerators of a task that runs the base; SDXL needs 1, the small bases none.
        cpu: CPUs that a heavy task asks for.
        memory: Memory that a heavy task gets; 32G suits SDXL.
    """
    compared = Compared(
        concepts={"content": content, "style": style},
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
    done = carry_out("customize", compared, Tasks(most=tasks, bulk=False, amounts=amounts))
    published = publish_adapter(
        name=register_as,
        minimum=minimum,
        jobs=done.planned.outputs["jobs"],
        data=done.prepared.outputs["data"],
        scores=done.scored.outputs["scores"],
        trained=done.trained.outputs["adapters"],
        merged_closed_form=dsl.Collected(done.merges["closed_form"].outputs["merged"]),
        merged_learned=dsl.Collected(done.merges["learned"].outputs["merged"]),
        page=done.shown.outputs["page"],
        **all_images(done.samples),
    )
    heavy(published, "publish", amounts)
