"""The profile of the paper's gain: every criterion, and the page that shows it."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from cells import cells
from judged_cells import CONTROL, result_of_cells
from made import make_in

from pipeline.fields import Labelled
from stages.data.corruptions.names import CORRUPTIONS
from stages.errors import InputError
from stages.evaluation.evaluate import Evaluate
from stages.report.gain_maps import draw_gain_cells, draw_gain_map
from stages.report.gain_profile import CRITERIA, HIGH, LOW, Gains, profile_grid, profile_sentence
from stages.report.gain_table import differences_of
from stages.report.report import Report
from stages.report.results import Entry, read_entries

NAMES = [name for name in CORRUPTIONS if name != "identity"][:19]


def of_the_paper() -> Gains:
    """Gains with the whole profile: 8 points for blurs and noise, 0.5 for light, 4 for the rest."""
    means = [0.08 if name in HIGH else 0.005 if name in LOW else 0.04 for name in NAMES]
    means[NAMES.index("pixelate")] = 0.06
    growth = np.array([0.6, 0.8, 1.0, 1.2, 1.4])
    accuracy = pd.DataFrame(np.outer(means, growth), NAMES, range(1, 6))
    ece = -accuracy / 2
    ece.loc["contrast", 5] = 0.2
    return Gains(accuracy, ece, -0.0009)


def held(gains: Gains) -> dict[str, bool | None]:
    return {each.name: each.test(gains).holds for each in CRITERIA}


def changed(row: str, value: float) -> Gains:
    gains = of_the_paper()
    gains.accuracy.loc[row] *= value / gains.accuracy.loc[row].mean()
    return gains


def test_the_profile_of_the_paper_holds_in_all_its_parts():
    gains = of_the_paper()

    assert set(held(gains).values()) == {True}
    assert profile_sentence([({}, {"H": gains})]).endswith("profile of the paper's gain: H.")
    assert profile_grid([({}, {"H": gains})]).lines[0].cells[0].text == "yes"


@pytest.mark.parametrize(
    ("gains", "failed"),
    [
        (replace(of_the_paper(), clean=0.004), {"clean same"}),
        (replace(of_the_paper(), ece=of_the_paper().ece.abs()), {"ECE better"}),
        (replace(of_the_paper(), accuracy=of_the_paper().accuracy - 0.03),
         {"gain > 3", "7 corruptions > 5"}),
        (replace(of_the_paper(), accuracy=of_the_paper().accuracy[[2, 1, 3, 4, 5]].set_axis(
            range(1, 6), axis=1)), {"grows"}),
        (changed("glass_blur", 0.02), {"blurs high", "7 corruptions > 5"}),
        (changed("contrast", 0.3), {"brightness low"}),
    ],
)  # fmt: skip
def test_each_criterion_fails_on_its_own_gains(gains, failed):
    assert {name for name, holds in held(gains).items() if not holds} == failed
    assert f"for H: {7 - len(failed)} of 7." in profile_sentence([({}, {"H": gains})])


def test_contrast_of_level_5_alone_is_excepted():
    gains = of_the_paper()
    gains.ece.loc["contrast", 4] = 0.0

    assert held(gains)["ECE better"] is False
    assert CRITERIA[5].test(gains).number == "not in 1 of 94"


def test_equal_gains_rank_neither_high_nor_low():
    flat = replace(of_the_paper(), accuracy=of_the_paper().accuracy * 0)

    assert held(flat)["blurs high"] is held(flat)["brightness low"] is False


def test_what_the_cells_do_not_say_is_neither_yes_nor_no():
    few = Gains(of_the_paper().accuracy.loc[["fog", "snow"], [1]], of_the_paper().ece)
    found = held(few)

    assert [found[name] for name in ("blurs high", "brightness low", "grows", "clean same")] == [
        None, None, None, None,
    ]  # fmt: skip
    line = profile_grid([({}, {"H": few})]).lines[0]
    assert line.cells[0].text == "no"
    assert line.cells[3].text == "—"


def test_a_page_with_a_profile_shows_gains_over_f_and_the_control(store):
    result = result_of_cells(store, cells(store))
    asked = (Labelled(label="", name=result.name),)
    figures = ("gain-map", "gain-cells")
    report = make_in(store, Report(results=asked, profile=CONTROL, figures=figures)).output
    markdown = report.read("report.md").decode()
    (judged,) = read_entries(store, [Entry({}, result)])
    over_f = differences_of(judged)["H", "f", "accuracy"]

    assert f"Control: {CONTROL}." in markdown
    assert "The profile of the paper's gain" in markdown
    assert f"{over_f.value:+.4f}".replace("-", "\N{MINUS SIGN}") in markdown
    assert {f"figures/{name}.svg" for name in figures} <= set(report.files())


@pytest.mark.parametrize(
    ("by", "control", "message"),
    [
        (("corruption", "severity"), "nobody", "has no contender 'nobody'; there are: f, H"),
        (("label",), "f", "expected results by corruption and severity"),
    ],
)
def test_a_profile_that_cannot_be_shown_is_refused(store, by, control, message):
    result = result_of_cells(store, cells(store))
    if by == ("label",):
        heads = {"H": result.card()["contenders"]["H"]["head"]}
        features = result.card()["features"]
        result = make_in(store, Evaluate(features=features, heads=heads, by=by)).output
    asked = (Labelled(label="", name=result.name),)
    with pytest.raises(InputError, match=message):
        make_in(store, Report(results=asked, profile=control))


def test_maps_have_a_row_for_each_contender_and_cells_for_two():
    rng = np.random.default_rng(0)
    rows = [
        {"predictor": name, "seed": 0, "corruption": corruption, "severity": severity,
         "accuracy": level + rng.random() / 9, "ece": rng.random()}
        for name, level in (("f", 0.5), ("H", 0.5), ("other", 0.8))
        for corruption in ("fog", "snow")
        for severity in (1, 2, 3)
    ]  # fmt: skip
    frame = pd.DataFrame(rows)
    (panel,) = draw_gain_map(frame, ()).axes
    labels = [label.get_text() for label in panel.get_yticklabels()]
    shown = float(panel.texts[0].get_text().replace("\N{MINUS SIGN}", "-"))
    mean = frame.groupby(["predictor", "corruption"])["accuracy"].mean()

    assert labels == ["other", "H"]
    assert shown == pytest.approx(100 * (mean["other", "fog"] - mean["f", "fog"]), abs=0.051)
    panels = draw_gain_cells(frame, ()).axes
    titles = [panel.get_title(loc="left") or panel.get_title() for panel in panels]
    assert [title.partition(":")[0] for title in titles] == ["H", "H", "other", "other"]
    assert {panel.get_ylim() for panel in panels} == {(2.0, 0.0)}  # the first name is at the top


def test_titles_of_cells_do_not_reach_into_the_next_panel():
    label = "the last layer of f, trained again · inputs without normalisation"
    rows = [
        {"predictor": name, "seed": 0, "corruption": corruption, "severity": 1, "accuracy": 0.5,
         "ece": 0.1}
        for name in ("f", label)
        for corruption in NAMES
    ]  # fmt: skip
    figure = draw_gain_cells(pd.DataFrame(rows), ())
    figure.draw_without_rendering()
    left, right = (panel.get_window_extent() for panel in figure.axes)
    title = figure.axes[0].get_tightbbox()
    assert title is not None
    assert left.x0 < right.x0
    assert title.x1 <= right.x0
