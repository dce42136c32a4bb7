"""The public API: its names, that they are documented, and what importing it loads."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import intro_pipe
from stages.verbs import MODULES, stage_of

REPOSITORY = Path(__file__).parents[1]


def loaded_by(code: str) -> str:
    """The heavy packages that a fresh Python has loaded after this code."""
    heavy = ("torch", "ray", "numpy", "pandas", "pyarrow", "zarr", "dask", "typer", "cli")
    code += f"; import sys; print(*[name for name in {heavy} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True
    )
    return done.stdout.strip()


def test_every_public_name_has_a_home_and_every_home_is_public() -> None:
    homes = [name for names in intro_pipe._HOMES.values() for name in names]

    assert sorted(homes) == sorted(intro_pipe.__all__)
    assert dir(intro_pipe) == intro_pipe.__all__


@pytest.mark.parametrize("name", intro_pipe.__all__)
def test_every_public_name_is_documented(name: str) -> None:
    found = getattr(intro_pipe, name)

    assert found.__doc__
    assert "(*args" not in found.__doc__  # what a dataclass writes itself


@pytest.mark.parametrize("name", intro_pipe.__all__)
def test_every_public_name_is_defined_in_its_home(name: str) -> None:
    (home,) = [home for home, names in intro_pipe._HOMES.items() if name in names]

    assert getattr(intro_pipe, name).__module__ == home


@pytest.mark.parametrize(
    "name", [name for name in intro_pipe.__all__ if not name.endswith("Error")]
)
def test_every_public_signature_names_its_parameters(name: str) -> None:
    parameters = inspect.signature(getattr(intro_pipe, name)).parameters.values()

    assert [p.name for p in parameters if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)] == []


@pytest.mark.parametrize("verb", MODULES)
def test_every_stage_is_public_and_in_the_table_of_recipe_steps(verb: str) -> None:
    stage, page = stage_of(verb), REPOSITORY / "docs" / "recipes.md"

    assert stage.__name__ in intro_pipe.__all__
    assert not stage.is_step or f"| `{verb}` |" in page.read_text()


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'intro_pipe' has no attribute 'nothing'"):
        _ = intro_pipe.nothing


def test_importing_it_loads_nothing_heavy() -> None:
    assert loaded_by("import intro_pipe") == ""


def test_reading_a_store_and_data_loads_neither_torch_nor_ray() -> None:
    names = "FeatureStore, FeatureSet, ModelCard, open_source, reflect, models_of, InputError"

    assert not {"torch", "ray"} & set(loaded_by(f"from intro_pipe import {names}").split())


def test_type_checkers_see_every_name_in_its_home() -> None:
    tree = ast.parse(Path(intro_pipe.__file__).read_text())
    (for_types,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        statement.module: tuple(name.name for name in statement.names)
        for statement in for_types.body
        if isinstance(statement, ast.ImportFrom)
    }

    assert seen == intro_pipe._HOMES


def test_pages_import_from_the_public_api_only() -> None:
    pages = [REPOSITORY / "README.md", *(REPOSITORY / "docs").rglob("*.md")]
    internal = ("from store", "from stages", "from pipeline", "from cli")
    lines = [
        f"{page.name}: {line.strip()}"
        for page in pages
        for line in page.read_text().splitlines()
        if line.strip().startswith(internal) and " import " in line
    ]

    assert lines == []
