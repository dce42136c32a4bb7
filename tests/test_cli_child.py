"""A command in a child process ends cleanly when its parent is stopped."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cli.child import CAPTURED, run_child

SLOW_TO_STOP = """
import signal, sys, time
from pathlib import Path
here = Path(sys.argv[1])
try:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    (here / "started").touch()
    time.sleep(60)
finally:
    time.sleep(0.7)  # as releasing a lease may take
    (here / "ended").touch()
"""
PARENT = """
import os, signal, sys
from cli.child import run_child
from pipeline.signals import stopped_by_signals
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
signal.signal(signal.SIGINT, signal.default_int_handler)  # or in the background of a shell
with stopped_by_signals() as stop:
    try:
        run_child([sys.executable, "-c", sys.argv[2], sys.argv[1]], os.environ)
    except KeyboardInterrupt:
        sys.exit(128 + stop.signum)
"""


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_child_is_stopped_and_given_time_to_end(tmp_path: Path, signum: int) -> None:
    words = [sys.executable, "-c", PARENT, str(tmp_path), SLOW_TO_STOP]
    with subprocess.Popen(
        words, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    ) as parent:
        while not (tmp_path / "started").exists():
            assert parent.poll() is None
            time.sleep(0.02)
        parent.send_signal(signum)
        assert parent.wait(timeout=120) == 128 + signum
    assert (tmp_path / "ended").exists()


def test_output_is_returned_on_request() -> None:
    ended = run_child([sys.executable, "-c", "print('x'); raise SystemExit(3)"], {}, CAPTURED)
    assert (ended.stdout, ended.returncode) == ("x\n", 3)
