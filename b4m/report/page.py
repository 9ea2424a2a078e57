"""The page: pictures first, then how they compare, then what the numbers mean and come from."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from b4m.evaluate.samples import Sample
from b4m.evaluate.tables import COPIES, PIXELS
from b4m.report.chart import Dot, scatter
from b4m.report.images import data_uris
from b4m.report.provenance import facts
from b4m.report.read import IDENTITY, Line, World, name_of
from b4m.report.words import lead, limits, terms, words_of

_SHOWN_OPEN = 6
_PARTS = {"content": "Content", "style": "Style", "harmonic": "Both", "truth": "Truth"}


@dataclass(frozen=True)
class Canvas:
    """A world together with its pictures as data URIs."""

    world: World
    uris: Mapping[Path, str]

    def image(self, path: Path, text: str) -> str:
        """An <img> of a picture with what it shows."""
        return f'<img src="{self.uris[path]}" alt="{escape(text)}" title="{escape(text)}">'


def render(world: World, title: str = "") -> str:
    """The whole page as text.

    Args:
        world: what is shown.
        title: heading; made from the content and the style if empty.
    """
    title = title or _title(world)
    canvas = Canvas(world, data_uris(_needed(world)))
    body = "\n".join(
        [
            _header(world, title),
            _sum(canvas) if len(world.pairs) == 1 else _matrix(canvas),
            "<h2>Row by row</h2>",
            '<p class="soft">Every column starts from the same noise, so what differs down a '
            "column is the method alone.</p>",
            *[_pair(canvas, pair, place) for place, pair in enumerate(world.pairs)],
            _comparison(world),
            _numbers(world),
            "<h2>What the numbers mean</h2>",
            _terms(terms(world)),
            "<h3>And what they do not</h3>",
            *[f"<p>{escape(text)}</p>" for text in limits(world)],
            facts(world),
            f"<footer>Made by b4m {escape(str(world.provenance.get('b4m_version', '')))}. This "
            "page carries everything it shows; it can be mailed, printed and archived.</footer>",
        ]
    )
    template = files("b4m.report").joinpath("template.html").read_text(encoding="utf-8")
    return Template(template).substitute(title=escape(title), body=body)


def _needed(world: World) -> list[Path]:
    paths = [sample.path for sample in world.samples]
    for content, style in world.pairs:
        paths += world.prepared.concept("content", content).trained[:1]
        paths += world.prepared.concept("style", style).trained[:6]
        truth = world.prepared.truths.get((content, style))
        paths += [truth.path] if truth else []
    return paths


def _title(world: World) -> str:
    contents = list(dict.fromkeys(words_of(world, "content", c) for c, _ in world.pairs))
    styles = list(dict.fromkeys(words_of(world, "style", s) for _, s in world.pairs))
    content = contents[0] if len(contents) == 1 else f"{len(contents)} contents"
    style = f"{styles[0]} style" if len(styles) == 1 else f"{len(styles)} styles"
    return f"{content[:1].upper()}{content[1:]} in {style}"


def _header(world: World, title: str) -> str:
    day = str(world.provenance.get("created", ""))[:10]
    count = len(world.samples)
    return (
        f'<p class="eyebrow">Content and style customization &#183; {escape(day)} &#183; '
        f"{count} pictures</p><h1>{escape(title)}</h1>"
        + "".join(f'<p class="lead">{escape(text)}</p>' for text in lead(world))
    )


def _sum(canvas: Canvas) -> str:
    """Content + style = merged, for the only pair; the first picture, not the best one."""
    world = canvas.world
    pair = world.pairs[0]
    content, style = (
        world.prepared.concept("content", pair[0]),
        world.prepared.concept("style", pair[1]),
    )
    best = world.best()
    first = next(sample for sample in world.samples if sample.label == best)
    tiles = "".join(canvas.image(path, "style picture") for path in style.trained[:6])
    few = " few" if len(style.trained) <= 4 else ""
    parts = [
        f'<figure class="one">{canvas.image(content.trained[0], "content image")}'
        "<figcaption><b>Content</b><br>"
        f"{escape(words_of(world, 'content', pair[0]))}</figcaption></figure>",
        '<span class="sign">+</span>',
        f'<figure class="many"><div class="tiles{few}">{tiles}</div><figcaption><b>Style</b><br>'
        f"{escape(words_of(world, 'style', pair[1]))}</figcaption></figure>",
        '<span class="sign">=</span>',
        f'<figure class="made">{canvas.image(first.path, _told(first))}<figcaption><b>'
        f"{escape(name_of(best)[0])}</b><br>the first picture, not the best one</figcaption>"
        "</figure>",
    ]
    truth = world.prepared.truths.get(pair)
    if truth is not None:
        said = (
            "the same drawing, made in this style"
            if truth.alignment == "exact"
            else "another artist's hand in this style"
        )
        parts.append(
            f'<figure class="one">{canvas.image(truth.path, "ground truth")}'
            f"<figcaption><b>Ground truth</b><br>{said}</figcaption></figure>"
        )
    return f'<div class="sum">{"".join(parts)}</div>'


def _matrix(canvas: Canvas) -> str:
    """Contents down, styles across, the best method's first picture in each cell."""
    world = canvas.world
    best = world.best()
    first: dict[tuple[str, str], Sample] = {}
    for sample in world.samples:
        if sample.label == best:
            first.setdefault(world.pair_of(sample), sample)
    contents = list(dict.fromkeys(content for content, _ in world.pairs))
    styles = list(dict.fromkeys(style for _, style in world.pairs))

    def head(kind: str, name: str) -> str:
        path = world.prepared.concept(kind, name).trained[0]
        return (
            f'<div class="ref">{canvas.image(path, f"{kind} picture")}</div>'
            f"{escape(words_of(world, kind, name))}"
        )

    heads = "".join(f"<th>{head('style', style)}</th>" for style in styles)
    rows = []
    for content in contents:
        cells = [
            f'<td class="pic">{canvas.image(found.path, _told(found))}</td>'
            if (found := first.get((content, style)))
            else '<td class="none"></td>'
            for style in styles
        ]
        rows.append(f'<tr><th class="row">{head("content", content)}</th>{"".join(cells)}</tr>')
    return (
        f"<h2>{escape(name_of(best)[0])}, every content in every style</h2>"
        '<p class="soft">The first picture of each pair, not the best one.</p>'
        f'<div class="scroll"><table class="grid matrix"><thead><tr><th></th>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _pair(canvas: Canvas, pair: tuple[str, str], place: int) -> str:
    """All rows of one pair."""
    world = canvas.world
    own = [sample for sample in world.samples if world.pair_of(sample) == pair]
    columns = list(dict.fromkeys((sample.prompt, sample.seed) for sample in own))
    prompts = list(dict.fromkeys(prompt for prompt, _ in columns))
    columns.sort(key=lambda column: prompts.index(column[0]))
    by_key = {(sample.label, sample.prompt, sample.seed): sample for sample in own}
    above = "".join(
        f'<th colspan="{sum(prompt == asked for prompt, _ in columns)}">{escape(asked)}</th>'
        for asked in prompts
    )
    seeds = "".join(f"<th>seed {seed}</th>" for _, seed in columns)
    rows = []
    for label in [label for label in world.labels if any(s.label == label for s in own)]:
        found = [by_key.get((label, *column)) for column in columns]
        rows.append(_row(canvas, label, pair, found))
    grid = (
        f'<div class="scroll"><table class="grid"><thead><tr><th></th>{above}<th></th></tr>'
        f"<tr><th></th>{seeds}<th></th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )
    if len(world.pairs) == 1:
        return grid
    content, style = words_of(world, "content", pair[0]), words_of(world, "style", pair[1])
    name = escape(f"{content[:1].upper()}{content[1:]} in {style} style")
    if len(world.pairs) <= _SHOWN_OPEN:
        return f"<h3>{name}</h3>{grid}"
    return f"<details{' open' if place == 0 else ''}><summary>{name}</summary>{grid}</details>"


def _row(canvas: Canvas, label: str, pair: tuple[str, str], found: Sequence[Sample | None]) -> str:
    world = canvas.world
    name, about = name_of(label)
    cells = [
        f'<td class="pic">{canvas.image(sample.path, _told(sample))}</td>'
        if sample
        else '<td class="none">not drawn</td>'
        for sample in found
    ]
    meters = []
    for part, word in _PARTS.items():
        key = (label, *pair, f"{world.judge['metric']}_{part}", world.judge["id"])
        value = world.in_pair.get(key)
        if value is not None:
            width = 100 * min(max(value, 0.0), 1.0)
            meters.append(
                f'<div class="meter" style="--w:{width:.1f}%;--c:var(--{part})">{word}<i></i>'
                f"<b>{value:.2f}</b></div>"
            )
    after_identity = label not in IDENTITY and any(one in IDENTITY for one in world.labels)
    first_merge = after_identity and next(o for o in world.labels if o not in IDENTITY) == label
    classes = f"{'gap ' if first_merge else ''}{'ours' if label == world.best() else ''}".strip()
    return (
        f'<tr class="{classes}"><th class="row" scope="row"><b>{escape(name)}</b>'
        f"<span>{escape(about)}</span></th>{''.join(cells)}"
        f'<td class="score">{"".join(meters)}</td></tr>'
    )


def _comparison(world: World) -> str:
    """The chart, and every method against the direct merge."""
    best, dots = world.best(), []
    for label in (*world.labels, *COPIES):
        content, style = world.of_judge(label, "content"), world.of_judge(label, "style")
        if content is None or style is None:
            continue
        kind = "identity" if label in IDENTITY else "copy" if label in COPIES else "merged"
        dots.append(Dot(name_of(label)[0], "best" if label == best else kind, content, style))
    return (
        "<h2>Content against style</h2>"
        '<p class="soft">Up and to the right is better. Dotted lines join equal balance of both. '
        "Crosses are 95 % intervals; the axes do not start at 0.</p>"
        f'<div class="beside"><figure>{scatter(dots)}</figure><div>{_against(world)}'
        "<p class='small soft'>Hollow dots are no method: they show what handing back a training "
        "picture unchanged would score. One side alone is easy to win by copying.</p></div></div>"
    )


def _against(world: World) -> str:
    """Every merged row minus the direct merge."""
    parts = ["harmonic", *(["truth"] if world.deciding == "truth" else [])]
    rows = []
    for label in world.labels:
        lines = [
            world.differences.get((label, f"{world.judge['metric']}_{part}", world.judge["id"]))
            for part in parts
        ]
        cells = "".join(
            f"<td>{line.mean:+.3f}{_interval(line, '+.3f')}</td>" for line in lines if line
        )
        if cells and label not in IDENTITY:
            css = ' class="ours"' if label == world.best() else ""
            rows.append(f"<tr{css}><th>{escape(name_of(label)[0])}</th>{cells}</tr>")
    if not rows:
        return ""
    heads = "".join(f"<th>{_PARTS[part]}</th>" for part in parts)
    return (
        "<h3>Against the direct merge</h3><p class='small soft'>Differences on the same pairs, "
        "prompts and seeds. An interval that leaves out 0 is more than chance.</p>"
        f'<table class="numbers"><thead><tr><th></th>{heads}</tr></thead>{"".join(rows)}</table>'
    )


def _numbers(world: World) -> str:
    """Every score of every row with its interval."""
    metrics = list(dict.fromkeys((metric, encoder) for _, metric, encoder in world.summary))
    named = {name: word for name, word, _ in terms(world)}
    heads = ""
    for metric, encoder in metrics:
        word = named.get(metric) or _PARTS.get(metric.rpartition("_")[2], metric)
        check = encoder not in (world.judge["id"], PIXELS)
        heads += f"<th>{escape(word)}{f'<small>{escape(encoder)}</small>' if check else ''}</th>"
    sampled = [label for label in world.labels if label not in IDENTITY]
    top = {
        key: max(
            (line.mean for label in sampled if (line := world.summary.get((label, *key)))),
            default=None,
        )
        for key in metrics
    }
    rows = []
    for label in (*world.labels, *COPIES):
        cells = []
        for key in metrics:
            line = world.summary.get((label, *key))
            mark = ' class="top"' if line and label in sampled and line.mean == top[key] else ""
            text = f"{_figure(key[0], line.mean)}{_interval(line, _form(key[0]))}" if line else ""
            cells.append(f"<td{mark}>{text}</td>")
        css = ' class="ours"' if label == world.best() else ""
        rows.append(f"<tr{css}><th>{escape(name_of(label)[0])}</th>{''.join(cells)}</tr>")
    unit = next((line for line in world.summary.values()), None)
    over = f"{unit.n} {unit.unit}" if unit and unit.unit != "none" else "one picture"
    return (
        f"<h2>All scores</h2><p class='soft'>Mean over {over}, below it the 95 % interval.</p>"
        f'<div class="scroll"><table class="numbers"><thead><tr><th></th>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _terms(entries: Iterable[tuple[str, str, str]]) -> str:
    parts = [f"<dt>{escape(word)}</dt><dd>{escape(text)}</dd>" for _, word, text in entries]
    return f'<dl class="terms">{"".join(parts)}</dl>'


def _interval(line: Line, form: str) -> str:
    if line.low is None or line.high is None:
        return ""
    return f"<small>{line.low:{form}} to {line.high:{form}}</small>"


def _form(metric: str) -> str:
    return ".1f" if metric.startswith("psnr") else ".0%" if metric.endswith("_named") else ".3f"


def _figure(metric: str, value: float) -> str:
    return f"{value:{_form(metric)}}"


def _told(sample: Sample) -> str:
    return f"{name_of(sample.label)[0]}, seed {sample.seed}: {sample.prompt}"
