"""House rules that no linter checks: layers, names, packaging."""

import ast
import importlib
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import tomllib
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from statistics import quantiles
from typing import Annotated, get_args, get_origin, get_type_hints

import pytest
from packaging.requirements import Requirement
from typer.testing import CliRunner

from cli.app import app, commands
from stages import verbs

REPOSITORY = Path(__file__).parents[1]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
# Lowest first: a package imports itself and what stands before it.
# The last two are side by side: no package imports the public API `intro_pipe`.
LAYERS = ("store", "pipeline", "stages", "intro_pipe", "cli")
# What features are used for, each in a separate package that imports none of the others.
APPLICATIONS = (
    "evaluation",
    "conformal",
    "estimation",
    "ood",
    "active_learning",
    "analysis",
    "explanation",
    "prediction",
    "uncertainty",
    "failures",
    "influence",
    "pruning",
    "quality",
    "curation",
)
# The order of the packages of `stages`: one imports those before it. Those that serve all of them,
# and what lies in `stages` itself, import none of them.
SERVING = ("metrics", "sheets")
STAGE_LAYERS = (
    ("data",),
    ("sensing",),
    ("reflection",),
    ("introspection",),
    ("scores", "judging"),
    APPLICATIONS,
    ("export", "report"),
    ("recipes",),
)
LEVELS = {package: level for level, packages in enumerate(STAGE_LAYERS) for package in packages}
MODULES = sorted(path for layer in LAYERS for path in (REPOSITORY / layer).rglob("*.py"))
COMMANDS = commands()


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


def package_of(dotted):
    """`stages.data.cifar.read` -> `data`; "" for what lies in `stages` itself."""
    parts = dotted.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in (*LEVELS, *SERVING) else ""


# Images may be attacked through a head before their features are extracted.
ATTACKED_HEAD = defaultdict(
    lambda: "none", {"stages/reflection/extract.py": "stages.introspection.head_target"}
)


def points_up_within_stages(imported):
    if imported.layer != "stages" or imported.top != "stages":
        return False
    importer = package_of(imported.importer.removesuffix(".py").replace("/", "."))
    target = package_of(imported.target)
    if importer == target or imported.target.startswith(ATTACKED_HEAD[imported.importer]):
        return False
    if importer not in LEVELS:
        return True
    return target in LEVELS and LEVELS[target] >= LEVELS[importer]


def name_of(path):
    return path.relative_to(REPOSITORY).as_posix()


@cache
def imports():
    return [found for path in MODULES for found in imports_of(path.read_text(), name_of(path))]


def offenders(broken):
    return [str(found) for found in imports() if broken(found)]


def one(source, importer):
    (found,) = imports_of(source, importer)
    return found


def _modules_of(target):
    """The files that an import may mean: `a.b.c` is module c of a.b, or a name in module b."""
    path = target.replace(".", "/")
    return {f"{path}.py", f"{path.rpartition('/')[0]}.py"}


def in_circles(graph):
    """What is left when again and again those that nothing left points to, or from, are taken."""
    left = set(graph)
    while ends := {
        node
        for node in left
        if not graph[node] & left or not any(node in graph[other] for other in left)
    }:
        left -= ends
    return left


# Layers


def test_no_package_imports_one_above_it():
    assert offenders(points_up) == []


def test_no_package_imports_the_public_api():
    assert offenders(lambda i: i.top == "intro_pipe") == []


def test_no_package_of_stages_imports_one_after_or_beside_it():
    assert offenders(points_up_within_stages) == []


@pytest.mark.parametrize("layer", ["store", "pipeline", "stages"])
def test_no_modules_import_each_other_in_a_circle(layer):
    graph = {
        module: {found.importer for found in imports() if module in _modules_of(found.target)}
        for module in map(name_of, MODULES)
        if module.startswith(f"{layer}/")
    }

    assert in_circles(graph) == set()


def test_every_package_of_stages_has_its_place_in_the_order():
    packages = {path.parent.name for path in (REPOSITORY / "stages").glob("*/__init__.py")}

    assert packages == {*LEVELS, *SERVING}


def test_ray_is_imported_in_one_module():
    assert offenders(lambda i: i.top == "ray" and i.importer != "pipeline/cluster.py") == []


def test_torch_is_imported_in_stages_only():
    torches = ("torch", "torchvision")
    assert offenders(lambda i: i.top in torches and i.layer != "stages") == []


def test_the_store_names_no_command_option_or_kind_of_artifact():
    """Messages get the command that helps from `cli.remedies`."""
    named = re.compile(r"`intro-pipe|(?<!-)--[a-z]|INTRO_PIPE_|\b(head|result|report)s?\b")
    found = [
        f"{name_of(path)}: {node.value}"
        for path in MODULES
        if name_of(path).startswith("store/")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if named.search(node.value)
    ]

    assert found == []


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
        ("if TYPE_CHECKING:\n    from pipeline.stage import ShardWork", "store/plan.py"),
    ],
)
def test_an_upward_import_is_found_anywhere(source, importer):
    assert points_up(one(source, importer))


@pytest.mark.parametrize(
    ("source", "importer", "expected"),
    [
        ("from stages.reflection.losses import delta", "stages/sensing/model.py", True),
        ("from ..reflection import losses", "stages/data/cifar.py", True),
        ("from stages.errors import InputError", "stages/metrics/calibration.py", True),
        ("from stages.data.source import Rows", "stages/errors.py", True),
        ("from stages import errors", "stages/data/cifar.py", False),
        ("from stages.sensing.model import Sensing", "stages/reflection/extraction.py", False),
        ("from stages.metrics.calibration import ece", "stages/data/cifar.py", False),
        ("from stages.ood.detect import Sides", "stages/evaluation/evaluate.py", True),
        ("from stages.ood.detect import Sides", "stages/ood/ood.py", False),
        ("from stages.ood.detect import Sides", "stages/recipes/results.py", False),
    ],
)
def test_within_stages_an_import_follows_the_data(source, importer, expected):
    assert points_up_within_stages(one(source, importer)) is expected


def test_only_the_steps_of_a_cycle_are_reported():
    graph = {"to": {"a"}, "a": {"b"}, "b": {"c"}, "c": {"a", "from"}, "from": set()}

    assert in_circles(graph) == {"a", "b", "c"}


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


INITS = [p for p in MODULES if p.name == "__init__.py" and p.parent.name != "intro_pipe"]


@pytest.mark.parametrize("path", INITS, ids=name_of)
def test_an_init_holds_one_docstring(path):
    body = ast.parse(path.read_text()).body

    assert len(body) == 1
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_every_folder_of_modules_is_a_package():
    assert [name_of(p) for p in MODULES if not (p.parent / "__init__.py").is_file()] == []


def test_a_module_is_found_by_its_name():
    """Those of `stages.recipes` are named after the packages whose stages they run."""
    modules = [
        path
        for path in MODULES
        if path.relative_to(REPOSITORY).parts[0] in ("stages", "pipeline")
        and path.parent != REPOSITORY / "stages/recipes"
        and path.stem not in ("__init__", "errors")
    ]
    count = Counter(path.stem for path in modules)

    assert [name_of(path) for path in modules if count[path.stem] > 1] == []


def test_modules_are_named_by_their_content():
    empty_names = {"utils", "util", "helpers", "common", "misc", "base"}

    assert [name_of(p) for p in MODULES if empty_names & {p.stem, p.parent.name}] == []


# Functions

MAX_PARAMETERS = 8


def functions():
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{name_of(path)} {node.name}", node


def n_parameters(function):
    """Number of parameters; ``self`` and ``cls`` do not count."""
    given = function.args
    names = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def test_functions_have_few_parameters():
    assert [name for name, node in functions() if n_parameters(node) > MAX_PARAMETERS] == []


def test_functions_are_short():
    """Lines of the body without the docstring; tenths[4] is the median."""
    lengths = [
        sum(
            each.end_lineno - each.lineno + 1 for each in node.body[bool(ast.get_docstring(node)) :]
        )
        for _, node in functions()
    ]
    tenths = quantiles(lengths, n=10)

    assert tenths[4] <= 7
    assert tenths[8] <= 24


# Code that is not ours

# What runs code, or makes objects of bytes, and the modules that may name it: each has its reason.
DANGEROUS = {
    "pickle": {"stages/data/cifar.py", "stages/sensing/weight_files.py"},  # names, behind locks
    # Ourselves, without a shell.
    "subprocess": {"cli/child.py", "pipeline/watchdog.py"},
    "yaml": {"pipeline/yaml_lines.py"},  # SafeLoader
    # Members are looked at one by one; images are read in place.
    "tarfile": {"stages/data/download.py", "stages/data/tar_images.py"},
    "importlib.import_module": {
        "stages/verbs.py",  # the modules of the stages
        "stages/report/kinds.py",  # the modules of the pages
        "intro_pipe/__init__.py",  # the homes of its names
    },
    "importlib": {"stages/sensing/build.py", "stages/sensing/torchvision_ops.py"},  # the user's own
    "importlib.util": {
        "stages/sensing/build.py",
        "stages/sensing/trust.py",
        "stages/sensing/torchvision_ops.py",
        "stages/data/corruptions/frost.py",
    },
    "importlib.machinery.PathFinder": {"stages/sensing/trust.py"},  # finds, and runs nothing
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
    "spec.loader.exec_module": {"stages/sensing/build.py"},
    "torch.load": {"stages/sensing/weight_files.py"},
    "np.load": {"stages/data/arrays.py"},
    "tar.extractall": set(),
    "tar.extract": {"stages/data/download.py"},
    "Markup": {"stages/report/page.py", "stages/sheets/theme.py"},
}
SAFELY = {
    "torch.load": {"weights_only": "True"},
    "np.load": {"allow_pickle": "False"},
    "tar.extract": {"set_attrs": "False"},
}


@cache
def calls():
    return [
        (
            name_of(path),
            ast.unparse(node.func),
            {option.arg: ast.unparse(option.value) for option in node.keywords},
        )
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
    ]


@pytest.mark.parametrize("name", DANGEROUS)
def test_modules_that_can_run_code_are_only_imported_in_known_places(name):
    importers = {found.importer for found in imports() if found.target == name}

    assert importers == DANGEROUS[name]


def test_functions_that_can_run_code_are_only_called_in_known_places():
    found = {name: {where for where, called, _ in calls() if called == name} for name in CALLS}

    assert found == CALLS


def test_functions_that_can_run_code_are_called_safely():
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
    """Processor time; tried again, because it grows when other work fills the caches."""
    code = "import time; t = time.process_time(); import cli.app; print(time.process_time() - t)"

    assert any(float(_python(code)) < 0.3 for _ in range(20))


def _python(code):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_has_an_example_and_no_notation_of_types(command):
    shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"})

    assert shown.exit_code == 0
    assert f"Example: intro-pipe {command}" in shown.output
    assert re.findall(r"<(?:str|int|float|list)\b", shown.output) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_the_terminal_wraps_each_paragraph_of_the_help(command):
    assert "\n" not in COMMANDS[command].help.replace("\n\n", "")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_a_description(command):
    silent = [p.name for p in COMMANDS[command].params if not getattr(p, "help", None)]

    assert silent == []


@pytest.mark.parametrize("verb", verbs.MODULES)
def test_a_type_describes_an_option_once(verb):
    """Of two descriptions in nested types, pydantic takes the inner one without a word."""
    hints = get_type_hints(verbs.stage_of(verb), include_extras=True)
    found = {name: max(map(len, _descriptions(hint)), default=0) for name, hint in hints.items()}

    assert [name for name, n_descriptions in found.items() if n_descriptions > 1] == []


def _descriptions(hint):
    """The descriptions in each Annotated of a type."""
    if get_origin(hint) is Annotated:
        yield [each for each in hint.__metadata__ if getattr(each, "description", None)]
    for part in get_args(hint)[: 1 if get_origin(hint) is Annotated else None]:
        yield from _descriptions(part)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_the_option_json(command):
    assert "--json" in [name for option in COMMANDS[command].params for name in option.opts]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_in_the_readme(command):
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
    newest = re.search(r"^## (\S+)$", changelog, re.MULTILINE)  # without "(unreleased)"

    assert importlib.metadata.version("intro-pipe") == PROJECT["version"]
    assert newest is not None
    assert newest[1] == PROJECT["version"]


def test_every_entry_point_exists():
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


def test_torch_and_torchvision_are_a_pair():
    pins = _pins()

    torch_minor = int(pins["torch"].split(".")[1])
    vision_minor = int(pins["torchvision"].split(".")[1])
    # torchvision 0.(n + 15) is built for torch 2.n: the table of versions in torchvision's README.
    assert vision_minor == torch_minor + 15


def test_the_readme_installs_the_tested_pair():
    pins = _pins()
    pair = f"torch=={pins['torch']} torchvision=={pins['torchvision']}"

    assert pair in (REPOSITORY / "README.md").read_text(encoding="utf-8")


def _pins():
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    matches = [re.fullmatch(r"([a-z0-9-]+)==([\w.]+)", line) for line in lines if line[0] != "#"]
    assert all(matches)
    return {match[1]: match[2] for match in matches}


def test_tables_are_printed_by_one_function_that_knows_the_width_of_the_terminal() -> None:
    aligning = [
        path.name
        for path in sorted((REPOSITORY / "cli").glob("*.py"))
        if re.search(r"\.[lr]just\(", path.read_text(encoding="utf-8"))
    ]
    assert aligning == ["output.py"]
