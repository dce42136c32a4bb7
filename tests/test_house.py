"""The rules of the house that no linter knows: layers, names, packaging."""

import ast
import importlib
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import typer.main
from packaging.requirements import Requirement
from typer.testing import CliRunner

from cli.app import app

REPOSITORY = Path(__file__).parents[1]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
# Lowest first: a package imports itself and what stands before it.
LAYERS = ("store", "pipeline", "stages", "cli")
# The same for the folders of `stages`, in the order the data flows. What lies in `metrics`, and in
# `stages` itself, serves all of them and imports none of them.
STAGE_LAYERS = (
    "data",
    "sensing",
    "reflection",
    "introspection",
    "applications",
    "report",
    "recipes",
)
MODULES = sorted(path for layer in LAYERS for path in (REPOSITORY / layer).rglob("*.py"))
COMMANDS = typer.main.get_command(app).commands


@dataclass(frozen=True)
class Import:
    importer: str  # "store/lazy.py"
    line: int
    target: str  # "dask.array"
    for_types: bool  # inside `if TYPE_CHECKING:`

    def __str__(self):
        return f"{self.importer}:{self.line} imports {self.target}"

    @property
    def top(self):
        return self.target.partition(".")[0]

    @property
    def layer(self):
        return self.importer.partition("/")[0]


def imports_of(source, importer):
    """Every import of a module: at its top, inside functions, and those for types only."""
    tree = ast.parse(source)
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        for target in _targets(node, importer):
            yield Import(importer, node.lineno, target, id(node) in for_types)


def _targets(node, importer):
    if isinstance(node, ast.Import):
        return [name.name for name in node.names]
    if isinstance(node, ast.ImportFrom):
        # `from . import x` in a/b/c.py is `from a.b import x`; so is it in a/b/__init__.py.
        package = importer.split("/")[: -node.level] if node.level else []
        module = ".".join([*package, node.module or ""]).strip(".")
        return [f"{module}.{name.name}" for name in node.names]
    return []


def points_up(imported):
    if imported.top not in LAYERS:
        return False
    return LAYERS.index(imported.top) > LAYERS.index(imported.layer)


def stage_folder(dotted):
    """`stages.data.cifar.read` -> `data`; "" for what lies in `stages` itself."""
    parts = dotted.split(".")
    folders = (*STAGE_LAYERS, "metrics")
    return parts[1] if len(parts) > 1 and parts[1] in folders else ""


def points_up_within_stages(imported):
    if imported.layer != "stages" or imported.top != "stages":
        return False
    importer = stage_folder(imported.importer.removesuffix(".py").replace("/", "."))
    target = stage_folder(imported.target)
    if importer == target:
        return False
    if importer not in STAGE_LAYERS:
        return True
    if target not in STAGE_LAYERS:
        return False
    return STAGE_LAYERS.index(target) > STAGE_LAYERS.index(importer)


def name_of(path):
    return path.relative_to(REPOSITORY).as_posix()


IMPORTS = [found for path in MODULES for found in imports_of(path.read_text(), name_of(path))]


def offenders(broken):
    return [str(found) for found in IMPORTS if broken(found)]


def one(source, importer):
    (found,) = imports_of(source, importer)
    return found


# Layers


def test_no_package_imports_one_above_it():
    assert offenders(points_up) == []


def test_no_folder_of_stages_imports_one_after_it():
    assert offenders(points_up_within_stages) == []


def test_ray_is_imported_in_one_module():
    assert offenders(lambda i: i.top == "ray" and i.importer != "pipeline/cluster.py") == []


def test_torch_is_imported_in_stages_only():
    torches = ("torch", "torchvision")
    assert offenders(lambda i: i.top in torches and i.layer != "stages") == []


def test_typer_is_imported_in_cli_only():
    assert offenders(lambda i: i.top in ("typer", "click") and i.layer != "cli") == []


def test_the_store_imports_dask_in_its_lazy_module_only():
    def is_astray(found):
        for_types = found.importer == "store/featureset.py" and found.for_types
        return found.layer == "store" and found.top == "dask" and not for_types

    assert offenders(lambda i: is_astray(i) and i.importer != "store/lazy.py") == []


@pytest.mark.parametrize(
    ("source", "importer"),
    [
        ("from stages.data import source", "store/lazy.py"),
        ("def read():\n    import cli.app", "pipeline/runner.py"),
        ("if TYPE_CHECKING:\n    from pipeline.stage import MapStage", "store/plan.py"),
    ],
)
def test_an_import_that_points_up_is_found_wherever_it_stands(source, importer):
    assert points_up(one(source, importer))


@pytest.mark.parametrize(
    ("source", "importer", "expected"),
    [
        ("from stages.reflection.losses import delta", "stages/sensing/model.py", True),
        ("from ..reflection import losses", "stages/data/cifar.py", True),
        ("from stages.errors import InputError", "stages/metrics/calibration.py", True),
        ("from stages.data.source import Rows", "stages/errors.py", True),
        ("from stages import errors", "stages/data/cifar.py", False),
        ("from stages.sensing.model import Sensing", "stages/reflection/extract.py", False),
        ("from stages.metrics.calibration import ece", "stages/data/cifar.py", False),
    ],
)
def test_within_stages_an_import_follows_the_data(source, importer, expected):
    assert points_up_within_stages(one(source, importer)) is expected


# Names


@pytest.mark.parametrize("package", LAYERS)
def test_each_package_is_imported_from_this_project(package):
    """The names are general: another distribution with a package `store` would overwrite ours."""
    found = Path(importlib.import_module(package).__file__)
    distribution = importlib.metadata.distribution("intro-pipe")
    installed = [
        Path(distribution.locate_file(file))
        for file in distribution.files or ()
        if file.as_posix() == f"{package}/__init__.py"
    ]

    assert found in [REPOSITORY / package / "__init__.py", *installed]


def test_no_other_distribution_brings_packages_of_our_names():
    owners = importlib.metadata.packages_distributions()

    assert {owner for name in LAYERS for owner in owners.get(name, [])} == {"intro-pipe"}


@pytest.mark.parametrize("path", [p for p in MODULES if p.name == "__init__.py"], ids=name_of)
def test_an_init_holds_one_docstring(path):
    body = ast.parse(path.read_text()).body

    assert len(body) == 1
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_every_folder_of_modules_is_a_package():
    assert [name_of(p) for p in MODULES if not (p.parent / "__init__.py").is_file()] == []


def test_modules_are_named_by_what_they_hold():
    empty_names = {"utils", "util", "helpers", "common", "misc", "base"}

    assert [name_of(p) for p in MODULES if empty_names & {p.stem, p.parent.name}] == []


# Code that is not ours

# What runs code, or makes objects of bytes, and the modules that may name it: each has its reason.
DANGEROUS = {
    "pickle": {"stages/data/cifar.py", "stages/sensing/weights.py"},  # names, behind locks
    "subprocess": {"cli/demo.py", "cli/checking.py"},  # ourselves, without a shell
    "yaml": {"pipeline/yaml_lines.py"},  # SafeLoader
    "tarfile": {"stages/data/download.py"},  # members are looked at one by one
    "importlib.import_module": {"stages/recipes/steps.py"},  # of this package
    "importlib": {"stages/sensing/build.py", "stages/sensing/torchvision_ops.py"},  # the user's own
    "importlib.util": {
        "stages/sensing/build.py",
        "stages/sensing/trust.py",
        "stages/sensing/torchvision_ops.py",
        "stages/data/corruptions/frost.py",
    },
    "importlib.machinery.PathFinder": {"cli/runs.py"},
} | {
    name: set() for name in ("marshal", "shelve", "dill", "joblib", "cloudpickle", "runpy", "code")
}
CALLS = {
    "eval": set(),
    "exec": set(),
    "compile": set(),
    "__import__": set(),
    "os.system": set(),
    "os.popen": set(),
    "os.execve": {"cli/runs.py"},
    "spec.loader.exec_module": {"stages/sensing/build.py"},
    "torch.load": {"stages/sensing/weights.py"},
    "np.load": {"stages/data/arrays.py"},
    "tar.extractall": set(),
    "tar.extract": {"stages/data/download.py"},
    "Markup": {"stages/report/page.py"},
}
SAFELY = {
    "torch.load": {"weights_only": "True"},
    "np.load": {"allow_pickle": "False"},
    "tar.extract": {"set_attrs": "False"},
}


def calls():
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                options = {option.arg: ast.unparse(option.value) for option in node.keywords}
                yield name_of(path), ast.unparse(node.func), options


@pytest.mark.parametrize("name", DANGEROUS)
def test_what_can_run_code_is_imported_where_it_is_known_to_be(name):
    importers = {found.importer for found in IMPORTS if found.target == name}

    assert importers == DANGEROUS[name]


def test_what_can_run_code_is_called_where_it_is_known_to_be():
    found = {name: {where for where, called, _ in calls() if called == name} for name in CALLS}

    assert found == CALLS


def test_what_can_run_code_is_called_safely():
    careless = [
        (where, called)
        for where, called, options in calls()
        if called in SAFELY and not SAFELY[called].items() <= options.items()
    ]

    assert careless == []


def test_no_command_goes_through_a_shell():
    assert [where for where, _, options in calls() if "shell" in options] == []


# The command line


def test_the_command_line_starts_without_the_heavy_libraries():
    heavy = ["torch", "torchvision", "ray", "numpy", "pandas", "zarr", "dask", "pyarrow", "sklearn"]
    code = f"import sys, cli.app; print([m for m in {heavy} if m in sys.modules])"

    assert _python(code) == "[]"


def test_the_command_line_is_imported_in_under_300_ms():
    """Processor time, the best of three: other work on the machine does not count."""
    code = "import time; t = time.process_time(); import cli.app; print(time.process_time() - t)"

    assert min(float(_python(code)) for _ in range(3)) < 0.3


def _python(code):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_an_example_of_itself(command):
    shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"})

    assert shown.exit_code == 0
    assert f"Example: intro-pipe {command}" in shown.output


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_says_what_it_is(command):
    silent = [p.name for p in COMMANDS[command].params if not getattr(p, "help", None)]

    assert silent == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_prints_json_when_asked(command):
    assert "--json" in [name for option in COMMANDS[command].params for name in option.opts]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_stands_in_the_readme(command):
    readme = (REPOSITORY / "README.md").read_text()

    assert re.search(rf"intro-pipe {command}\b", readme), (
        f"README.md does not say `intro-pipe {command}`"
    )


def test_the_command_is_installed_under_its_name():
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="intro-pipe")

    assert script.value == "cli.app:main"


# Packaging


@pytest.mark.parametrize("package", LAYERS)
def test_each_package_says_that_it_is_typed(package):
    assert (REPOSITORY / package / "py.typed").is_file()


def test_the_version_is_the_same_everywhere():
    changelog = (REPOSITORY / "CHANGELOG.md").read_text()
    newest = re.search(r"^## (\S+)", changelog, re.MULTILINE)

    assert importlib.metadata.version("intro-pipe") == PROJECT["version"]
    assert newest is not None
    assert newest[1] == PROJECT["version"]


def test_every_entry_point_names_something_that_is_there():
    missing = [
        value
        for group in PROJECT["entry-points"].values()
        for value in group.values()
        if not _is_defined(*value.split(":"))
    ]

    assert missing == []


def _is_defined(module, name):
    """Whether the module's source defines the name, without running what it imports."""
    source = REPOSITORY / (module.replace(".", "/") + ".py")
    if not source.is_file():
        return False
    body = ast.parse(source.read_text()).body
    return name in [getattr(statement, "name", None) for statement in body]


def test_the_constraints_pin_every_requirement_within_its_range():
    asked = [
        Requirement(line)
        for line in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]
    ]
    pins = _pins()

    assert [r.name for r in asked if r.name.lower() not in pins] == []
    assert [str(r) for r in asked if not r.specifier.contains(pins[r.name.lower()])] == []


def test_the_constraints_are_names_and_versions_in_order():
    names = list(_pins())

    assert all(first < second for first, second in pairwise(names))


def test_torch_and_torchvision_are_the_tested_pair():
    pins = _pins()

    assert (pins["torch"], pins["torchvision"]) == ("2.13.0", "0.28.0")


def _pins():
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    matches = [re.fullmatch(r"([a-z0-9-]+)==([\w.]+)", line) for line in lines if line[0] != "#"]
    assert all(matches)
    return {match[1]: match[2] for match in matches}
