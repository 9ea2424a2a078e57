"""Say what an adapter file is, or how several of them meet."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from b4m.errors import B4MError


def inspect(
    files: Sequence[str | Path], json: bool = False, image: str | Path = ""
) -> dict[str, Any] | str:
    """Say what an adapter file is: its naming style, ranks, layers, energy and metadata.

    Of two files or more: how they meet, block by block. Norms, cosines, and how far they read and
    write the same directions tell what a merge of them is up against, and what to do about it.

    Args:
        files: adapter files of any tool; several of one base
        json: of several files, facts as JSON instead of a table; those of one file always are
        image: of several files, a picture of the table to write (.png)

    Returns:
        The facts by name, or the table.

    Raises:
        B4MError: if a file cannot be read or holds something else than low-rank pairs, or if they
            are of different bases.
    """
    from b4m.files import compare_files, describe
    from b4m.io import check_output, write_whole

    paths = [Path(file) for file in files]
    if not paths:
        raise B4MError("inspect needs an adapter file; give one or more")
    if len(paths) == 1:
        if str(image):
            raise B4MError("an image is of several adapters; give another file")
        facts = describe(paths[0])
        if "problem" in facts:
            raise B4MError(f"{paths[0]}: {facts['problem']}")
        return facts
    if str(image):
        check_output(Path(image), ".png")
    facts = compare_files(paths)
    if str(image):
        from b4m.report.meeting import picture

        write_whole(Path(image), picture(facts))
    return facts if json else _table(facts)


def _table(facts: Mapping[str, Any]) -> str:
    """One line for each block, then how strong the sum is, then the advice."""
    rows = {**facts["blocks"], "together": facts["together"]}
    wide = max(map(len, [*rows, "block"]))
    numbers = range(1, len(facts["files"]) + 1)
    pairs = list(facts["together"]["pairs"])
    head = f"{'block':{wide}}  layers" + "".join(f"  {f'norm {k}':>8}" for k in numbers)
    for pair in pairs:
        label = "" if len(pairs) == 1 else f" {pair}"
        head += f"  {f'cosine{label}':>10}  {f'reads{label}':>9} (chance)  "
        head += f"{f'writes{label}':>10} (chance)"
    lines = [f"{k} {file}" for k, file in zip(numbers, facts["files"], strict=True)]
    lines += ["", head]
    for name, row in rows.items():
        line = f"{name:{wide}}  {row['layers']:6}"
        line += "".join(f"  {norm:8.3g}" for norm in row["norms"])
        for pair in pairs:
            line += _cells(row["pairs"].get(pair))
        lines.append(line.rstrip())
    strength = ", ".join(f"{value:.2f} ({name})" for name, value in facts["strength"].items())
    lines += ["", f"strength at which the sum is as strong as the strongest: {strength}"]
    return "\n".join([*lines, *facts["advice"]])


def _cells(pair: Mapping[str, float] | None) -> str:
    """Cosine and overlaps of a pair; blank where the two have no common layer."""
    if pair is None:
        return " " * 51
    return (
        f"  {pair['cosine']:10.2f}  {pair['overlap_in']:9.2f}   ({pair['chance_in']:.2f})  "
        f"{pair['overlap_out']:10.2f}   ({pair['chance_out']:.2f})"
    )
