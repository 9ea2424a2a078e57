"""The report's sentences: what was found, what a score is, and what it cannot say."""

from b4m.evaluate.tables import COPIES
from b4m.report.read import IDENTITY, World, name_of


def words_of(world: World, kind: str, name: str) -> str:
    """A concept as people say it: of a style the words for it where the manifest has them."""
    concept = world.prepared.concept(kind, name)
    words = concept.class_word if kind == "style" and concept.class_word else name
    return words.replace("-", " ").replace("_", " ")


def lead(world: World) -> list[str]:
    """What was found, in a few sentences."""
    best, part, judge = world.best(), world.deciding, world.judge
    found = {name: world.of_judge(best, name) for name in ("content", "style", part)}
    mean = {name: line.mean for name, line in found.items() if line is not None}
    claim = {
        "truth": "comes closest to the ground truth here",
        "harmonic": "holds content and style together best here",
    }[part]
    said = [
        f"{name_of(best)[0]} {claim}: {mean[part]:.2f} out of 1, with content "
        f"{mean['content']:.2f} and style {mean['style']:.2f}."
    ]
    line = world.differences.get((best, f"{judge['metric']}_{part}", judge["id"]))
    if line is not None:
        certain = line.low is not None and (line.low > 0 or (line.high or 0.0) < 0)
        size = "above" if line.mean >= 0 else "below"
        verdict = "more than chance" if certain else "which may be chance"
        said[0] += f" That is {abs(line.mean):.2f} {size} the direct merge, {verdict}."
    idle = {
        label: one.mean
        for label in (*IDENTITY, *COPIES)
        if (one := world.of_judge(label, part)) is not None and one.mean >= mean[part]
    }
    if idle:
        label = max(idle, key=lambda name: idle[name])
        said.append(
            f"Look before you count: the {name_of(label)[0].lower()} reaches {idle[label]:.2f} "
            "although it merges nothing. Here the pictures have to decide."
        )
    both = world.best("harmonic")
    if both != best:
        said.append(
            f"{name_of(both)[0]} has the higher score for content and style together. A picture "
            "that shows a bit of each is like both; the ground truth tells the difference."
        )
    return said


def terms(world: World) -> list[tuple[str, str, str]]:
    """Metric, the word for it, and its meaning, for the metrics that were measured."""
    judge = world.judge["metric"]
    short = {"clip_i": "CLIP-I"}.get(judge, judge)
    known = [
        (
            f"{judge}_content",
            "Content",
            f"{short} with the content's reference pictures: the mean cosine of the two pictures' "
            "features, as the judge sees them. 1 is the same picture.",
        ),
        (f"{judge}_style", "Style", f"{short} with the style's reference pictures, likewise."),
        (
            f"{judge}_harmonic",
            "Both",
            "Harmonic mean of content and style: high only when both are.",
        ),
        (
            "clip_t",
            "Prompt",
            "CLIP-T: cosine between the picture and the prompt in plain words, trigger words "
            "replaced. Matching pairs of picture and text lie far below 1.",
        ),
        ("content_named", "Content named", "Share of pictures whose content the judge names."),
        ("style_named", "Style named", "Share of pictures whose style the judge names."),
        (
            f"{judge}_truth",
            "Truth",
            "Cosine with the ground truth: this content in this style as its artist drew it.",
        ),
        (
            "psnr_truth",
            "PSNR, dB",
            "Likeness to the ground truth pixel by pixel. A picture that is right but a little "
            "shifted scores low; read it across rows, not by itself.",
        ),
    ]
    measured = {metric for _, metric, _ in world.summary}
    found = [entry for entry in known if entry[0] in measured]
    return found + [
        (
            encoder["metric"],
            encoder["id"],
            "The same scores by a network that shares nothing with the judge: a check of the "
            "judge, on a scale of its own.",
        )
        for encoder in world.provenance["encoders"][1:]
    ]


def limits(world: World) -> list[str]:
    """What a reader must not conclude."""
    unit = next(iter(world.summary.values())).unit
    trained = any(entry["role"] == "train" for entry in world.provenance["references"])
    said = [
        "A likeness score rewards copying: the style picture on one side, the untouched content "
        "on the other. That is why both sides always stand together, beside rows that copy.",
        f"The judge is {world.judge['id']}. Numbers by another encoder, another crop or another "
        "set of references cannot be set beside these; only rows of this page can be compared.",
    ]
    if unit == "pictures":
        said.append(
            "There is one content and one style here. The intervals say how much pictures vary "
            "from seed to seed, and nothing about other contents or styles."
        )
    elif unit == "pairs":
        said.append(
            "Intervals are over pairs of a content and a style. Pairs share contents and styles, "
            "so they are somewhat too narrow."
        )
    else:
        said.append("One picture per row gives no interval: sample more seeds.")
    if trained:
        said.append(
            "No reference was held back for at least one side, so pictures are compared with those "
            "that the adapter was trained on. Remembering them is rewarded."
        )
    if any(truth.alignment == "meaning" for truth in world.prepared.truths.values()):
        said.append(
            "A ground truth by another hand agrees in meaning and style only, not in outline; its "
            "pixels are not compared."
        )
    return said
