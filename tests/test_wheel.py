import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import zipfile
from contextlib import ExitStack, suppress
from pathlib import Path
from shutil import copy, copytree, ignore_patterns
from tempfile import TemporaryDirectory

import pytest
import safetensors.torch
from small_data import write_npz
from torch import nn

from store.catalog import FeatureStore
from store.verify import verify_feature_set

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[1]
PACKAGES = ("cli", "intro_pipe", "pipeline", "stages", "store")


def output(*command, cwd, **kwargs):
    """What the command printed; its whole output where it fails."""
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, **kwargs
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy: a build leaves folders behind, and may pick up those of an older one."""
    source = tmp_path_factory.mktemp("source")
    for name in (*PACKAGES, "tests"):
        copytree(REPOSITORY / name, source / name, ignore=ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        copy(REPOSITORY / name, source)
    output(sys.executable, "-m", "build", "--wheel", "--no-isolation", cwd=source)
    (built,) = (source / "dist").iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    target = tmp_path_factory.mktemp("installed")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    output(*pip, "install", "--no-deps", "--no-index", "--target", target, wheel, cwd=target)
    return target


def run_installed(target, *arguments):
    """Run Python on the installed wheel and its dependencies, without the repository.

    ``-S`` leaves the .pth files of the environment unread, and with them an editable install.
    """
    paths = [target, sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    environment = {
        "PYTHONPATH": ":".join(map(str, paths)),
        "HOME": str(target),
        "INTRO_PIPE_DATA": str(target / "data"),
    }
    return output(sys.executable, "-S", *arguments, cwd=target, env=environment)


def test_the_wheel_holds_every_file_of_the_packages_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    expected = {
        path.relative_to(REPOSITORY).as_posix()
        for package in PACKAGES
        for path in (REPOSITORY / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }

    assert {name for name in names if ".dist-info/" not in name} == expected
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(names)


def test_the_wheel_brings_its_command_its_views_and_its_licence(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (points,) = [name for name in archive.namelist() if name.endswith("/entry_points.txt")]
        text = archive.read(points).decode()
        licences = [name for name in archive.namelist() if name.endswith("/licenses/LICENSE")]

    assert "[console_scripts]\nintro-pipe = cli.app:main" in text
    assert "[intro_pipe.views]\nreflection = " in text
    assert len(licences) == 1


def test_the_installed_wheel_is_run(installed):
    code = f"import {', '.join(PACKAGES)}; print(*[m.__file__ for m in ({', '.join(PACKAGES)})])"

    files = run_installed(installed, "-c", code).split()

    assert [Path(file).parents[1] for file in files] == [installed] * len(PACKAGES)


def test_the_installed_module_shows_its_commands(installed):
    assert "extract" in run_installed(installed, "-m", "cli.app", "--help")


def test_the_installed_command_knows_its_data_sets(installed):
    listed = run_installed(installed, installed / "bin" / "intro-pipe", "datasets", "--json")

    assert {"digits", "cifar10c"} <= {entry["name"] for entry in json.loads(listed)}


# It leaves a note of whose code has loaded it.
NETWORK = """
import os
from pathlib import Path

import stages
from torch import nn

Path(__file__).with_name(f"loaded-by-{os.getpid()}").write_text(stages.__file__)

def tiny(n_classes=10):
    return nn.Sequential(nn.Flatten(), nn.Linear(192, n_classes))
"""


def free_ports(n_ports):
    with ExitStack() as stack:
        servers = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(n_ports)
        ]
        return [server.getsockname()[1] for server in servers]


def wait_for(port, process):
    while True:
        assert process.poll() is None, "the head has died"
        with suppress(OSError):
            return socket.create_connection(("127.0.0.1", port)).close()
        time.sleep(0.1)


@pytest.fixture
def head():
    """A Ray head on the loopback, closed by a token: the environment that opens it."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_") and k != "PYTHONPATH"}
    port, dashboard, agent, client = free_ports(4)
    environment = {
        **kept,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        **{"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)},
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # jobs take 127.0.0.1 for what it is
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
    }
    command = [
        *("ray", "start", "--head", "--block", "--num-cpus=2", "--node-ip-address=127.0.0.1"),
        *(f"--port={port}", f"--ray-client-server-port={client}", "--dashboard-host=127.0.0.1"),
        *(f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"),
    ]
    # Not `tmp_path`: Ray makes sockets there, whose paths must be short.
    with TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [*command, f"--temp-dir={folder}"],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            wait_for(dashboard, process)
            yield environment
        finally:
            process.terminate()
            process.wait(timeout=200)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.ray
@pytest.mark.soak
def test_the_wheel_runs_as_a_job_of_a_cluster(wheel, head, tmp_path):
    write_npz(tmp_path / "digits.npz", 40)
    (tmp_path / "net.py").write_text(NETWORK)
    weights = nn.Sequential(nn.Flatten(), nn.Linear(192, 10)).state_dict()
    safetensors.torch.save_file(weights, tmp_path / "tiny.safetensors")
    copy(wheel, tmp_path / "intro-pipe.zip")
    extract = [
        *("extract", "--dataset", tmp_path / "digits.npz", "--network", f"{tmp_path}/net.py:tiny"),
        *("--weights", tmp_path / "tiny.safetensors", "--image-size", "8", "--shard-rows", "10"),
        *("--store", tmp_path / "store", "--address", "auto", "--workers", "1"),
    ]
    submit = ["ray", "job", "submit", "--submission-id=tiny", "--working-dir=intro-pipe.zip"]

    told = output(*submit, "--", "python", "-m", "cli.app", *extract, cwd=tmp_path, env=head)

    assert "Job 'tiny' succeeded" in told
    (found,) = FeatureStore(str(tmp_path / "store")).feature_sets()
    assert found.shard_set.is_complete()
    assert list(verify_feature_set(found)) == []
    loaders = [path.read_text() for path in tmp_path.glob("loaded-by-*")]
    assert len(loaders) == 2  # the driver and its worker
    assert all("/working_dir_files/" in loader for loader in loaders)
