"""One content, one style, one or several ways to merge them."""

from typing import Dict, List

from kfp import dsl

from components.evaluate import evaluate
from components.merge import merge
from components.prepare_data import prepare_data
from components.report import report
from components.sample import sample
from components.shelve_adapters import shelve_adapters
from components.train_adapter import train_adapter
from pipelines.resources import PARALLEL, heavy, light

ALONE = [
    {"which": "none", "label": "base"},
    {"which": "content", "label": "content only"},
    {"which": "style", "label": "style only"},
]


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
):
    """Draw one content in one style.

    1. Prepare the pictures of both. 2. Train an adapter of each, once per way of training that the
    methods need. 3. Merge them, once per method. 4. Draw with every merged adapter, and for
    comparison with each adapter alone and with the base. 5. Score. 6. Report.

    Args:
        content: Name of the content, the thing to draw.
        style: Name of the style, the way to draw it.
        methods: Merge methods; the first one is the result, the others are compared with it.
        seeds: One picture per prompt and seed, from the same noise for every method.
        source: Folder of an EmojiGrid, or your own folder with content/NAME and style/NAME.
        base: Base model: a folder, a hub id or a single-file checkpoint.
        evaluator: Encoder that compares pictures: a folder, or an open_clip MODEL:WEIGHTS.
        train_settings: Settings of training by name, for example steps or rank.
        merge_settings: Settings of merging by name.
        sample_settings: Settings of sampling by name.
        style_images: How many pictures teach the style.
        partners: How many other styles accompany the content picture while B4M learns it.
    """
    prepared = prepare_data(
        source=source,
        content=content,
        style=style,
        methods=methods,
        style_images=style_images,
        partners=partners,
    )
    light(prepared, "prepare data")
    data = prepared.outputs["data"]

    with dsl.ParallelFor(
        prepared.outputs["Output"], name="trainings", parallelism=PARALLEL
    ) as training:
        of_content = train_adapter(
            kind="content",
            concept=content,
            method=training,
            base=base,
            settings=train_settings,
            data=data,
        )
        heavy(of_content, "train content")
        of_style = train_adapter(
            kind="style",
            concept=style,
            method=training,
            base=base,
            settings=train_settings,
            data=data,
        )
        heavy(of_style, "train style")

    shelf = shelve_adapters(
        contents=dsl.Collected(of_content.outputs["adapter"]),
        styles=dsl.Collected(of_style.outputs["adapter"]),
    )
    light(shelf, "shelve adapters")
    adapters = shelf.outputs["adapters"]

    with dsl.ParallelFor(methods, name="methods", parallelism=PARALLEL) as method:
        merging = merge(
            method=method, base=base, settings=merge_settings, data=data, adapters=adapters
        )
        heavy(merging, "merge")
        of_merged = sample(
            which="merged",
            label=method,
            seeds=seeds,
            base=base,
            settings=sample_settings,
            data=data,
            adapter=merging.outputs["merged"],
        )
        heavy(of_merged, "sample merged")

    with dsl.ParallelFor(ALONE, name="alone", parallelism=PARALLEL) as row:
        of_alone = sample(
            which=row.which,
            label=row.label,
            seeds=seeds,
            base=base,
            settings=sample_settings,
            data=data,
            adapter=adapters,
        )
        heavy(of_alone, "sample alone")

    scored = evaluate(
        evaluator=evaluator,
        data=data,
        alone=dsl.Collected(of_alone.outputs["samples"]),
        merged=dsl.Collected(of_merged.outputs["samples"]),
    )
    heavy(scored, "evaluate")
    page = report(
        title=f"{content} in {style}",
        data=data,
        alone=dsl.Collected(of_alone.outputs["samples"]),
        merged=dsl.Collected(of_merged.outputs["samples"]),
        scores=scored.outputs["scores"],
    )
    light(page, "report")
