"""Results as JSON and as Markdown tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.terminal import size

MARK = "<!-- What follows is written by `make bench`. -->"
"""A page is kept up to this line."""

Result = Mapping[str, Any]


def results_in(out: str) -> dict[str, Any]:
    """Parts that were measured earlier."""
    path = Path(f"{out}.json")
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def written(out: str, results: Mapping[str, Result]) -> None:
    """Write the JSON, and the tables below what a page says above ``MARK``."""
    Path(f"{out}.json").write_text(json.dumps(results, indent=1) + "\n")
    page = Path(f"{out}.md")
    above = page.read_text().partition(MARK)[0] if page.is_file() else "# Benchmarks\n\n"
    tables = "\n".join(shown(result) for result in results.values())
    page.write_text(f"{above}{MARK}\n\n{tables}")


def shown(result: Result) -> str:
    """A part as Markdown: description, machine, table and ratios."""
    rows = [each for each in result["rows"] if "absent" not in each]
    facts = [key for row in rows for key in row if key not in KNOWN]
    columns = ["name", *result["columns"], *dict.fromkeys(facts)]
    lines = [f"## {result['title']}", "", *_paragraphs(result), ""]
    lines += _table(result["rows"], columns)
    if result["figures"]:
        columns = ["figure", "median", "from", "to", "aim", "reached"]
        lines += ["", *_table(result["figures"], columns)]
    return "\n".join([*lines, ""])


KNOWN = ("name", "seconds", "from", "to", "cpu s", "rows/s", "memory", "on disk", "absent")


def _paragraphs(result: Result) -> list[str]:
    about = result["machine"]
    where = [about["processor"], about["accelerator"], about["memory"], about["system"]]
    is_quick = " A trial with small sizes: no figures." if result["quick"] else ""
    words = (result["words"] or "").strip()
    return [
        words,
        "",
        f"Commit {about['commit']}, {about['date']}; {'; '.join(map(str, where))}; "
        f"{about['versions']}. Medians of {result['repeats']} rounds, {result['minutes']:.1f} "
        f"minutes, files on {result['files']}.{is_quick}"
        + (f" **{result['warning']}.**" if result["warning"] else ""),
    ]


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> list[str]:
    lines = [_line(columns), _line(["---"] * len(columns))]
    for row in rows:
        cells = [_cell(column, row.get(column)) for column in columns]
        if "absent" in row:
            cells[1] = row["absent"]
        lines.append(_line(cells))
    return lines


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(column: str, value: Any) -> str:
    if value is None:
        return ""
    if column in ("memory", "on disk") or column.endswith("memory"):
        return size(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)
