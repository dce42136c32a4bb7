"""The benchmark's machinery: order of runs, checks, costs of commands, and the page."""

import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from benchmarks.commands import cost_of
from benchmarks.measuring import (
    Contender,
    Measured,
    Run,
    WrongNumbersError,
    measured,
    peak,
    wall,
    wall_per_row,
)
from benchmarks.page import MARK, shown, written
from benchmarks.part import Figure

REPOSITORY = Path(__file__).parents[1]
BUSY = "import time\nwhile time.process_time() < 0.5: pass"


def noting(name, log, folder):
    def once():
        with log.open("a") as file:
            file.write(name)
        (folder / "out").write_bytes(bytes(4096))

    return once


def holding(n_bytes, folder):
    def once():
        held = bytearray(n_bytes)
        held[::4096] = b"x" * len(held[::4096])

    return once


def missing(folder):
    raise ModuleNotFoundError("No module named 'peer'")


def wrong(folder):
    raise WrongNumbersError("differs from the closed form by 0.1")


def run_of(wall_s, n_rows=1, **facts):
    return Run(n_rows, wall_s, wall_s, 100, 0, facts)


def result_of(rows, figures=()):
    machine = dict.fromkeys(("processor", "accelerator", "memory", "system"), "?")
    return {
        **{"title": "Head only", "words": "Words.", "quick": False, "repeats": 5, "minutes": 1.0},
        "files": "ext4",
        "machine": {**machine, "commit": "abc", "date": "2026-01-01", "versions": "torch 1"},
        **{"warning": "", "columns": ["seconds"], "rows": rows, "figures": figures},
    }


def test_contenders_take_turns_and_the_first_round_does_not_count(tmp_path):
    log = tmp_path / "log"
    both = [Contender(name, partial(noting, name, log)) for name in "ab"]

    found = measured(both, tmp_path, 2)

    assert log.read_text() == "baabba"
    assert [len(each.runs) for each in found] == [2, 2]
    assert [run.disk_bytes for run in found[0].runs] == [4096, 4096]


def test_each_contender_has_its_own_memory(tmp_path):
    large = Contender("large", partial(holding, 200 * 2**20))
    small = Contender("small", partial(holding, 2**20))

    found = measured([large, small], tmp_path, 1)

    assert peak(found[0].runs[0]) - peak(found[1].runs[0]) > 150 * 2**20


def test_a_missing_peer_is_reported_in_one_line(tmp_path):
    (found,) = measured([Contender("peer", missing)], tmp_path, 1)

    assert "| peer | not installed: No module named 'peer' |" in shown(result_of([found.row()]))


def test_wrong_numbers_are_not_timed(tmp_path):
    with pytest.raises(WrongNumbersError, match="peer: differs from the closed form"):
        measured([Contender("peer", wrong)], tmp_path, 1)


def test_a_figure_is_the_median_of_the_rounds_ratios_to_the_best_peer():
    ours = Measured(Contender("ours", missing), [run_of(2.0, 10), run_of(1.0, 10), run_of(2.0, 10)])
    peers = [
        Measured(Contender(name, missing), [run_of(wall_s, 1) for wall_s in walls])
        for name, walls in {"slow": (4.0, 4.0, 4.0), "fast": (0.4, 0.4, 0.2)}.items()
    ]

    row = Figure("peers", ["slow", "fast"], "ours", wall_per_row, at_least=3).row([ours, *peers])

    assert (row["median"], row["from"], row["to"]) == pytest.approx((2.0, 1.0, 4.0))
    assert (row["aim"], row["reached"]) == ("≥ 3", False)


def test_a_figure_of_one_contender_is_its_median():
    found = Measured(Contender("ours", missing), [run_of(1.0), run_of(3.0), run_of(2.0)])

    row = Figure("seconds", ["ours"], None, wall, at_most=2).row([found])

    assert (row["median"], row["aim"], row["reached"]) == (2.0, "≤ 2", True)


def test_the_cost_of_a_command_includes_its_children():
    command = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BUSY!r}]); print(7)"

    cost = cost_of([sys.executable, "-c", command])

    assert cost.cpu_s > 0.25
    assert cost.stdout == "7\n"
    assert cost.peak_bytes > 2**20


def test_a_command_that_fails_is_not_timed():
    with pytest.raises(WrongNumbersError, match="no such thing"):
        cost_of([sys.executable, "-c", "raise SystemExit('no such thing')"])


def test_a_killed_command_takes_its_children_with_it(tmp_path):
    child = f"import time; open({str(tmp_path / 'up')!r}, 'w'); time.sleep(60)"
    command = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    began = time.monotonic()

    cost_of([sys.executable, "-c", command], kill_when=(tmp_path / "up").exists)

    assert time.monotonic() - began < 30  # it would be held open by the child for a minute


def test_text_above_the_tables_is_kept(tmp_path):
    out = tmp_path / "page"
    out.with_suffix(".md").write_text(f"# Ours\n\n{MARK}\n\nold")

    written(str(out), {"head-only": result_of([{"name": "ours", "seconds": 1.5}])})

    page = out.with_suffix(".md").read_text()
    assert page.startswith("# Ours\n\n")
    assert "| ours | 1.5 |" in page
    assert "old" not in page


def test_a_part_is_measured_and_written(tmp_path):
    command = [sys.executable, "-m", "benchmarks", "--quick", "--only", "head-training"]

    done = subprocess.run(
        [*command, "--out", str(tmp_path / "page")],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "page.json").read_text())["head-training"]
    assert len(result["rows"]) == 5
    assert all(row["seconds"] > 0 for row in result["rows"])
    assert all(figure["median"] > 0 for figure in result["figures"])
