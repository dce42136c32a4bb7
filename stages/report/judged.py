"""The pages of evaluations and detections: f and heads in a table, compared, and in figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from stages.metrics.definitions import statistics_of
from stages.report.clean import clean_accuracies, with_clean
from stages.report.comparison import comparison_of, sentences, strong_one
from stages.report.content import Content
from stages.report.figures import FIGURES, draw_figure, fitting_figures
from stages.report.gain_profile import gains_of, profile_grid, profile_sentence
from stages.report.gain_table import check_control, gain_grid, gain_sentences
from stages.report.kinds import PageKind
from stages.report.legend import legend_of
from stages.report.page import Drawing, Grid, Page, comparison_grid, ranking_grid, table_grid
from stages.report.provenance import (
    heads_used,
    networks_used,
    results_used,
    shortcomings,
    versions_used,
)
from stages.report.ranking import detections, ranked, shared_sets
from stages.report.results import Entry, Judged, frame_over, read_entries
from stages.report.svg import svg_of
from stages.report.tables import table_of
from stages.report.vocabulary import DETECTION_METRICS, TABLE_METRICS, UNCERTAINTY_METRICS
from store.catalog import FeatureStore


def figures_for(store: FeatureStore, entries: Sequence[Entry]) -> list[str]:
    """Figures that are informative for the results of these entries."""
    judged = read_entries(store, entries)
    return fitting_figures(frame_over(judged, "by_group"), tuple(entries[0].axes))


def page_of(store: FeatureStore, content: Content) -> tuple[Page, pd.DataFrame | None]:
    """The page, and the numbers of its table if it has one.

    Raises:
        InputError: entries, metrics or figures are incompatible.
        NotFoundError: a result is not finished.
    """
    judged = read_entries(store, content.entries)
    axes = tuple(content.entries[0].axes)
    numbers = None if content.table is None else table_of(judged, content.table)
    clean: list[dict[str, float]] = [{} for _ in judged]
    if any(content.clean) and (numbers is not None or content.profile is not None):
        pairs = zip(content.clean, judged, strict=True)
        clean = [clean_accuracies(store, *pair) for pair in pairs]
    if numbers is not None and any(content.clean):
        numbers = with_clean(numbers, clean, axes)
    compared = _compared(judged, numbers, axes)
    if content.profile is not None:
        compared |= _profile(judged, clean, content.profile, axes)
    page = Page(
        title=content.title,
        about=content.about,
        **compared,
        legend=legend_of(store, judged),
        table=None if numbers is None else table_grid(numbers, axes, _clean_note(content)),
        shortcomings=[*shortcomings(store, judged, numbers), *content.notes],
        drawings=_drawings(judged, content.figures, axes),
        definitions=_definitions(judged, numbers, content.figures),
        provenance={
            "Results": results_used(judged),
            "Sensing networks": networks_used(store, judged),
            "Heads": heads_used(store, judged),
        },
        versions=versions_used(judged),
        command=content.command,
        ranking=_ranking(judged),
    )
    return page, numbers


def _profile(
    judged: Sequence[Judged], clean: Sequence[dict[str, float]], control: str, axes: Sequence[str]
) -> dict[str, Any]:  # Any: fields of a Page
    """Tables and sentences on the profile of the paper's gain, in place of the comparison."""
    check_control(judged, control)
    shown = [name for name in axes if len({each.axes[name] for each in judged}) > 1]
    gains = [
        ({name: each.axes[name] for name in shown}, gains_of(each, known))
        for each, known in zip(judged, clean, strict=True)
    ]
    tables = {
        "The profile of the paper's gain": profile_grid(gains),
        "Gains of each contender": gain_grid(judged, control, shown),
    }
    sentences_of_gain = [profile_sentence(gains), *gain_sentences(judged, control)]
    return {"tables": tables, "sentences": sentences_of_gain, "comparison": None}


def _ranking(judged: Sequence[Judged]) -> Grid | None:
    """Detectors by their means over sets; None for a single detection, or for evaluations."""
    found = detections(judged)
    if len(found) == 0 or len(judged) == 1 or not shared_sets(found):
        return None
    return ranking_grid(ranked(found), shared_sets(found))


def _compared(
    judged: Sequence[Judged], numbers: pd.DataFrame | None, axes: tuple[str, ...]
) -> dict[str, Any]:  # Any: fields of a Page
    """Comparison by the table's metrics; empty if f stands alone or there is no table."""
    strong = strong_one([label for found in judged for label in ("f", *found.others)])
    if numbers is None or strong is None:
        return {"strong": strong or "f", "sentences": [], "comparison": None}
    metrics = list(numbers["metric"].unique())
    comparison = comparison_of(frame_over(judged, "differences"), metrics, axes)
    return {
        "strong": strong,
        "sentences": sentences(comparison, axes, n_entries=len(judged)),
        "comparison": comparison_grid(comparison, axes),
    }


def _clean_note(content: Content) -> str:
    """Note on the column of accuracies on clean images; empty without one."""
    sets = [each.features for each in dict.fromkeys(content.clean) if each]
    if not sets:
        return ""
    return f"“clean accuracy”: on the same images without corruption, {', '.join(sets)}."


def _drawings(
    judged: Sequence[Judged], figures: Sequence[str], axes: tuple[str, ...]
) -> list[Drawing]:
    frames = {part: frame_over(judged, part) for part in ("by_group", "bins")}
    frames["detections"] = detections(judged)
    drawings = []
    for name in dict.fromkeys(figures):
        figure = draw_figure(name, frames, axes)
        kind = FIGURES[name]
        drawings.append(Drawing(name, kind.title, kind.caption, svg_of(figure, name, kind.title)))
    return drawings


def _definitions(
    judged: Sequence[Judged], numbers: pd.DataFrame | None, figures: Sequence[str]
) -> dict[str, str]:
    """Definitions of the metrics shown, and how cells, seeds and resamples are combined."""
    shown = [] if numbers is None else list(numbers["metric"].unique())
    shown += [metric for name in figures for metric in FIGURES[name].shows]
    cards = [found.card for found in judged]
    definitions = cards[0].defined(shown)
    for card in cards:
        definitions |= card.defined([card.detector] if card.detector else [])
    statistics = dict(cards[0].statistics)
    if "mean" in statistics:  # older cards name the same columns whatever the cells are
        statistics["mean"] = statistics_of(cards[0].cells.columns)["mean"]
    return {**definitions, **statistics}


EVALUATION = PageKind(TABLE_METRICS, page_of, figures_for)
DETECTION = PageKind(DETECTION_METRICS, page_of, figures_for)
UNCERTAINTY = PageKind(UNCERTAINTY_METRICS, page_of, figures_for)
