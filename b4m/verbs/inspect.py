"""Say what an adapter file is, or how two of them meet."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from b4m.errors import B4MError


def inspect(
    file: str | Path, other: str | Path = "", table: bool = False, plot: str | Path = ""
) -> dict[str, Any] | str:
    """Say what an adapter file is: its naming style, ranks, layers, energy and metadata.

    Of two files: how they meet, layer by layer and block by block. Cosine, norms, and how far they
    read and write the same directions tell what a merge of the two is up against.

    Args:
        file: adapter file of any tool
        other: a second one, of the same base
        table: of two files, a table for people instead of JSON
        plot: of two files, an image to write (.svg)

    Returns:
        The facts by name, or the table.

    Raises:
        B4MError: if a file cannot be read or holds something else than low-rank pairs, or if the
            two are of different bases.
    """
    from b4m.files import compare_files, describe
    from b4m.io import check_output, write_whole

    if not str(other):
        if table or str(plot):
            raise B4MError("a table and a plot are of two adapters; give a second file")
        facts = describe(Path(file))
        if "problem" in facts:
            raise B4MError(f"{file}: {facts['problem']}")
        return facts
    if str(plot):
        check_output(Path(plot), ".svg")
    facts = compare_files([Path(file), Path(other)])
    if str(plot):
        write_whole(Path(plot), _drawing(facts))
    return _table(facts) if table else facts


def _table(facts: Mapping[str, Any]) -> str:
    rows = {**facts["blocks"], "together": facts["shared"]}
    wide = max(map(len, [*rows, "block"]))
    lines = [
        f"{'block':{wide}}  layers  norm 1  norm 2  cosine  overlap in (chance)  out (chance)",
        *(
            f"{name:{wide}}  {row['layers']:6}  {row['norms'][0]:6.2f}  {row['norms'][1]:6.2f}  "
            f"{row['cosine']:6.2f}  {row['overlap_in']:10.2f} ({row['chance_in']:.2f})  "
            f"{row['overlap_out']:10.2f} ({row['chance_out']:.2f})"
            for name, row in rows.items()
        ),
    ]
    return "\n".join([*lines, "", *facts["advice"]])


def _drawing(facts: Mapping[str, Any]) -> str:
    """A bar of cosine and two of overlap per block, from -1 to 1, as SVG."""
    from html import escape

    rows = {**facts["blocks"], "together": facts["shared"]}
    colours = {"cosine": "#4c5c96", "overlap_in": "#c0724a", "overlap_out": "#d9b08c"}
    left, unit, high = 320, 150, 36
    parts = []
    for k, (name, row) in enumerate(rows.items()):
        top = 40 + high * k
        parts.append(
            f'<text x="{left - unit - 8}" y="{top + 18}" text-anchor="end">{escape(name)}</text>'
        )
        for n, (measure, colour) in enumerate(colours.items()):
            start, length = left + unit * min(row[measure], 0), unit * abs(row[measure])
            parts.append(
                f'<rect x="{start:.1f}" y="{top + 9 * n}" width="{length:.1f}" height="8" '
                f'fill="{colour}"><title>{measure} {row[measure]}</title></rect>'
            )
    legend = "".join(
        f'<text x="{left + 80 * n - 60}" y="20" fill="{colour}">{measure.replace("_", " ")}</text>'
        for n, (measure, colour) in enumerate(colours.items())
    )
    height = 48 + high * len(rows)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + unit + 20}" height="{height}" '
        f'font-family="sans-serif" font-size="12">{legend}<line x1="{left}" y1="32" x2="{left}" '
        f'y2="{height - 8}" stroke="#888"/>{"".join(parts)}</svg>\n'
    )
