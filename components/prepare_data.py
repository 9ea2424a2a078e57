"""Images and captions of contents and styles."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def prepare_data(
    source: str,
    style_images: int,
    partners: int,
    jobs: dsl.Input[dsl.Dataset],
    data: dsl.Output[dsl.Dataset],
):
    """Choose and caption the images of contents and styles.

    Args:
        source: Folder of an EmojiGrid, or your own folder with content/NAME and style/NAME; or
            where DVC tracks one, dvc+REPOSITORY@REVISION#PATH, with &remote=NAME.
        style_images: How many images teach a style.
        partners: How many images of the other kind accompany B4M's training.
        jobs: All jobs of the run; they name the contents and the styles.
    """
    from b4m import verbs
    from b4m.data.versions import data_version, shown
    from b4m.jobs import Jobs
    from b4m.tracking import pipeline_step

    comparison = Jobs.read(jobs.path).comparison
    names = ",".join(comparison.contents), ",".join(comparison.styles)
    with pipeline_step(settings={"source": shown(source), "style_images": style_images}) as run:
        verbs.prepare(source, data.path, *names, int(style_images), int(partners))
        found = data_version(source, data.path)
        run.dataset(found.name, found.digest, found.place)
        run.tags({"dvc.data_md5": found.digest})
