"""The checks of a GPU, on a CPU with small sizes."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import CHECKS, Setting, main

HERE = (
    *("layer-gradients", "head", "train-h-bf16", "attack", "store", "photographs"),
    *("head-speed", "attack-speed", "train-speed"),
)
"""All but Ray, what the same functions check in the other precision, and lack of memory."""


@pytest.mark.parametrize("name", HERE)
def test_checks_run_on_a_cpu(name: str, tmp_path: Path) -> None:
    check = CHECKS[name]

    figure = check.measure(Setting("cpu", True, tmp_path))

    assert figure > 0 if check.is_speed else check.is_reached(figure)


def test_a_check_has_its_own_process_and_is_reported_with_figure_and_aim(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The process of this check limits its memory."""
    assert main(["--device", "cpu", "--quick", "--only", "out-of-memory"]) == 0

    _, line, total = capsys.readouterr().out.splitlines()
    expected = r"OK      out-of-memory    \S+e-07 of the largest value \(at most 0.0001\), \d+ s"
    assert re.fullmatch(expected, line)
    assert total == "1 of 1 checks OK"


def test_a_check_that_takes_too_long_is_killed_and_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CHECKS, "head", replace(CHECKS["head"], limit_s=0.01))

    assert main(["--device", "cpu", "--quick", "--only", "head"]) == 1

    assert "FAILED  head             did not end within 0.1 s, " in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_one_line_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2

    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "no GPU that torch can use: --device cpu --quick tries the script\n"


def test_all_checks_end_within_eight_minutes() -> None:
    assert sum(check.limit_s for check in CHECKS.values()) <= 480
