"""The report of active learning: the accuracy of each strategy when f or H selects the images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from stages.active_learning.active_runs import (
    BESIDE,
    CurvesCard,
    means_of,
    read_curves,
    with_interval,
)
from stages.active_learning.lesson import LessonParams
from stages.active_learning.rounds import RoundParams, RunCard
from stages.errors import InputError
from stages.metrics.definitions import DEFINITIONS
from stages.report.comparison import THAN, interval, signed, verdict_of
from stages.report.content import Content
from stages.report.drawing import draw_line, legend_above, name_panel, name_scales, panels_of, sheet
from stages.report.kinds import PageKind
from stages.report.legend import GRADIENTS
from stages.report.page import Cell, Drawing, Grid, Line, Page
from stages.report.palette import SETTINGS, styles_of
from stages.report.paper import paper_number
from stages.report.provenance import ENOUGH_SEEDS, Row
from stages.report.results import Entry, varying
from stages.report.svg import svg_of
from stages.report.tables import TableSpec
from store.catalog import FeatureStore

CURVES = "learning-curves"
METRICS = ("accuracy",)
"""The only metric."""

PAPER_ROUNDS = RoundParams(rounds=20, query=1000, start=100)
PUBLISHED_LESSON = LessonParams()
TRAINING = {"lr": "learning rate of f", "batch": "batch size", "precision": "precision of f"}
"""Parameter of a training -> how the page calls it."""

PAPER_TESTS = {"clean": "cifar10", "gaussian_noise": "cifar10c"}
"""Test -> data set to which the paper's numbers refer."""

LEGEND = {
    "f": "the network, trained on the images that were labelled so far; it selects the next ones",
    "H": f"{GRADIENTS}; it is trained on the same labels, after f, and selects in place of f",
    BESIDE: "the network of a run in which H selects: its difference from f is due to the images "
    "that H selected, and the difference of H from it to how H predicts",
}

STATISTICS = {
    "mean": "plain mean over the rounds of a run, including the first, then over seeds",
    "gain": "accuracy minus that of f for the same strategy and seed, both averaged over rounds",
    "interval": "95 % interval of Student's t over the seeds; none for a single seed",
}


def learning_page_of(store: FeatureStore, content: Content) -> tuple[Page, pd.DataFrame | None]:
    """The page of active learning results, and the numbers of its table if it has one.

    Raises:
        InputError: other results are among them, a figure is not for active learning, or a result
            only has runs of f or only of H.
    """
    entries, table = content.entries, content.table
    _check(entries, table, content.figures)
    axes = tuple(entries[0].axes)
    curves = pd.concat([_curves(entry) for entry in entries], ignore_index=True)
    numbers = learning_table(curves, axes, table.paper if table else None)
    page = Page(
        title=content.title,
        about=content.about,
        strong="H",
        legend=LEGEND,
        sentences=_sentences(numbers),
        comparison=None,
        table=_grid(numbers, axes) if table else None,
        shortcomings=[*_shortcomings(entries, numbers), *content.notes],
        drawings=[_drawing(curves, axes) for _ in content.figures],
        definitions={"accuracy": DEFINITIONS["accuracy"], **STATISTICS},
        provenance={"Results": [_used(entry) for entry in entries], "Runs": _runs(store, entries)},
        versions={each: version(each) for each in ("intro-pipe", "torch", "numpy", "scikit-learn")},
        command=content.command,
    )
    return page, numbers if table else None


def learning_table(
    curves: pd.DataFrame, axes: tuple[str, ...], paper: str | None = None
) -> pd.DataFrame:
    """One row per combination of axes, strategy, test and contender, see `LEGEND`.

    Returns:
        The axes, ``strategy``, ``test``, ``contender``; ``mean``, ``std``, ``n_seeds``, ``low``,
        ``high``; for the others the ``gain``, ``gain_low`` and ``gain_high`` over f; ``paper``
        and, for H, ``paper_gain``.
    """
    own = curves[curves["predictor"].isin(LEGEND)]
    keys = [*axes, "strategy", "test"]
    means = means_of(own, axes).rename(columns={"predictor": "contender"}).drop(columns="kind")
    own = own.rename(columns={"predictor": "contender"})
    seeds = own.groupby([*keys, "seed", "contender"], sort=False)["accuracy"].mean().reset_index()
    is_f = seeds["contender"] == "f"
    of_f = seeds[is_f].drop(columns="contender").rename(columns={"accuracy": "of_f"})
    pairs = seeds[~is_f].merge(of_f, on=[*keys, "seed"])
    pairs["gain"] = pairs["accuracy"] - pairs["of_f"]
    gains = with_interval(pairs.groupby([*keys, "contender"], sort=False)["gain"])
    gains = gains.rename(columns={"mean": "gain", "low": "gain_low", "high": "gain_high"})
    gains = gains[[*keys, "contender", "gain", "gain_low", "gain_high"]]
    found = means.merge(gains, on=[*keys, "contender"], how="left")
    theirs = [_paper(paper, row, row["contender"]) for _, row in found.iterrows()]
    theirs_of_f = [_paper(paper, row, "f") for _, row in found.iterrows()]
    paper_gain = pd.Series(theirs) - pd.Series(theirs_of_f)
    found = found.assign(paper=theirs, paper_gain=paper_gain.where(found["contender"] == "H"))
    order = [*axes, "strategy", "test", "contender"]
    return found[[*order, *(name for name in found if name not in order)]]


def _paper(paper: str | None, row: pd.Series[Any], contender: str) -> float:
    network = str(row.get("network", "resnet18"))
    return paper_number(paper, network, f"{row['strategy']} {contender}", str(row["test"])).value


def _check(entries: Sequence[Entry], table: TableSpec | None, figures: Sequence[str]) -> None:
    for entry in entries:
        kinds = {lesson.kind for lesson in CurvesCard.of(entry.result).lessons}
        if kinds != {"f", "h"}:
            raise InputError(
                f"result {entry.result.name} only has runs of {min(kinds)}: a report compares f "
                "and H, so run both kinds"
            )
    if table is not None and table.metrics != METRICS:
        raise InputError(
            f"metrics {', '.join(table.metrics)}: active learning only has {METRICS[0]}"
        )
    if other := [name for name in figures if name != CURVES]:
        raise InputError(f"no figure '{other[0]}' for active learning: expected {CURVES}")


def _curves(entry: Entry) -> pd.DataFrame:
    return read_curves(entry.result).assign(**entry.axes)


def _sentences(numbers: pd.DataFrame) -> list[str]:
    """How often H, and the f beside it, is better or worse than f: one sentence each per test."""
    found = []
    others = numbers[numbers["contender"] != "f"]
    for (test, name), rows in others.groupby(["test", "contender"], sort=False):
        ends = zip(rows["gain_low"], rows["gain_high"], strict=True)
        verdicts = pd.Series([verdict_of("accuracy", *each) for each in ends]).value_counts()
        tally = ", ".join(
            f"{words} f in {verdicts[each]}" for each, words in THAN.items() if each in verdicts
        )
        span = f"{signed(rows['gain'].min())} to {signed(rows['gain'].max())}"
        found.append(f"On {_spoken(test)} {name} is {tally} of {len(rows)} strategies ({span}).")
    return found


def _spoken(test: object) -> str:
    return f"{str(test).replace('_', ' ')} images"


def _grid(numbers: pd.DataFrame, axes: tuple[str, ...]) -> Grid:
    tests = list(numbers["test"].unique())
    has_paper = numbers.groupby("test")["paper"].apply(lambda each: each.notna().any())
    shown = varying(numbers, axes)
    lines = []
    for key, rows in numbers.groupby([*shown, "strategy", "contender"], sort=False):
        by_test = rows.set_index("test")
        cells = []
        for test in tests:
            row = by_test.loc[test]
            cells.append(_cell(row))
            if has_paper[test]:
                paper_gain = signed(row["paper_gain"])
                cells.append(
                    Cell("" if pd.isna(row["paper"]) else f"{row['paper']:.3f}", paper_gain)
                )
        lines.append(Line(tuple(map(str, key)), tuple(cells), key[-1] == "H"))
    heads = [
        each for test in tests for each in (_spoken(test), *(("paper",) if has_paper[test] else ()))
    ]
    same = ", ".join(f"{name} {numbers[name].iloc[0]}" for name in axes if name not in shown)
    notes = [
        *([f"For all rows: {same}."] if same else []),
        "Accuracy, mean over rounds ± standard deviation over seeds; below it the gain over f with "
        "its 95 % interval over seeds. ✓ better, ✗ worse, ≈ no clear difference.",
    ]
    if has_paper.any():
        notes.append("“paper”: the paper's number, and below it its gain of H over f.")
    return Grid((*shown, "strategy", "predictor"), tuple(heads), tuple(lines), tuple(notes))


def _cell(row: pd.Series[Any]) -> Cell:
    text = f"{row['mean']:.4f}" + ("" if pd.isna(row["std"]) else f" ± {row['std']:.4f}")
    if pd.isna(row["gain"]):
        return Cell(text)
    ends = row["gain_low"], row["gain_high"]
    return Cell(text, signed(row["gain"]), interval(*ends), verdict_of("accuracy", *ends))


def _shortcomings(entries: Sequence[Entry], numbers: pd.DataFrame) -> list[str]:
    found = []
    for entry in entries:
        card = CurvesCard.of(entry.result)
        names = card.names_of_tests
        others = [name for test, name in names.items() if name != PAPER_TESTS.get(test, name)]
        if others and numbers["paper"].notna().any():
            found.append(
                f"Other data: the paper's numbers are for cifar10 and cifar10c, ours for "
                f"{', '.join(others)}. Compare gains, not levels."
            )
        if smaller := [
            f"{name} {ours:,} ({theirs:,})"
            for name, theirs in asdict(PAPER_ROUNDS).items()
            if (ours := getattr(card.rounds, name)) != theirs
        ]:
            found.append(f"Other sizes (the paper's in brackets): {', '.join(smaller)}.")
        if changed := [
            f"{words} {ours} ({theirs})"
            for name, words in TRAINING.items()
            if (ours := getattr(card.lessons[0], name))
            != (theirs := getattr(PUBLISHED_LESSON, name))
        ]:
            found.append(
                f"Other training (that of BADGE's code in brackets): {', '.join(changed)}."
            )
        if card.short_trainings:
            found.append(
                f"{card.short_trainings} of {card.trainings} trainings ended after "
                f"{card.lessons[0].epochs} epochs with less than 99 % training accuracy."
            )
    n_seeds = int(numbers["n_seeds"].min())
    if n_seeds < ENOUGH_SEEDS:
        found.append(f"Fewer than {ENOUGH_SEEDS} seeds: {n_seeds}.")
    return list(dict.fromkeys(found))


def _drawing(curves: pd.DataFrame, axes: tuple[str, ...]) -> Drawing:
    with rc_context(SETTINGS):
        figure = _draw(curves, axes)
    title = "Accuracy against labels"
    caption = (
        "Mean over seeds of the accuracy after each round; bands are 95 % intervals of Student's t "
        "over the seeds, clipped to [0, 1]. Each is evaluated on the images it selected itself."
    )
    return Drawing(CURVES, title, caption, svg_of(figure, CURVES, title))


def _draw(curves: pd.DataFrame, axes: tuple[str, ...]) -> Figure:
    """One panel per strategy and test, with the curves of f and H."""
    own = curves[curves["predictor"].isin(["f", "H"])]
    shown = varying(own, axes)
    points = means_of(own, [*shown, "labelled"])
    points[["low", "high"]] = points[["low", "high"]].clip(0, 1)
    points["test"] = points["test"].str.replace("_", " ")
    found = panels_of(points, [*shown, "strategy", "test"])
    styles = styles_of(["f", "H"])
    figure, panels = sheet(len(found), height=2.1, wide=points["test"].nunique())
    for panel, (title, part) in zip(panels, found, strict=True):
        for name, line in part.groupby("predictor", sort=False):
            draw_line(panel, line, "labelled", styles[str(name)], markers=len(line) <= 12)
        panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        name_panel(panel, title)
    name_scales(panels, x="labels", y="accuracy")
    legend_above(figure, styles, styles)
    return figure


def _used(entry: Entry) -> Row:
    card = CurvesCard.of(entry.result)
    lesson, rounds = card.lessons[0], card.rounds
    tests = ", ".join(f"{name} ({test})" for test, name in card.names_of_tests.items())
    return {
        **{name: str(value) for name, value in entry.axes.items()},
        "result": entry.result.name,
        "pool": f"{card.dataset.get('name')}, {card.n_pool:,} images",
        "tests": tests,
        "rounds": f"{rounds.rounds}, {rounds.start:,} labels, then {rounds.query:,} each",
        "network": lesson.network,
        "training": f"Adam at {lesson.lr:g}, H at {lesson.head_lr:g}, batches of {lesson.batch}, "
        f"at most {lesson.epochs} epochs",
    }


def _runs(store: FeatureStore, entries: Sequence[Entry]) -> list[Row]:
    rows = []
    for entry in entries:
        for name in CurvesCard.of(entry.result).runs:
            run = RunCard.of(store.artifact("result", name))
            rows.append(
                {
                    "run": name,
                    "strategy": run.lesson.strategy,
                    "selected by": "f" if run.lesson.kind == "f" else "H",
                    "seed": str(run.lesson.seed),
                    "epochs of f": f"{sum(each.fits[0].epochs for each in run.rounds):,}",
                    "seconds": f"{sum(run.seconds):,.0f}",
                }
            )
    return rows


def _figures(store: FeatureStore, entries: Sequence[Entry]) -> tuple[str, ...]:
    del store, entries
    return (CURVES,)


LEARNING = PageKind(METRICS, learning_page_of, _figures)
