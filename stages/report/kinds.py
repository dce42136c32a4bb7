"""The kinds of pages, each for the results of some stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from pipeline.stage import stage_name
from stages.errors import InputError
from stages.report.vocabulary import PAGES
from store.artifacts import Artifact
from store.catalog import FeatureStore

if TYPE_CHECKING:
    import pandas as pd

    from stages.report.content import Content
    from stages.report.page import Page
    from stages.report.results import Entry


@dataclass(frozen=True)
class PageKind:
    """How the results of a stage are shown.

    Attributes:
        metrics: default columns of the table; none for a page without a table to choose.
        build: builds the page, and the numbers of its table if it has one.
        figures: names of the figures that are informative for some results.
    """

    metrics: tuple[str, ...]
    build: Callable[[FeatureStore, Content], tuple[Page, pd.DataFrame | None]]
    figures: Callable[[FeatureStore, Sequence[Entry]], Sequence[str]]


def kind_of(results: Sequence[Artifact]) -> PageKind:
    """The kind of page of results, that of the first one; imports its module.

    Raises:
        InputError: there is no page for such results, or none for all of them.
    """
    names = [_stage_of(each) for each in results]
    module, _, kind = PAGES[names[0]].partition(":")
    for each, name in zip(results, names, strict=True):
        if PAGES[name].partition(":")[0] != module:
            raise InputError(
                f"result {each.name} is one of '{name}', but {results[0].name} is one of "
                f"'{names[0]}': use separate reports"
            )
    found: PageKind = getattr(import_module(module), kind)
    return found


def _stage_of(result: Artifact) -> str:
    if (name := stage_name(result.plan())) not in PAGES:
        raise InputError(
            f"result {result.name}: expected a result of {', '.join(PAGES)}, found one of "
            f"'{name}', which has no page: `intro-pipe ls` lists the others"
        )
    return name
