"""Processes that a driver started end with it, however it ends; no others do."""

import io
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline import watchdog

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")

# Each process has its own session. The first starts another one; the second has lost its mark but
# writes to the raylet's log; the third only reads that log.
DRIVER = """
import subprocess, sys, time
from pipeline.watchdog import marked, watchdog

CHILD = "import subprocess, time; print(subprocess.Popen(['sleep', '600']).pid, flush=True)"

def started(code, **files):
    code = f"import time; {code}; time.sleep(600)"
    return subprocess.Popen([sys.executable, "-c", code], start_new_session=True, **files).pid

log = sys.argv[1] + "/session/logs/raylet.out"
with watchdog(sys.argv[1]) as mark:
    with marked(mark):
        first = started(CHILD)
    with open(log, "w") as written, open(log) as read:
        print(first, started("pass", stdout=written), started("pass", stdin=read), flush=True)
    sys.stdin.read(1)
"""


def started(folder: Path) -> tuple["subprocess.Popen[str]", list[int], int]:
    """A driver, the processes of its cluster, and one that is none of them."""
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(folder)],
        cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert driver.stdout is not None
    lines = sorted([driver.stdout.readline().split() for _ in range(2)], key=len)
    (child,), (first, unmarked, other) = [[int(pid) for pid in line] for line in lines]
    return driver, [first, child, unmarked], other


def is_alive(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSEGV, None])
def test_the_processes_of_a_cluster_end_with_the_driver_and_others_do_not(
    tmp_path: Path, signum: int | None
) -> None:
    folder = tmp_path / "of the cluster"
    (folder / "session" / "logs").mkdir(parents=True)
    (folder / "link").symlink_to(tmp_path)
    driver, ours, other = started(folder)
    assert driver.stdin is not None
    with driver:
        assert all(map(is_alive, [*ours, other]))
        if signum is not None:
            driver.send_signal(signum)
        driver.stdin.close()
        assert driver.wait(timeout=120) == -(signum or 0)
        deadline = time.monotonic() + 120
        while (folder.exists() or any(map(is_alive, ours))) and time.monotonic() < deadline:
            time.sleep(0.02)
        left = [is_alive(pid) for pid in (*ours, other)]
        for pid in (*ours, other):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert left == [False, False, False, True]
        assert list(tmp_path.iterdir()) == []


def test_an_orderly_end_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.setattr(sys, "argv", ["watchdog", "X=nobody", str(folder)])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(watchdog.ORDERLY)))
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it waited"))
    watchdog.main()
    assert not folder.exists()


def test_a_killed_cluster_is_watched_for_a_while(tmp_path: Path) -> None:
    mark = "CLUSTER_OF_INTRO_PIPE=late"
    dog = subprocess.Popen(
        [sys.executable, "-I", "-S", watchdog.__file__, mark, str(tmp_path / "folder")],
        stdin=subprocess.PIPE,
    )
    assert dog.stdin is not None
    dog.stdin.close()  # as after a kill
    time.sleep(watchdog.QUIET_S / 2)
    name, _, value = mark.partition("=")
    late = subprocess.Popen(["sleep", "60"], env={**os.environ, name: value})
    assert late.wait(5) == -signal.SIGKILL
    assert dog.wait(5) == 0
