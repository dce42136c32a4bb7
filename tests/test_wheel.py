import json
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from shutil import copy, copytree, ignore_patterns

import pytest

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[1]
PACKAGES = ("cli", "pipeline", "stages", "store")


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


def test_the_wheel_holds_every_file_of_the_four_packages_and_nothing_else(wheel):
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


def test_the_installed_wheel_is_what_runs(installed):
    code = f"import {', '.join(PACKAGES)}; print(*[m.__file__ for m in ({', '.join(PACKAGES)})])"

    files = run_installed(installed, "-c", code).split()

    assert [Path(file).parents[1] for file in files] == [installed] * len(PACKAGES)


def test_the_installed_module_shows_its_commands(installed):
    assert "extract" in run_installed(installed, "-m", "cli.app", "--help")


def test_the_installed_command_knows_its_data_sets(installed):
    listed = run_installed(installed, installed / "bin" / "intro-pipe", "datasets", "--json")

    assert {"digits", "cifar10c"} <= {entry["name"] for entry in json.loads(listed)}
