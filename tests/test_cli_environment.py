"""Locales, streams, folders and variables of users: each works, or gives a one-line error."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import fill
from squares import plan_of

from store.catalog import FeatureStore

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small complete set in ``store``."""
    folder = tmp_path_factory.mktemp("place")
    fill(FeatureStore(str(folder / "store")).prepare().create(plan_of(10, 4)))
    return folder


def shell(place: Path, script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script in which ``IP`` is the command."""
    code = "import sys; from cli.app import main; sys.argv[0] = 'intro-pipe'; main()"
    command = shlex.join([sys.executable, "-c", code])
    return subprocess.run(
        ["bash", "-c", script.replace("IP", command)],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=200,
    )


@pytest.mark.parametrize(
    ("script", "environment"),
    [
        ("IP extract --help", {"PYTHONIOENCODING": "ascii"}),
        ("IP --help", {"PYTHONIOENCODING": "latin-1"}),
        ("IP extract --help", {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
        ("IP --help", {"COLUMNS": "0"}),
        ("IP --help", {"COLUMNS": "wide"}),
        ("IP --help", {"TERM": ""}),
    ],
)
def test_help_is_printed_whatever_the_stream_takes(
    place: Path, script: str, environment: dict[str, str]
) -> None:
    ended = shell(place, script, **environment)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "Usage: intro-pipe" in ended.stdout


def test_characters_that_an_encoding_lacks_are_escaped(place: Path) -> None:
    code = (
        "from cli.streams import prepare_streams; import sys; prepare_streams();"
        "print('0.5 ± 0.1'); print('é', '\\udcff', file=sys.stderr)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stdout) == (0, "0.5 \\xb1 0.1\n")
    assert ended.stderr == "\\xe9 \\udcff\n"


@pytest.mark.parametrize(
    ("script", "code", "out", "error"),
    [
        ("IP ls --store none 2>&-", 2, "", ""),  # not on stdout, as `print` does without a stderr
        ("IP ls --store store >&-", 0, "", ""),
        ("IP ls --store store <&- >&- 2>&-", 0, "", ""),
        ("IP ls --store none 2>/dev/full", 2, "", ""),
        (
            "IP ls --store store >/dev/full",
            1,
            "",
            "intro-pipe: [Errno 28] No space left on device\n",
        ),
        ("set -o pipefail; IP ls --store store --json | true", 1, "", ""),
    ],
)
def test_a_closed_or_broken_stream_is_no_traceback(
    place: Path, script: str, code: int, out: str, error: str
) -> None:
    ended = shell(place, script)
    assert (ended.returncode, ended.stdout, ended.stderr) == (code, out, error)


def test_a_closed_stderr_never_becomes_a_file_of_ours(place: Path) -> None:
    """Child processes have the null device there, too."""
    code = (
        "import os, subprocess, sys; from cli.streams import prepare_streams; prepare_streams();"
        f"file = open({str(place / 'precious')!r}, 'w');"
        "os.write(2, b'a warning of a library');"
        "subprocess.run([sys.executable, '-c', 'import os; os.write(2, bytes(9))'], check=True);"
        "assert file.fileno() > 2"
    )
    shell(place, f"{shlex.join([sys.executable, '-c', code])} 0<&- 2>&-").check_returncode()
    assert (place / "precious").read_bytes() == b""


@pytest.mark.parametrize(
    "environment",
    [
        {"HOME": "/nonexistent"},
        {"HOME": "", "XDG_CONFIG_HOME": "a/relative/one"},
        {"PYTHONWARNINGS": "error", "TZ": "no/where", "LANG": "tr_TR.UTF-8"},
    ],
)
def test_a_strange_environment_changes_nothing(place: Path, environment: dict[str, str]) -> None:
    ended = shell(place, "ulimit -n 64; IP ls --store store", **environment)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "complete" in ended.stdout


def test_a_current_directory_that_was_removed_is_one_line(place: Path) -> None:
    ended = shell(place, "mkdir gone; cd gone; rmdir ../gone; IP ls --store ../store")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == (
        "intro-pipe: the current directory no longer exists: change to another and run the "
        "command again\n"
    )


def test_packages_with_our_names_on_the_path_do_not_replace_ours(
    place: Path,
) -> None:
    for name in ("store", "pipeline", "stages"):
        (place / "names" / name).mkdir(parents=True)
        (place / "names" / name / "__init__.py").write_text("raise SystemExit('the wrong one')\n")
    command = shlex.join([sys.executable, "-m", "cli.app", "ls", "--store", str(place / "store")])
    ended = shell(place, f"cd names; {command}", PYTHONPATH=f"{place / 'names'}:{REPOSITORY}")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "complete" in ended.stdout
