"""Pictures and captions of one content and one style."""

from typing import List

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def prepare_data(
    source: str,
    content: str,
    style: str,
    methods: List[str],
    data: dsl.Output[dsl.Dataset],
    style_images: int = 5,
    partners: int = 3,
) -> List[str]:
    """Choose and caption the pictures of one content and one style.

    Args:
        source: Folder of an EmojiGrid, or your own folder with content/NAME and style/NAME.
        content: Name of the content, the thing to draw.
        style: Name of the style, the way to draw it.
        methods: Merge methods of this run; they decide which adapters are trained.
        style_images: How many pictures teach the style.
        partners: How many other styles accompany the content picture while B4M learns it.

    Returns:
        The trainings that the methods need: "lora" for plain adapters, or a method's own.
    """
    from b4m import verbs
    from b4m.errors import B4MError
    from b4m.methods import MERGES, TRAINERS
    from b4m.tracking import open_tracker

    for name in methods:
        if name not in MERGES:  # told now, not after the training
            raise B4MError(f"unknown merge method {name!r}; known: {', '.join(MERGES)}")
    chosen = {"source": source, "content": content, "style": style, "methods": methods}
    name = f"customize/{content}+{style}"
    with open_tracker(name, "customize", settings=chosen, goes_on=True) as run:
        data.metadata["parent_run"] = run.run_id
        verbs.prepare(source, data.path, content, style, int(style_images), int(partners))
    return list(dict.fromkeys(m if m in TRAINERS else "lora" for m in methods))
