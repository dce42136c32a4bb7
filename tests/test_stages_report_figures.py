"""Figures show the numbers, tolerate gaps, and are self-contained SVG."""

import re
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from stages.errors import InputError
from stages.report.drawing import over_seeds, spread, with_gain
from stages.report.figures import FIGURES, draw_figure, fitting_figures
from stages.report.palette import styles_of
from stages.report.reliability import pooled
from stages.report.svg import standalone, svg_of
from stages.report.trade_off import draw_accuracy_vs_ece
from stages.sheets.theme import VARIABLES

PREDICTORS = {"f": 1, "H": 3, "H on <b>$x$ & y</b>": 2}
NEEDS_CELLS = ["gain-by-corruption", "gain-by-level", "ece-by-level"]
ANYWHERE = ["accuracy-vs-ece", "reliability"]


def by_group(corruptions: int = 3, levels: int = 5, **axes: object) -> pd.DataFrame:
    rng = np.random.default_rng(corruptions * 10 + levels)
    rows = [
        {
            **axes,
            "predictor": name,
            "seed": seed,
            "corruption": f"blur_{c}",
            "severity": level,
            "n_rows": 100,
            "accuracy": 0.9 - 0.05 * level + rng.normal(0, 0.01),
            "ece": 0.05 * level + abs(rng.normal(0, 0.01)),
        }
        for name, n_seeds in PREDICTORS.items()
        for seed in range(n_seeds)
        for c in range(corruptions)
        for level in range(1, levels + 1)
    ]
    return pd.DataFrame(rows)


def bins(**axes: object) -> pd.DataFrame:
    rows = [
        {
            **axes,
            "predictor": name,
            "seed": seed,
            "bin": at,
            "low": at / 10,
            "high": (at + 1) / 10,
            "n_rows": 40 * at,
            "n_correct": 4 * at * at,
            "confidence_sum": 40 * at * (at + 0.6) / 10,
        }
        for name, n_seeds in PREDICTORS.items()
        for seed in range(n_seeds)
        for at in range(10)
    ]
    return pd.DataFrame(rows)


def drawn(name: str, frame: pd.DataFrame, axes: tuple[str, ...] = ()) -> str:
    values = [frame[list(axes)].iloc[0].to_dict()] if axes else [{}]
    frames = {"by_group": frame, "bins": bins(**values[0])}
    return svg_of(draw_figure(name, frames, axes), name, FIGURES[name].title)


def words(svg: str) -> list[str]:
    return ["".join(found.itertext()) for found in ElementTree.fromstring(svg).iter() if found.text]


@pytest.mark.parametrize("name", [*ANYWHERE, *NEEDS_CELLS])
def test_every_figure_names_its_contenders(name: str) -> None:
    said = words(drawn(name, by_group()))
    assert {"H", "H on <b>$x$ & y</b>"} <= set(said)


@pytest.mark.parametrize("name", [*ANYWHERE, *NEEDS_CELLS])
def test_one_cell_is_enough(name: str) -> None:
    assert "<path" in drawn(name, by_group(1, 1))


@pytest.mark.parametrize("name", [*ANYWHERE, *NEEDS_CELLS])
def test_missing_cells_and_nan_are_passed_over(name: str) -> None:
    frame = by_group()
    frame = frame[(frame["corruption"] != "blur_1") | (frame["severity"] != 3)]
    frame.loc[frame["severity"] == 2, ["accuracy", "ece"]] = np.nan
    frame.loc[(frame["predictor"] == "H") & (frame["seed"] == 1), "accuracy"] = np.nan
    assert "nan" not in drawn(name, frame).lower()


def test_without_cells_the_figures_by_cell_are_refused() -> None:
    frame = by_group(1, 1).drop(columns=["corruption", "severity"])
    for name in NEEDS_CELLS:
        with pytest.raises(InputError, match="which these results lack"):
            drawn(name, frame)
    assert fitting_figures(frame, ()) == ANYWHERE
    assert "<path" in drawn("accuracy-vs-ece", frame)


@pytest.mark.parametrize(("ece_of_f", "named"), [([0.2, 0.1], "f"), ([0.2, 0.2], "H")])
def test_entries_with_the_same_f_are_named_at_h(ece_of_f: list[float], named: str) -> None:
    rows = [
        {"decay": decay, "predictor": name, "seed": 0, "accuracy": 0.7, "ece": ece}
        for decay, of_f, of_h in zip((0, 1), ece_of_f, (0.05, 0.07), strict=True)
        for name, ece in (("f", of_f), ("H", of_h))
    ]
    (panel,) = draw_accuracy_vs_ece(pd.DataFrame(rows), ("decay",)).axes
    places = {each.get_text(): each.xy[1] for each in panel.texts if isinstance(each, Annotation)}
    expected = ece_of_f if named == "f" else [0.05, 0.07]
    assert [places["0"], places["1"]] == pytest.approx(expected)


def test_an_unknown_figure_is_refused() -> None:
    with pytest.raises(InputError, match=r"no figure 'pie'.*reliability"):
        draw_figure("pie", {}, ())


def test_gains_of_f_alone_are_refused() -> None:
    frame = by_group()
    frame = frame[frame["predictor"] == "f"]
    assert fitting_figures(frame, ()) == ["accuracy-vs-ece", "ece-by-level", "reliability"]
    with pytest.raises(InputError, match="f alone"):
        drawn("gain-by-level", frame)


def test_each_entry_has_a_panel() -> None:
    frame = pd.concat([by_group(network="a-net"), by_group(network="b-net")])
    for name in [*NEEDS_CELLS, "accuracy-vs-ece"]:
        assert {"a-net", "b-net"} <= set(words(drawn(name, frame, ("network",))))


def test_too_many_panels_are_refused() -> None:
    frame = pd.concat([by_group(1, 1, network=str(at)) for at in range(13)])
    with pytest.raises(InputError, match="13 panels, at most 12 are"):
        drawn("ece-by-level", frame, ("network",))
    assert fitting_figures(frame, ("network",)) == []


def test_many_contenders_of_many_entries_share_a_reliability_diagram_each() -> None:
    names = ["resnet18", "resnet34", "resnet50", "resnet101"]
    controls = [f"control {at}" for at in range(4)]
    frames = [bins(network=name).assign(predictor=label) for name in names for label in controls]
    several = pd.concat([*(bins(network=name) for name in names), *frames])
    svg = svg_of(draw_figure("reliability", {"bins": several}, ("network",)), "reliability", "")
    assert {*names, *PREDICTORS, *controls} <= set(words(svg))
    assert words(svg).count("confidence") == 2


def test_long_titles_of_reliability_diagrams_are_wrapped() -> None:
    one = bins(network="digits-c-fog+jpeg_compression-test@cnn2")
    label = "f on digits-c-fog+jpeg_compression-test@other"
    several = pd.concat(one.assign(predictor=f"{label}-{at}") for at in range(8))
    svg = svg_of(draw_figure("reliability", {"bins": several}, ("network",)), "reliability", "")
    assert not [word for word in words(svg) if label in word]


def test_many_contenders_of_one_entry_share_a_reliability_diagram() -> None:
    several = pd.concat([bins().assign(predictor=f"control {at}") for at in range(13)])
    svg = svg_of(draw_figure("reliability", {"bins": several}, ()), "reliability", "")
    assert words(svg).count("confidence") == 1


def test_across_epochs_each_corruption_has_a_panel() -> None:
    parts = [
        part
        for epoch in (1, 4, 7)
        for part in (
            by_group(2, 5, set="corrupted", epoch=epoch),
            by_group(1, 1, set="clean", epoch=epoch).assign(corruption="clean", severity=0),
        )
    ]
    said = words(drawn("by-epoch", pd.concat(parts), ("set", "epoch")))
    assert {"clean", "blur 0", "blur 1", "epoch of f"} <= set(said)


def test_gains_are_those_of_a_plain_loop() -> None:
    frame = by_group()
    found = with_gain(frame, (), "accuracy")
    f = frame[frame["predictor"] == "f"].set_index(["corruption", "severity"])["accuracy"]
    expected = [
        row.accuracy - f.loc[(row.corruption, row.severity)]
        for row in frame.itertuples()
        if row.predictor != "f"
    ]
    assert found["gain"].tolist() == pytest.approx(expected)


def test_a_seed_is_averaged_before_the_seeds_are() -> None:
    frame = pd.DataFrame(
        {
            "predictor": "H",
            "seed": [0, 0, 0, 1],
            "severity": 1,
            "ece": [0.1, 0.2, 0.3, 0.4],
        }
    )
    (found,) = over_seeds(frame, ["severity"], "ece").to_dict(orient="records")
    assert (found["mean"], found["low"], found["high"]) == pytest.approx((0.3, 0.2, 0.4))


def test_bins_are_pooled_over_cells_and_seeds_and_empty_ones_left_out() -> None:
    found = pooled(pd.concat([bins(), bins()]))
    assert found["low"].tolist() == pytest.approx([at / 10 for at in range(1, 10)])
    assert found["accuracy"].tolist() == pytest.approx([at / 10 for at in range(1, 10)])
    assert found["share"].sum() == pytest.approx(1)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=12))
def test_labels_are_pushed_apart_in_their_order(wanted: list[float]) -> None:
    places = spread(wanted, 10.0)
    order = np.argsort(wanted, kind="stable")
    assert all(places[b] - places[a] >= 10 - 1e-6 for a, b in pairwise(order))
    assert np.mean(places) == pytest.approx(np.mean(wanted), abs=1e-6)


def test_labels_that_have_room_stay_where_they_are() -> None:
    assert spread([30.0, 0.0, 15.0], 10.0) == [30.0, 0.0, 15.0]


def test_a_figure_is_the_same_bytes_every_time() -> None:
    assert drawn("reliability", by_group()) == drawn("reliability", by_group())


def test_the_accuracy_of_each_class_has_a_row() -> None:
    names = {"blur_0": "plug", "blur_1": "tape_dispenser", "blur_2": ""}  # the last is no class
    frame = by_group().assign(**{"class": by_group()["corruption"].map(names)})
    said = words(drawn("accuracy-by-class", frame))

    assert {"plug", "tape dispenser", "accuracy", "f"} <= set(said)


def test_two_figures_on_a_page_share_no_mark() -> None:
    frame = by_group().assign(nll=0.5, entropy=0.4, mutual_information=0.1)
    marks = [
        set(re.findall(r' id="([^"]+)"', drawn(name, frame)))
        for name in FIGURES
        if name not in ("by-epoch", "accuracy-by-class", "auroc-by-detector")
    ]
    assert all(marks)
    assert len(set.union(*marks)) == sum(map(len, marks))


@pytest.mark.parametrize("name", [*ANYWHERE, *NEEDS_CELLS])
def test_an_svg_refers_to_nothing_but_itself_and_follows_the_page(name: str) -> None:
    svg = drawn(name, by_group())
    root = ElementTree.fromstring(svg)
    targets = re.findall(r'href="([^"]+)"|url\(([^)]+)\)', svg)
    assert {"".join(target)[0] for target in targets} == {"#"}
    assert not [e for e in root.iter() if e.tag.endswith(("style", "script", "metadata", "image"))]
    for light, _ in VARIABLES.values():
        assert not re.search(rf"(?<!,){light}", svg)
    assert "var(--" in svg
    assert len(svg) < 150_000


def test_a_standalone_figure_supports_dark_mode() -> None:
    file = standalone(drawn("ece-by-level", by_group()))
    assert "prefers-color-scheme:dark" in file
    assert ElementTree.fromstring(file).tag == "{http://www.w3.org/2000/svg}svg"


def test_f_is_grey_and_h_is_strong_and_no_two_look_alike() -> None:
    styles = styles_of(["f", *(f"control {at}" for at in range(10)), "H"])
    assert styles["H"].is_strong
    assert [name for name, style in styles.items() if style.is_thick] == ["f", "H"]
    assert len({(s.colour, s.marker, s.dashes) for s in styles.values()}) == len(styles)


def test_letters_that_the_font_of_the_drawing_lacks_are_text() -> None:
    figure = Figure()
    figure.text(0.1, 0.5, "猫 cat")
    assert "猫 cat" in words(svg_of(figure, "cat", "A cat"))
