"""The README's table, made from the newest committed results: python -m docs.contest.

b4m report runs/contest --results docs/results/DATE    writes the results
python -m docs.contest                                 brings the README up to them
"""

import json
import re
from pathlib import Path

from b4m.report.results import score_table

_MARKS = re.compile(r"(<!-- contest -->\n).*?(<!-- /contest -->)", re.S)
ROOT = Path(__file__).resolve().parent.parent


def table(results: Path) -> str:
    """Markdown of one folder of results: where it is from, the first scores, the claims."""
    record = json.loads((results / "run.json").read_text(encoding="utf-8"))
    compared, about = record["comparison"], record["provenance"]
    contents, styles = compared["comparison"]["contents"], compared["comparison"]["styles"]
    lines = [
        *score_table(record),
        "",
        f"({about['created'][:10]}, commit {str(about['git_commit'] or 'unknown')[:8]}, base "
        f"{record['base']}: {len(contents) * len(styles)} held-out pairs, {len(contents)} contents "
        f"x {len(styles)} styles, seeds {', '.join(map(str, compared['seeds']))}; means over pairs "
        f"with 95 % intervals. All tables, scores and contact sheets: "
        f"[docs/results/{results.name}](docs/results/{results.name}/table.md).)",
    ]
    for standing in record["frontiers"][:1]:
        if standing["verdicts"]:
            lines += ["", f"| claim ({standing['axes']}) | decided |", "|---|---|"]
            lines += [f"| {one['claim']} | {one['answer']} |" for one in standing["verdicts"]]
    return "\n".join(lines) + "\n"


def current(readme: str, results: Path) -> str:
    """The README with the newest results between its marks; as it is where there are none."""
    folders = sorted(file.parent for file in results.glob("*/run.json"))
    if not folders:
        return readme
    return _MARKS.sub(lambda marks: f"{marks[1]}{table(folders[-1])}{marks[2]}", readme)


if __name__ == "__main__":
    file = ROOT / "README.md"
    file.write_text(current(file.read_text(encoding="utf-8"), ROOT / "docs" / "results"), "utf-8")
