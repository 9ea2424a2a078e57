"""The report's sentences: the headline, what a score means, and what it does not show."""

from b4m.evaluation.tables import COPIES
from b4m.report.load import ReportData
from b4m.report.names import BASELINES, name_of

_TERMS = (
    (
        "{metric}_content",
        "Content",
        "{short} with the content's reference images: the mean cosine of the two images' features. "
        "1 is the same image.",
    ),
    ("{metric}_style", "Style", "{short} with the style's reference images, likewise."),
    ("{metric}_harmonic", "Both", "Harmonic mean of content and style: high only when both are."),
    (
        "clip_t",
        "Prompt",
        "CLIP-T: cosine between the image and the prompt in plain words, trigger words replaced. "
        "Matching pairs of image and text lie far below 1.",
    ),
    ("content_named", "Content named", "Share of images whose content the evaluator names."),
    ("style_named", "Style named", "Share of images whose style the evaluator names."),
    ("content_named_top5", "Content in 5", "Its name is among the first five, likewise."),
    ("style_named_top5", "Style in 5", "Its name is among the first five, likewise."),
    (
        "{metric}_truth",
        "Truth",
        "Cosine with the ground truth: this content in this style as its artist drew it.",
    ),
    (
        "psnr_truth",
        "PSNR, dB",
        "Likeness to the ground truth pixel by pixel. An image that is right but a little shifted "
        "scores low; read it across rows, not by itself.",
    ),
    (
        "{metric}_style_csls",
        "Style, CSLS",
        "Style minus what the image and the references have in common with all styles here "
        "(cross-domain similarity local scaling). Read it against the copy of the style.",
    ),
    (
        "{metric}_nearest_training",
        "Copying",
        "Cosine with the most similar training image of either side. 1 is a copy of it.",
    ),
    (
        "{metric}_diversity",
        "Diversity",
        "Mean cosine distance between images of one prompt from different seeds. 0 is one image "
        "again and again.",
    ),
)
"""Metrics of the primary evaluator, the word for each, and what it means."""


def words_of(data: ReportData, kind: str, name: str) -> str:
    """A concept in plain words: of a style the words for it where the manifest has them."""
    concept = data.prepared.concept(kind, name)
    words = concept.class_word if kind == "style" and concept.class_word else name
    return words.replace("-", " ").replace("_", " ")


def headline(data: ReportData) -> list[str]:
    """The result in a few sentences."""
    best, part = data.best(), data.primary_metric
    scores = {name: data.score(best, name) for name in ("content", data.style_part, part)}
    mean = {name: estimate.mean for name, estimate in scores.items() if estimate is not None}
    claim = {
        "truth": "comes closest to the ground truth here",
        "harmonic": "holds content and style together best here",
    }[part]
    first = (
        f"{name_of(best)[0]} {claim}: {mean[part]:.2f} out of 1, with content "
        f"{mean['content']:.2f} and style {mean[data.style_part]:.2f}."
    )
    difference = data.difference(best, part)
    if difference is not None:
        side = "above" if difference.mean >= 0 else "below"
        verdict = "more than chance" if difference.decided else "which may be chance"
        first += f" That is {abs(difference.mean):.2f} {side} the direct merge, {verdict}."
    sentences = [first]
    without_merge = {
        label: estimate.mean
        for label in (*BASELINES, *COPIES)
        if (estimate := data.score(label, part)) is not None and estimate.mean >= mean[part]
    }
    if without_merge:
        label = max(without_merge, key=lambda name: without_merge[name])
        sentences.append(
            f"The {name_of(label)[0].lower()} reaches {without_merge[label]:.2f} although it "
            "merges nothing: this score does not decide here, compare the images."
        )
    both = data.best("harmonic")
    if both != best:
        sentences.append(
            f"{name_of(both)[0]} has the higher score for content and style together. An image "
            "that shows a bit of each is like both; the ground truth tells the difference."
        )
    return sentences


def glossary(data: ReportData) -> list[tuple[str, str, str]]:
    """Metric, the word for it, and its meaning, for the metrics that were measured."""
    metric = data.evaluator["metric"]
    short = {"clip_i": "CLIP-I"}.get(metric, metric)
    measured = {metric for _, metric, _ in data.scores.summary}
    terms = [
        (name.format(metric=metric), word, text.format(short=short)) for name, word, text in _TERMS
    ]
    checks = [
        (
            encoder["metric"],
            encoder["id"],
            "The same scores by another network, as a check of the first, on a scale of its own.",
        )
        for encoder in data.scores.provenance["encoders"][1:]
    ]
    return [term for term in terms if term[0] in measured] + checks


def caveats(data: ReportData) -> list[str]:
    """What a reader must not conclude."""
    unit = next(iter(data.scores.summary.values())).unit
    references = data.scores.provenance["references"]
    blind = [
        words_of(data, "style", style)
        for style, gap in data.evaluator.get("style_gaps", {}).items()
        if gap <= 0
    ]
    sentences = [
        "A likeness score rewards copying: the style image on one side, the untouched content on "
        "the other. That is why both sides always stand together, beside rows that copy.",
        f"The evaluator is {data.evaluator['id']}. Numbers by another encoder, another crop or "
        "another set of references are not comparable; only rows of this page are.",
        {
            "images": "There is one content and one style here. The intervals say how much images "
            "vary from seed to seed, and nothing about other contents or styles.",
            "pairs": "Intervals are over pairs of a content and a style. Pairs share contents and "
            "styles, so they are somewhat too narrow.",
        }.get(unit, "One image per row gives no interval: sample more seeds."),
    ]
    unseen = {encoder: row for (metric, encoder), row in data.blind.items() if "_style" in metric}
    if unseen:
        rows = ", ".join(
            f"{encoder} ({name_of(row)[0]} is higher)" for encoder, row in unseen.items()
        )
        sentences.append(
            "A copy of the style's own images should have the highest style score. Where it has "
            f"not, the score is left out: {rows}."
        )
    if blind:
        sentences.append(
            f"The evaluator does not tell these styles from the others here: {', '.join(blind)}. "
            "Its style scores of them mean nothing."
        )
    if any(entry["role"] == "train" for entry in references):
        sentences.append(
            "No reference was held back for at least one side, so images are compared with those "
            "that the adapter was trained on. Memorizing them is rewarded."
        )
    if any(truth.alignment == "meaning" for truth in data.prepared.ground_truths.values()):
        sentences.append(
            "A ground truth by another hand agrees in meaning and style only, not in outline; its "
            "pixels are not compared."
        )
    return sentences
