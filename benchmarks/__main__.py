"""`python -m benchmarks`: measure all or some parts, and write JSON and a page of tables."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.measuring import WrongNumbersError, measured
from benchmarks.page import results_in, shown, written
from benchmarks.part import Part, Sizes

PARTS = {
    "head-only": "benchmarks.head_only",
    "paper-way": "benchmarks.paper_way",
    "end-to-end": "benchmarks.end_to_end",
    "photographs": "benchmarks.photographs",
    "crash": "benchmarks.crash",
    "head-training": "benchmarks.head_training",
    "query": "benchmarks.query",
    "scale": "benchmarks.scale",
    "scores": "benchmarks.scores",
    "explanations": "benchmarks.explanations",
}
"""Name of a part -> its module."""

PRELOAD = ("torch", "store.catalog", "stages.reflection.extraction")
"""Modules that most contenders need: imported once, and shared by their processes."""


def main() -> None:
    """Measure the requested parts, print the results and write them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", action="append", choices=PARTS, help="may be given again")
    parser.add_argument("--quick", action="store_true", help="small sizes: a trial, no figures")
    parser.add_argument("--repeats", type=int, help="rounds that count (default: 5, quick: 1)")
    parser.add_argument(
        "--out",
        help="write OUT.json and OUT.md; parts that are in OUT.json already and are not measured "
        "again stay as they are",
    )
    parser.add_argument("--folder", help="where to work (default: the system's temporary folder)")
    asked = parser.parse_args()
    repeats = asked.repeats or (1 if asked.quick else 5)
    about = machine.description()
    results: dict[str, Any] = results_in(asked.out) if asked.out else {}
    wrong = 0
    for name in asked.only or PARTS:
        part: Part = import_module(PARTS[name]).PART
        try:
            found = result_of(part, Sizes(asked.quick), repeats, asked.folder)
        except WrongNumbersError as error:
            tell(f"{name}: {error}")
            wrong = 1
            continue
        results[name] = {**found, "machine": about}
        if asked.out:
            written(asked.out, results)
        print(shown(results[name]), flush=True)
    sys.exit(wrong)


def result_of(part: Part, sizes: Sizes, repeats: int, folder: str | None) -> dict[str, Any]:
    """Measure a part; raises ``WrongNumbersError``."""
    warnings = [machine.warning_before()]
    tell(f"{part.name}: {warnings[0] or 'the machine is quiet'}")
    before, began = machine.jiffies(), time.monotonic()
    with tempfile.TemporaryDirectory(dir=folder) as place:
        contenders = part.contenders(sizes)
        found = measured(contenders, Path(place), repeats, preload=PRELOAD, tell=tell)
    warnings.append(machine.warning_after(before))
    return {
        "title": part.title,
        "files": machine.file_system(folder or tempfile.gettempdir()),
        "words": part.words,
        "quick": sizes.is_quick,
        "repeats": repeats,
        "warning": "; ".join(filter(None, warnings)),
        "minutes": (time.monotonic() - began) / 60,
        "columns": part.columns,
        "rows": [each.row() for each in found],
        "figures": [each.row(found) for each in part.figures],
        "runs": {each.contender.name: [vars(run) for run in each.runs] for each in found},
    }


def tell(line: str) -> None:
    """Print progress on stderr."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
