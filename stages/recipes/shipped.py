"""The built-in recipes: one for each table and figure of the paper, and further studies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from pipeline.recipe import Recipe, read_recipe
from stages.errors import InputError
from stages.recipes.steps import kinds


@dataclass(frozen=True)
class Cost:
    """Cost of a recipe: networks to train, data sets to extract and heads to train."""

    n_networks: int
    n_extractions: int
    n_heads: int


@cache
def shipped_texts() -> Mapping[str, str]:
    """Name -> text of each recipe: tables and figures by number, then the others by name."""
    found = [file for file in files("stages.recipes").iterdir() if file.name.endswith(".yaml")]
    texts = {file.name.removesuffix(".yaml"): file.read_text("utf-8") for file in found}
    return {name: texts[name] for name in sorted(texts, key=_rank)}


def shipped_text(name: str) -> str:
    """The text of a built-in recipe; raises ``InputError``."""
    texts = shipped_texts()
    if name not in texts:
        raise InputError(f"there is no recipe '{name}', expected one of {', '.join(texts)}")
    return texts[name]


def recipe_of(text: str, name: str, changes: Mapping[str, str] | None = None) -> Recipe:
    """The recipe of a text, which may extend a built-in one; raises ``RecipeError``."""
    return read_recipe(text, name, kinds(), changes, shipped_texts())


def cost_of(recipe: Recipe) -> Cost:
    """The cost of a recipe in an empty store; each seed of a head counts."""
    n_made = Counter(instance.kind.name for instance in recipe.instances)
    n_seeds = sum(len(getattr(instance.stage, "seeds", ())) for instance in recipe.instances)
    return Cost(n_made["train-sensing"], n_made["extract"], n_seeds)


def _rank(name: str) -> tuple[int, int, str]:
    kind, _, number = name.partition("-")
    kinds_in_order = ("table", "figure")
    is_numbered = kind in kinds_in_order and number.isdigit()
    return (kinds_in_order.index(kind), int(number), "") if is_numbered else (2, 0, name)
