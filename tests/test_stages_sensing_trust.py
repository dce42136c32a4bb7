"""A file may only name code that the user has named before and that has not changed."""

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from stages.errors import InputError
from stages.sensing import trust as trusting
from stages.sensing.trust import require_trust, trust, trusted_file

CODE = "def net(): ...\n"


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The user is in ``mine`` and has a separate home folder."""
    for folder in ("mine", "theirs"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "nets.py").write_text(CODE)
    monkeypatch.chdir(tmp_path / "mine")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    yield
    trusting._named_here.clear()


def another_process() -> None:
    """Forget what this process has recorded."""
    trusting._named_here.clear()


def test_what_the_user_has_named_may_be_named_by_files(tmp_path: Path) -> None:
    trust("nets.py:net")
    another_process()
    require_trust(f"{tmp_path}/mine/nets.py:net", "a card")
    digest = hashlib.sha256(CODE.encode()).hexdigest()
    assert trusted_file().read_text() == f"{tmp_path}/mine/nets.py:net {digest}\n"
    trust("nets.py:net")
    assert len(trusted_file().read_text().splitlines()) == 1


@pytest.mark.parametrize(
    "network",
    ["nets.py:other", "../theirs/nets.py:net", "nets:net", "os:abort", "nets.py:"],
)
def test_other_code_may_not_be_named_by_files(network: str) -> None:
    trust("nets.py:net")
    with pytest.raises(InputError, match=r"a card would run code, .* that you have not named yet"):
        require_trust(network, "a card")


@pytest.mark.parametrize(
    "network",
    ["gone.py:net", "nets.sub:net", "no.such:net", "builtins:open", ":net", ".nets:net", "..:net"],
)
def test_code_without_a_file_is_refused_whoever_names_it(network: str) -> None:
    trust(network)
    with pytest.raises(InputError, match="no readable file is found: check the path of the file"):
        require_trust(network, "a card")


@pytest.mark.parametrize("network", ["nets.py:net", "nets:net"])
@pytest.mark.parametrize("is_new_process", [False, True])
def test_edited_code_must_be_named_again(network: str, is_new_process: bool) -> None:
    trust(network)
    Path("nets.py").write_text(CODE + "import os\n")
    if is_new_process:
        another_process()
    with pytest.raises(InputError, match="which was edited after you named it"):
        require_trust(network, "a card")
    trust(network)  # the user names it again
    another_process()
    require_trust(network, "a card")
    Path("nets.py").write_text(CODE)  # as it was named first
    require_trust(network, "a card")


def test_a_list_of_an_older_release_has_no_hashes(tmp_path: Path) -> None:
    trusted_file().parent.mkdir(parents=True, mode=0o700)
    trusted_file().write_text(f"{tmp_path}/mine/nets.py:net\n")
    trusted_file().chmod(0o644)
    with pytest.raises(InputError, match="was remembered by an older intro-pipe"):
        require_trust("nets.py:net", "a card")
    trust("nets.py:net")
    require_trust("nets.py:net", "a card")


@pytest.mark.parametrize(
    ("file", "module"),
    [
        ("nets.py", "nets:net"),
        ("pack/__init__.py", "pack:net"),
        ("pack/nets.py", "pack.nets:net"),  # without __init__.py
        ("deep/__init__.py", "deep.in.nets:net"),
    ],
)
def test_a_module_is_known_by_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, module: str
) -> None:
    """`nets:net` of this folder is not that of another folder with the same code."""
    for folder in ("mine", "theirs"):
        for each in (file, "deep/in/nets.py"):
            (tmp_path / folder / each).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / each).write_text(CODE)
    trust(module)
    another_process()
    require_trust(module, "a card")
    monkeypatch.chdir(tmp_path / "theirs")
    with pytest.raises(InputError, match="a card would run code"):
        require_trust(module, "a card")


def test_finding_a_module_imports_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    for file in ("pack/__init__.py", "pack/nets.py"):
        Path(file).parent.mkdir(exist_ok=True)
        Path(file).write_text(f"open({str(marker)!r}, 'w')\n")
    with pytest.raises(InputError, match="not named yet"):
        require_trust("pack.nets:net", "a card")
    assert not marker.exists()


@pytest.mark.parametrize("mask", [0o000, 0o002, 0o022, 0o077])
def test_the_list_is_private_whatever_the_umask(mask: int) -> None:
    before = os.umask(mask)
    try:
        trust("nets.py:net")
    finally:
        os.umask(before)
    assert stat.S_IMODE(trusted_file().stat().st_mode) == 0o600
    assert stat.S_IMODE(trusted_file().parent.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda place: place.chmod(0o620), "others can write to .*trusted-code.*: chmod go-w"),
        (lambda place: place.chmod(0o602), "others can write to .*trusted-code.*: chmod go-w"),
        (lambda place: place.parent.chmod(0o770), "others can write to .*intro-pipe,"),
        (lambda place: place.parent.chmod(0o707), "others can write to .*intro-pipe,"),
    ],
    ids=["group", "all", "folder of a group", "folder of all"],
)  # fmt: skip
def test_a_list_that_others_can_write_is_ignored(change: object, why: str) -> None:
    trust("nets.py:net")
    another_process()
    change(trusted_file())  # type: ignore[operator]  # a lambda
    before = trusted_file().read_text()
    with pytest.raises(InputError, match=why):
        require_trust("nets.py:net", "a card")
    trust("nets.py:net")  # runs, and is not remembered beside lines of others
    trust("nets.py:other")
    assert trusted_file().read_text() == before


def test_a_list_of_another_user_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    trust("nets.py:net")
    another_process()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    if trusted_file().stat().st_uid == 0:  # root may write where it likes
        if os.getuid() != 0:
            pytest.skip("only root can give a file away")
        os.chown(trusted_file(), 12345, -1)
    with pytest.raises(InputError, match="belongs to another user and is ignored"):
        require_trust("nets.py:net", "a card")


def test_a_name_with_a_line_break_is_not_remembered(tmp_path: Path) -> None:
    folder = tmp_path / f"x\n{tmp_path}"
    folder.mkdir(parents=True)
    (folder / "nets.py").write_text(CODE)
    trust(f"{folder}/nets.py:net")
    assert not trusted_file().exists()
