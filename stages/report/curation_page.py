"""The page of a curation: suspected label errors by class, the confident joint, first rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from stages.curation.curation_result import CLASSES, JOINT, RANKED, CurationCard, suspected_pairs
from stages.curation.curation_scores import RANKINGS
from stages.curation.ranked_rows import top_rows
from stages.errors import InputError
from stages.report.content import Content
from stages.report.drawing import WIDTH, sheet
from stages.report.kinds import PageKind
from stages.report.page import Cell, Drawing, Grid, Line, Page
from stages.report.palette import SETTINGS
from stages.report.provenance import Row
from stages.report.results import Entry
from stages.report.svg import svg_of
from stages.sheets.theme import GRID, INK, PAPER, SENSING, STRONG
from store.artifacts import Artifact
from store.catalog import FeatureStore

HEAT, BARS, SCORES = "confident-joint", "issues-by-class", "score-distribution"

MAX_CLASSES = 20
"""Classes that a table or a figure shows: those with the most flagged rows."""

N_ROWS, N_PAIRS, N_BINS = 24, 10, 40

_FIGURES = {
    HEAT: (
        "Confident joint",
        "Number of rows by label and by the class that they confidently belong to, scaled to the "
        "rows of each label. Off the diagonal: expected label errors, darker if there are more.",
    ),
    BARS: (
        "Suspected errors by class",
        "Share of the labelled rows of each class that are flagged.",
    ),
    SCORES: (
        "Distribution of the scores",
        "Number of rows by self-confidence, the out-of-sample probability of the label, and by "
        "EL2N, the error of f's own probabilities; counts have a logarithmic scale.",
    ),
}


@dataclass(frozen=True)
class _Read:
    """A result, read."""

    entry: Entry
    card: CurationCard
    ranked: pd.DataFrame
    classes: pd.DataFrame
    joint: pd.DataFrame

    @property
    def prefix(self) -> str:
        """The values of the axes, before headings; empty for a single result."""
        return "".join(f"{value}: " for value in self.entry.axes.values())

    @property
    def shown(self) -> pd.DataFrame:
        """The classes that are shown, in their order."""
        labelled = self.classes[self.classes["n_rows"] > 0]
        most = labelled.sort_values("n_issues", ascending=False, kind="stable").head(MAX_CLASSES)
        return most.sort_values("class")


def curation_page_of(store: FeatureStore, content: Content) -> tuple[Page, pd.DataFrame | None]:
    """The page of curations, and the numbers of its table.

    Raises:
        InputError: a metric or a figure is not for them.
    """
    del store
    if content.table is not None:
        raise InputError("a curation has tables of its own, and no metrics to choose")
    if unknown := [name for name in content.figures if name not in _FIGURES]:
        raise InputError(
            f"no figure '{unknown[0]}' for a curation: choose from {', '.join(_FIGURES)}"
        )
    found = [_opened(entry) for entry in content.entries]
    tables = {}
    if any(each.card.found for each in found):
        tables["Flipped labels that were found"] = _flip_grid(found)
    for each in found if len(found) == 1 or not tables else ():
        if (classes := _class_grid(each)).lines:
            tables[f"{each.prefix}Suspected label errors by class"] = classes
        if (pairs := _pair_grid(each)).lines:
            tables[f"{each.prefix}Confused classes"] = pairs
        tables[f"{each.prefix}First rows"] = _row_grid(each)
    page = Page(
        title=content.title,
        about=content.about,
        strong="",
        sentences=[sentence for each in found for sentence in _sentences(each)],
        comparison=None,
        table=None,
        shortcomings=[*_shortcomings(found), *content.notes],
        drawings=[
            _drawing(name, each, number)
            for number, each in enumerate(found, start=1)
            for name in content.figures
        ],
        definitions={
            **found[0].card.definitions,
            **DEFINITIONS,
            **(FLIPPED if any(each.card.found for each in found) else {}),
        },
        provenance={"Results": [_used(each) for each in found]},
        versions=dict(found[0].card.versions),
        command=content.command,
        tables=tables,
    )
    return page, pd.concat([each.classes.assign(**each.entry.axes) for each in found])


FLIPPED = {
    "flipped": "rows whose label was flipped on purpose: symmetric flips to any other class, "
    "pairwise flips to the next class; then the share of the rows and the seed",
    "precision, recall, F1": "share of the flagged rows that were flipped, share of the flipped "
    "rows that are flagged, and their harmonic mean",
    "AUROC": "chance that a score ranks a flipped row before another one, ties counted half",
}

DEFINITIONS = {
    "flagged": "rows that confident learning selects by prune by noise rate: of each label and "
    "other class, as many rows as the confident joint expects, those with the largest difference "
    "of the two probabilities (Northcutt et al. 2021)",
    "threshold": "mean out-of-sample probability of a class over the rows labelled with it; a row "
    "confidently belongs to a class whose threshold it reaches",
}


def _opened(entry: Entry) -> _Read:
    result: Artifact = entry.result
    frames = (result.read_frame(name) for name in (RANKED, CLASSES, JOINT))
    return _Read(entry, CurationCard.of(result), *frames)


def _sentences(each: _Read) -> list[str]:
    card = each.card
    if not card.labelled:
        return [f"{each.prefix}no row has a label, so rows are ranked by similarity alone."]
    said = [
        f"{each.prefix}{card.issues:,} of {card.labelled:,} labelled rows "
        f"({card.issues / card.labelled:.2%}) are flagged as label errors."
    ]
    for _, pair in suspected_pairs(each.joint, 1).iterrows():
        names = card.class_names
        said.append(
            f"{each.prefix}{names[pair['label']]} is confused most, with {names[pair['class']]}: "
            f"{pair['n_expected']:,} expected errors."
        )
    return said


def _class_grid(each: _Read) -> Grid:
    names = each.card.class_names
    lines = []
    for row in each.shown.to_dict(orient="records"):
        n, issues, common = row["n_rows"], row["n_issues"], row["commonest"]
        cells = (
            f"{n:,}",
            f"{issues:,}",
            f"{issues / n:.2%}",
            names[common] if common >= 0 else "",
            f"{row['threshold']:.3f}",
        )
        lines.append(Line((names[row["class"]],), tuple(map(Cell, cells))))
    heads = ("rows", "flagged", "share", "commonest suggestion", "threshold")
    n_all = int((each.classes["n_rows"] > 0).sum())
    notes = (f"{len(lines)} of {n_all} classes, with the most flagged rows.",)
    return Grid(("label",), heads, tuple(lines), notes if len(lines) < n_all else ())


def _flip_grid(found: Sequence[_Read]) -> Grid:
    """How well flipped labels were found, a line for each result."""
    lines, names = [], [name for name, kind in RANKINGS.items() if kind.needs_labels]
    for each in found:
        if (flips := each.card.found) is not None:
            values = (flips.precision, flips.recall, flips.f1, *map(flips.auroc.get, names))
            texts = ("" if value is None else f"{value:.4f}" for value in values)
            counts = (f"{flips.flipped:,}", f"{each.card.issues:,}")
            labels = (each.card.asked.flips or "", _way(each.card), each.card.model)
            lines.append(Line(labels, tuple(map(Cell, (*counts, *texts)))))
    areas = (f"AUROC {name.replace('_', ' ')}" for name in names)
    heads = ("flipped", "flagged", "precision", "recall", "F1", *areas)
    return Grid(("flips", "probabilities", "model"), heads, tuple(lines))


def _pair_grid(each: _Read) -> Grid:
    names = each.card.class_names
    lines = [
        Line((f"{names[pair['label']]} → {names[pair['class']]}",), _counts(pair))
        for _, pair in suspected_pairs(each.joint, N_PAIRS).iterrows()
    ]
    notes = ("Rows with the first class as label that confidently belong to the second.",)
    return Grid(("label → suggestion",), ("confident rows", "expected errors"), tuple(lines), notes)


def _counts(pair: pd.Series[Any]) -> tuple[Cell, ...]:
    return Cell(f"{pair['n_confident']:,}"), Cell(f"{pair['n_expected']:,}")


def _row_grid(each: _Read) -> Grid:
    by, lines = each.card.asked.by, []
    columns = [name for name in ("self_confidence", "el2n", "similarity") if name in each.ranked]
    top = top_rows(each.ranked, by, N_ROWS, is_same_set=each.card.is_same_set)
    for row in top.to_dict(orient="records"):
        texts = [row["label_name"], row["suggested_name"]]
        texts.append("yes" if row["is_label_issue"] else "")
        texts += [f"{row[name]:.4g}" if pd.notna(row[name]) else "" for name in columns]
        texts = [text if pd.notna(text) else "" for text in texts]  # rows without a label
        lines.append(Line((row["sample_id"],), tuple(map(Cell, texts))))
    notes = (f"Ranked by {by}: {each.card.definitions[by]}. The result has all rows.",)
    heads = ("label", "suggested", "flagged", *(name.replace("_", " ") for name in columns))
    return Grid(("sample",), heads, tuple(lines), notes)


def _shortcomings(found: Sequence[_Read]) -> list[str]:
    said = [
        "A flag is an estimate. How many flagged labels are wrong is unknown until someone looks "
        "at them."
    ]
    for each in found:
        card = each.card
        if card.split == "train" and card.asked.folds:
            said.append(
                f"{each.prefix}f was trained on these images. The refits are out of sample, the "
                "features are not: errors that f has memorised stand out less."
            )
        if card.split == "train" and not card.asked.folds:
            said.append(
                f"{each.prefix}the probabilities are f's own on its training images, not out of "
                "sample: use --probabilities refits."
            )
        if n_left := card.rows - card.labelled:
            said.append(
                f"{each.prefix}{n_left:,} rows have no label or failed, and are not judged."
            )
    return said


def _used(each: _Read) -> Row:
    card = each.card
    return {
        **{name: str(value) for name, value in each.entry.axes.items()},
        "result": each.entry.result.name,
        "features": card.features,
        "neighbours in": card.against or card.features,
        "model": card.model,
        "rows": f"{card.rows:,}",
        "probabilities": _way(card),
        "space": card.asked.space,
        "seconds": f"{card.seconds:,.1f}",
    }


def _way(card: CurationCard) -> str:
    return f"{card.asked.folds} refits, seed {card.asked.seed}" if card.asked.folds else "stored"


def _drawing(name: str, each: _Read, number: int) -> Drawing:
    title, caption = _FIGURES[name]
    draw = {HEAT: _draw_joint, BARS: _draw_classes, SCORES: _draw_scores}[name]
    with rc_context(SETTINGS):
        figure = draw(each)
    unique = name if number == 1 else f"{name}-{number}"
    return Drawing(unique, f"{each.prefix}{title}", caption, svg_of(figure, unique, title))


def _draw_joint(each: _Read) -> Figure:
    """A heat map; colours show the counts off the diagonal, on a square root scale."""
    shown = each.shown["class"].to_numpy()
    n_classes = len(each.classes)
    counts = np.zeros((n_classes, n_classes))
    counts[each.joint["label"], each.joint["class"]] = each.joint["n_expected"]
    counts = counts[np.ix_(shown, shown)]
    errors = counts * (1 - np.eye(len(shown)))
    side = min(WIDTH, 1.6 + 0.5 * len(shown))
    figure = Figure(figsize=(side, side * 0.9), layout="constrained")
    panel: Axes = figure.subplots()
    colours = LinearSegmentedColormap.from_list("errors", [PAPER, STRONG])
    panel.pcolormesh(np.sqrt(errors), cmap=colours, edgecolors=GRID, linewidth=0.5)
    for (row, column), count in np.ndenumerate(counts):
        is_dark = np.sqrt(errors[row, column]) > 0.6 * np.sqrt(max(errors.max(), 1))
        colour = PAPER if is_dark else INK if row != column else SENSING
        text = f"{count:,.0f}" if count else ""
        panel.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=colour, size=7)
    names = [each.card.class_names[label] for label in shown]
    places = np.arange(len(shown)) + 0.5
    panel.set_xticks(places, names, rotation=45, ha="right")
    panel.set_yticks(places, names)
    panel.invert_yaxis()
    panel.grid(visible=False)
    panel.set_xlabel("class that the row confidently belongs to")
    panel.set_ylabel("label")
    return figure


def _draw_classes(each: _Read) -> Figure:
    shown = each.shown
    shares = (100 * shown["n_issues"] / shown["n_rows"]).to_numpy()
    names = [each.card.class_names[label] for label in shown["class"]]
    figure = Figure(figsize=(WIDTH, 0.8 + 0.24 * len(names)), layout="constrained")
    panel: Axes = figure.subplots()
    panel.barh(range(len(names)), shares, color=STRONG, height=0.7)
    for place, (share, n) in enumerate(zip(shares, shown["n_issues"], strict=True)):
        panel.annotate(f"{n:,}", (share, place), (4, 0), textcoords="offset points", va="center")
    panel.set_yticks(range(len(names)), names)
    panel.invert_yaxis()
    panel.grid(visible=False, axis="y")
    panel.set_xlabel("flagged, % of the labelled rows")
    return figure


def _draw_scores(each: _Read) -> Figure:
    judged = each.ranked[each.ranked["self_confidence"].notna()]
    figure, panels = sheet(2, height=2.6)
    for panel, (name, limit) in zip(
        panels, (("self_confidence", 1), ("el2n", 2**0.5)), strict=True
    ):
        edges = np.linspace(0, limit, N_BINS + 1)
        flagged = judged["is_label_issue"].to_numpy(bool)
        for part, colour, label in (
            (~flagged, SENSING, "not flagged"),
            (flagged, STRONG, "flagged"),
        ):
            counts, _ = np.histogram(judged[name][part], edges)
            panel.stairs(counts, edges, color=colour, label=label, linewidth=1.4)
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter("{x:,.0f}")  # powers of ten would be formulas
        panel.tick_params(labelbottom=True)
        panel.set_xlabel({"el2n": "EL2N"}.get(name, name.replace("_", " ")))
    panels[0].set_ylabel("rows")
    panels[0].legend(loc="upper left")
    return figure


def _figures(store: FeatureStore, entries: Sequence[Entry]) -> tuple[str, ...]:
    """All figures, unless no row is labelled."""
    del store
    has_labels = all(CurationCard.of(entry.result).labelled for entry in entries)
    return (HEAT, BARS, SCORES) if has_labels else ()


CURATION = PageKind((), curation_page_of, _figures)
