"""The table and the comparison: numbers of the result, with the paper's numbers beside them."""

import dataclasses
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cells import cells
from judged_cells import CONTROL, result_of_cells

from stages.errors import InputError
from stages.introspection.comparison_card import Cells, Dataset
from stages.report.comparison import comparison_of, sentences, strong_one, verdict_of
from stages.report.kinds import kind_of
from stages.report.page import comparison_grid, table_grid
from stages.report.results import Entry, Judged, entries_of, find_result, frame_over, read_entries
from stages.report.tables import TableSpec, table_of
from store.artifacts import Artifact
from store.catalog import FeatureStore
from store.errors import AmbiguousNameError, NotFoundError

RESNET = {"network": "resnet18"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    folder: Path = tmp_path_factory.mktemp("place")
    return FeatureStore(str(folder / "store")).prepare()


@pytest.fixture(scope="module")
def result(place: FeatureStore) -> Artifact:
    return result_of_cells(place, cells(place))


@pytest.fixture(scope="module")
def paper_data(place: FeatureStore) -> Artifact:
    """A result on a set of the name of the paper's."""
    return result_of_cells(place, cells(place, "cifar10c"))


@pytest.fixture(scope="module")
def judged(place: FeatureStore, result: Artifact) -> tuple[Judged, ...]:
    """With an H that only claims the size of the paper's, since training one takes long."""
    (found,) = read_entries(place, [Entry(RESNET, result)])
    head = found.heads["H"]
    spec = dataclasses.replace(head.predictor.spec, layers=(300, 100))
    large = dataclasses.replace(head, predictor=dataclasses.replace(head.predictor, spec=spec))
    card = dataclasses.replace(found.card, contenders={**found.heads, "H": large})
    return (dataclasses.replace(found, card=card),)


def cell(table: pd.DataFrame, contender: str, metric: str) -> pd.Series:
    rows = table[(table["contender"] == contender) & (table["metric"] == metric)]
    assert len(rows) == 1
    return rows.iloc[0]


def test_a_table_has_the_numbers_of_the_result(
    result: Artifact, judged: tuple[Judged, ...]
) -> None:
    table = table_of(judged, TableSpec(metrics=("nll", "accuracy")))
    kept = pd.read_parquet(io.BytesIO(result.read("average.parquet")))
    kept = kept.set_index(["predictor", "metric"])
    shared = ["mean", "std", "n_seeds", "low", "high", "gain", "gain_low", "gain_high"]
    places = pd.MultiIndex.from_frame(table[["contender", "metric"]])
    pd.testing.assert_frame_equal(
        table[shared], kept.loc[places, shared].reset_index(drop=True), check_exact=True
    )
    assert table["contender"].tolist() == ["f", "f", "H", "H", CONTROL, CONTROL]
    assert table["metric"].tolist() == ["nll", "accuracy"] * 3


def test_the_papers_number_is_shown_beside_the_matching_head(judged: tuple[Judged, ...]) -> None:
    table = table_of(judged, TableSpec("table-5"))
    assert cell(table, "H", "ece")["paper"] == 0.07
    assert cell(table, "H", "ece")["paper_gain"] == pytest.approx(-0.07)
    assert cell(table, "f", "mce")["paper"] == 0.27
    assert math.isnan(cell(table, CONTROL, "ece")["paper"])


def test_numbers_of_another_data_set_are_marked(
    place: FeatureStore, judged: tuple[Judged, ...], paper_data: Artifact
) -> None:
    table = table_of(judged, TableSpec("table-5"))
    assert cell(table, "H", "ece")["paper_dataset"] == "cifar10c"
    assert "* the paper's number is for all of cif" in " ".join(
        table_grid(table, ("network",)).notes
    )
    (part,) = read_entries(place, [Entry(RESNET, paper_data)])
    marked = table_of([part], TableSpec("table-5"))["paper_dataset"]
    assert set(marked) == {"", "cifar10c"}
    size = {"rows": 950_000, "cells": Cells((), 95)}
    whole = dataclasses.replace(part.card, dataset=Dataset("cifar10c", "test"), **size)
    same = dataclasses.replace(part, card=whole)
    assert (table_of([same], TableSpec("table-5"))["paper_dataset"] == "").all()


def test_a_column_of_the_paper_is_shown_where_it_has_a_number(judged: tuple[Judged, ...]) -> None:
    grid = table_grid(table_of(judged, TableSpec("table-5", ("ece", "nll"))), ("network",))
    assert grid.heads == ("ECE", "paper", "NLL")
    assert grid.lines[0].cells[1].text == "0.1400 *"
    assert [line.is_strong for line in grid.lines] == [False, True, False]


def test_a_constant_axis_is_stated_once(judged: tuple[Judged, ...]) -> None:
    grid = table_grid(table_of(judged, TableSpec()), ("network",))
    assert grid.names == ("contender",)
    assert "For all rows: network resnet18." in grid.notes


def test_a_missing_metric_is_refused(judged: tuple[Judged, ...]) -> None:
    with pytest.raises(InputError, match="no metric 'aucroc'"):
        TableSpec(metrics=("aucroc",))
    average = judged[0].average
    poor = dataclasses.replace(judged[0], average=average[average["metric"] != "mce"])
    with pytest.raises(InputError, match="has no mce"):
        table_of([poor], TableSpec())


def compared(judged: Sequence[Judged], *metrics: str) -> pd.DataFrame:
    names = metrics or TableSpec().metrics
    return comparison_of(frame_over(judged, "differences"), names, ("network",))


def test_against_f_the_difference_is_the_gain(judged: tuple[Judged, ...]) -> None:
    ours = cell(table_of(judged, TableSpec()), "H", "ece")
    comparison = compared(judged)
    assert set(comparison["contender"]) == {"H"}
    found = comparison.set_index(["other", "metric"]).loc[("f", "ece")]
    gains = ours[["gain", "gain_low", "gain_high"]].tolist()
    assert found[["difference", "low", "high"]].tolist() == pytest.approx(gains)


def test_against_another_the_interval_is_that_of_the_paired_difference(
    judged: tuple[Judged, ...],
) -> None:
    found = compared(judged).set_index(["other", "metric"]).loc[(CONTROL, "brier")]
    pairs = judged[0].differences.set_index(["predictor", "other", "metric"])
    expected = pairs.loc[("H", CONTROL, "brier")]
    for name in ("difference", "low", "high"):
        assert found[name] == expected[name]


def test_others_and_metrics_are_in_the_order_of_the_table(judged: tuple[Judged, ...]) -> None:
    found = compared(judged, "ece", "accuracy")
    first = found[found["network"] == found["network"].iloc[0]]
    assert first["metric"].tolist()[:2] == ["ece", "accuracy"]
    assert first["other"].tolist()[:2] == ["f", "f"]


@pytest.mark.parametrize(
    ("metric", "interval", "verdict"),
    [
        ("accuracy", (0.05, 0.2), "better"),
        ("ece", (0.05, 0.2), "worse"),
        ("ece", (-0.2, -0.05), "better"),
        ("log_likelihood", (-0.2, -0.05), "worse"),
        ("accuracy", (-0.1, 0.1), "no clear difference"),
        ("entropy", (0.05, 0.2), "no clear difference"),
        ("accuracy", (math.nan, math.nan), "no interval"),
    ],
)
def test_a_verdict_follows_from_the_interval(
    metric: str, interval: tuple[float, float], verdict: str
) -> None:
    assert verdict_of(metric, *interval) == verdict


def differences(rows: list[tuple[str, str, float, float, float]], **axes: str) -> pd.DataFrame:
    columns = ["metric", "other", "difference", "low", "high"]
    frame = pd.DataFrame(rows, columns=columns).assign(contender="H", **axes)
    numbers = zip(frame["metric"], frame["low"], frame["high"], strict=True)
    return frame.assign(verdict=[verdict_of(*row) for row in numbers])


def test_a_sentence_shows_the_interval_for_f_and_groups_the_others() -> None:
    found = differences(
        [
            ("accuracy", "f", 0.0042, 0.0031, 0.0053),
            ("accuracy", "scaled", 0.0001, -0.001, 0.001),
            ("accuracy", "linear", 0.02, 0.01, 0.03),
            ("accuracy", "pair", 0.01, 0.005, 0.02),
        ]
    )
    assert sentences(found, ()) == [
        "In accuracy H is better than f (+0.0042 [+0.0031, +0.0053]); better than linear "
        "(+0.0200) and pair (+0.0100); not clearly different from scaled (+0.0001)."
    ]


def test_over_several_entries_a_sentence_counts() -> None:
    one = differences([("ece", "f", -0.01, -0.02, -0.005)], network="a")
    other = differences([("ece", "f", 0.01, 0.005, 0.02)], network="b")
    ends = "\N{MINUS SIGN}0.0100 to +0.0100"
    assert sentences(pd.concat([one, other]), ("network",)) == [
        f"In ECE H is better than f in 1 and worse than f in 1 of 2 ({ends})."
    ]


def test_a_sentence_has_no_empty_brackets() -> None:
    nothing = [(metric, "f", *[math.nan] * 3) for metric in ("accuracy", "ece")]
    one, other = (differences(nothing, network=name) for name in "ab")
    assert sentences(one, ())[0] == "In accuracy H is not tested against f."
    both = sentences(pd.concat([one, other]), ("network",))
    assert both[0] == "In accuracy H is not tested against f in 2 of 2."


def test_a_sentence_states_how_many_results_have_the_contender() -> None:
    one = differences([("ece", "f", -0.01, -0.02, -0.005)], network="a")
    (said,) = sentences(one, ("network",), n_entries=3)
    assert said.startswith("In ECE H, found in 1 of 3 results, is better than f (")


def test_without_resamples_there_is_no_verdict(place: FeatureStore) -> None:
    bare = result_of_cells(place, cells(place, "bare"), n_resamples=0)
    found = frame_over(read_entries(place, [Entry({}, bare)]), "differences")
    grid = comparison_grid(comparison_of(found, ["accuracy", "ece"], ()), ())
    assert {cell.interval + cell.mark for line in grid.lines for cell in line.cells} == {""}


def test_f_alone_has_no_strong_one() -> None:
    assert strong_one(["f"]) is None
    assert strong_one(["f", "H, ce", "H, l1"]) == "H, ce"


def test_a_result_is_found_by_a_unique_prefix(
    place: FeatureStore, result: Artifact, paper_data: Artifact
) -> None:
    assert find_result(place, "shapes").name == result.name
    assert find_result(place, paper_data.name).name == paper_data.name
    with pytest.raises(AmbiguousNameError, match="use more"):
        find_result(place, "")


def test_an_unknown_result_names_the_commands_that_make_results(place: FeatureStore) -> None:
    with pytest.raises(NotFoundError) as raised:
        find_result(place, "nothing")
    for command in ("evaluate", "ood", "active-learn", "intro-pipe ls"):
        assert f"{command}`" in str(raised.value)


def test_an_analysis_is_refused(place: FeatureStore) -> None:
    analysis = place.artifact("result", "shapes-test@net-analysis-0123456789ab")
    plan = {"stage": {"name": "analyse"}}
    analysis.claim(plan)
    analysis.write({"by-group.parquet": b""}, {"features": ["shapes-test@net"]}, plan=plan)
    with pytest.raises(InputError, match="found one of 'analyse', which has no page"):
        kind_of([analysis])


def test_an_analysis_does_not_make_a_prefix_ambiguous(
    place: FeatureStore, result: Artifact
) -> None:
    other = place.artifact("result", f"{result.name.rpartition('-')[0]}-analysis-0123456789ab")
    other.claim({"stage": {"name": "analyse"}})
    assert find_result(place, "shapes-test").name == result.name


def test_several_results_are_distinguished_by_name(result: Artifact, paper_data: Artifact) -> None:
    axes = [entry.axes for entry in entries_of([result, paper_data])]
    assert axes == [{"result": "shapes-test@net"}, {"result": "cifar10c-test@net"}]
    assert [entry.axes for entry in entries_of([result])] == [{}]


def test_incompatible_entries_are_refused(place: FeatureStore, result: Artifact) -> None:
    one = Entry(RESNET, result)
    for wrong, why in [
        ([], "without results"),
        ([one, Entry({"loss": "ce"}, result)], "axes"),
        ([one, one], "same network"),
        ([Entry({"severity": 1}, result)], "severity"),
    ]:
        with pytest.raises(InputError, match=why):
            read_entries(place, wrong)


def test_a_result_outlives_its_features(place: FeatureStore, result: Artifact) -> None:
    gone = FeatureStore(f"{place.location}-gone").prepare()
    (found,) = read_entries(gone, [Entry({}, result)])
    assert found.dataset == "shapes"
    assert found.network == "net"
    assert np.isfinite(found.average["mean"]).all()
