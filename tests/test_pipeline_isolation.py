"""Our own Ray cluster has a private folder, and its workers import from no other folders."""

import io
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
from hostile import MARKER
from rich.console import Console
from rich.file_proxy import FileProxy
from small_data import write_npz as write_images
from torch import nn

from pipeline.cluster import Cluster, _started
from pipeline.errors import ResourceError
from pipeline.isolation import NEUTRAL, neutral_folder, private_folder

SOCKET = "session_2026-11-28_18-32-39_205377_4194304/sockets/plasma_store"


@pytest.mark.parametrize("name", ["", "a" * 90, "größe", "a/" * 30])
def test_the_folder_of_a_cluster_is_private_and_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / name).mkdir(parents=True, exist_ok=True)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / name) if name else "/tmp")
    with private_folder() as folder:
        facts = Path(folder).stat()
        assert stat.S_IMODE(facts.st_mode) == 0o700
        assert facts.st_uid == os.getuid()
        assert len(f"{folder}/{SOCKET}") <= 103
        assert folder.isascii()
        Path(folder, "session").mkdir()
    assert not Path(folder).exists()


def test_two_clusters_have_a_folder_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    with private_folder() as one, private_folder() as other:
        assert one != other


def test_ray_connects_from_a_neutral_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["mine/script.py", "--x"])
    monkeypatch.setenv("PYTHONPATH", "src::/lib")
    with neutral_folder():
        assert Path.cwd() == NEUTRAL
        assert Path(sys.argv[0]).parent == NEUTRAL
        assert os.environ["PYTHONPATH"] == f"{tmp_path}/src:/lib"
    assert Path.cwd() == tmp_path
    assert sys.argv == ["mine/script.py", "--x"]
    assert os.environ["PYTHONPATH"] == "src::/lib"


def test_namesakes_of_our_packages_on_pythonpath_come_after_ours_in_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "store.py").touch()
    monkeypatch.setenv("PYTHONPATH", f"/lib:{tmp_path}")
    root = Path(__file__).parents[1]
    with neutral_folder():
        assert os.environ["PYTHONPATH"] == f"{root}:/lib:{tmp_path}"
    monkeypatch.setenv("PYTHONPATH", str(root))
    with neutral_folder():
        assert os.environ["PYTHONPATH"] == str(root)


@pytest.mark.parametrize("name", ["PYTHONWARNINGS", "PYTHONOPTIMIZE"])
def test_variables_that_break_ray_are_hidden(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "error")
    with neutral_folder():
        assert name not in os.environ
    assert os.environ[name] == "error"


class NoRay:
    """Ray whose processes do not start."""

    @staticmethod
    def init(*_: object, **__: object) -> None:
        raise Exception("first line\nThe current node timed out during startup.")  # as Ray does

    @staticmethod
    def shutdown() -> None:
        """Do nothing, as after a failed start of the real one."""


def test_a_cluster_that_does_not_start_is_one_line() -> None:
    line = (
        "cannot start a Ray cluster on this machine (The current node timed out during startup.): "
        "--executor local does not need one"
    )
    with pytest.raises(ResourceError, match=f"^{re.escape(line)}$"), _started(NoRay):
        pass


def test_ray_is_given_stderr_itself_during_a_progress_display(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = io.StringIO()
    found: list[object] = []

    class Looks(NoRay):
        @staticmethod
        def init(*_: object, **__: object) -> None:
            found.extend([sys.stdout, sys.stderr])

    monkeypatch.setattr(sys, "stderr", FileProxy(Console(file=stream), stream))
    with _started(Looks):
        pass
    assert found == [stream, stream]


PLANTS = ("bottleneck", "numexpr", "lz4", "sitecustomize", "usercustomize", "torch", "stages")
"""Modules that libraries look for, installed or not, and our own."""

NETWORK = """
import os, sys
from torch import nn

def make(n_classes=10):
    with open("seen", "a") as file:
        print(sys.argv[0].endswith("default_worker.py"), os.getcwd(), *sys.path, sep="|", file=file)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, n_classes))
"""

SCRIPT = "import sys; from cli.app import main; sys.argv[1:1] = ['extract']; main()"


@pytest.mark.ray
def test_workers_import_nothing_from_the_folders_of_user_and_script(tmp_path: Path) -> None:
    """Except for the network that the user has named there."""
    here, scripts = tmp_path / "here", tmp_path / "scripts"
    here.mkdir()
    scripts.mkdir()
    for name in PLANTS:
        (here / f"{name}.py").write_text(f"open({str(here / MARKER)!r}, 'a').write(__name__)")
    (here / "nets.py").write_text(NETWORK)
    (scripts / "script.py").write_text(SCRIPT)
    write_images(here / "images.npz", 20)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    safetensors.torch.save_file(layers.state_dict(), here / "w.safetensors")
    before = set(Path("/tmp").glob("ray-*"))
    words = ["--dataset", "images.npz", "--network", "nets:make", "--weights", "w.safetensors"]
    command = [sys.executable, str(scripts / "script.py"), *words, "--image-size", "8"]
    own = {"XDG_CONFIG_HOME": str(tmp_path / "config"), "RAY_TMPDIR": "/tmp"}
    ended = subprocess.run(
        [*command, "--executor", "ray", "--workers", "1", "--store", str(tmp_path / "store")],
        cwd=here,
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not (here / MARKER).exists(), ended.stderr
    assert ended.returncode == 0, ended.stderr
    seen = [line.split("|") for line in (here / "seen").read_text().splitlines()]
    (worker,) = [rest for is_worker, *rest in seen if is_worker == "True"]
    assert worker[0] == str(here)
    assert not {str(here), str(scripts), ""} & set(worker[1:])
    assert set(Path("/tmp").glob("ray-*")) <= before


def test_a_program_that_has_imported_ray_keeps_its_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray reads them when it is imported; changing them later would separate driver and workers."""
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: True))  # type: ignore[arg-type]  # a fake
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    before = dict(os.environ)
    with Cluster().connected():
        assert dict(os.environ) == before
