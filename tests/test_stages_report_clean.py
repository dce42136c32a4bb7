"""What a page says about its names, and the accuracy on clean images beside the corrupted mean."""

import io
import math
from typing import Any

import pandas as pd
import pytest
from cells import cells, small_head
from made import make_in

from pipeline.fields import Labelled
from stages.evaluation.evaluate import Evaluate
from stages.evaluation.recognition import query
from stages.introspection.fit_temperature import FitTemperature
from stages.report.clean import clean_of
from stages.report.report import Report
from stages.report.results import Entry
from store.artifacts import Artifact
from store.catalog import FeatureStore

SOURCE = {"family": "shapes", "split": "test", "resize": "bilinear-antialias 8x8->32x32"}
NET = {"network": "cnn2", "image_size": 32, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}


@pytest.fixture
def result(store: FeatureStore) -> Artifact:
    """f and H at a temperature on corrupted cells."""
    corrupted = cells(store, "shapes-c", source=SOURCE, net=NET)
    small_head(store, corrupted)
    make_in(store, FitTemperature(features=corrupted.name, name="t"))
    stage = Evaluate(features=corrupted.name, heads={"H": "h", "T": "t"}, resamples=0)
    return make_in(store, stage).output


def page_of(store: FeatureStore, *results: Artifact) -> tuple[str, pd.DataFrame]:
    asked = tuple(Labelled(label="", name=result.name) for result in results)
    report = make_in(store, Report(results=asked, figures=())).output
    return report.read("report.md").decode(), pd.read_csv(io.BytesIO(report.read("table.csv")))


def clean_set(store: FeatureStore, **changes: object) -> str:
    facts = {"source": SOURCE, "net": NET, "has_cells": False, **changes}
    return cells(store, "shapes", n_rows=60, **facts).name


def test_a_page_says_what_its_names_mean(store: FeatureStore, result: Artifact) -> None:
    markdown, table = page_of(store, result)
    features = result.card()["features"]

    assert "these images are resized (bilinear, antialiased, 8x8 to 32x32)" in markdown
    assert "minus the mean 0.5, 0.5, 0.5 and divided by the std 0.25, 0.25, 0.25" in markdown
    assert f"fitted on {features} (includes the images that are evaluated here)" in markdown
    assert "the gradients of f's last layer" in markdown
    assert "**cell**: the rows of one value of corruption and severity; each of the 6 " in markdown
    assert "clean" not in table


def test_f_is_described_once_for_images_that_are_prepared_in_two_ways(
    store: FeatureStore, result: Artifact
) -> None:
    clean = clean_set(store, source={**SOURCE, "resize": "none"})
    other = make_in(store, Evaluate(features=clean, heads={"H": "h"}, resamples=0)).output

    markdown, _ = page_of(store, result, other)
    (line,) = [each for each in markdown.splitlines() if each.startswith("- **f**")]

    assert line.count("the network cnn2") == line.count("minus the mean") == 1
    assert "are resized (bilinear, antialiased, 8x8 to 32x32), as stored; in the" in line


def test_a_head_with_and_without_a_temperature_is_described_once(store: FeatureStore) -> None:
    found = cells(store)
    small_head(store, found)
    make_in(store, FitTemperature(features=found.name, head="h", name="h-t"))
    results = [
        make_in(store, Evaluate(features=found.name, heads={"H": name}, resamples=0)).output
        for name in ("h", "h-t")
    ]
    (line,) = [each for each in page_of(store, *results)[0].splitlines() if "**H**" in each]
    assert line.count("a small network that predicts the class again") == 1
    assert line.count("trained on") == 1
    assert "; in some results, its logits are divided by a temperature for each seed" in line


@pytest.mark.parametrize(
    ("changes", "mark"),
    [
        ({}, " (includes the images that are evaluated here)"),
        ({"n_rows": 30}, " (includes some of the images that are evaluated here)"),
        ({"source": {**SOURCE, "split": "train"}}, ""),
        ({"source": {**SOURCE, "name": "others"}}, ""),
    ],
)
def test_a_temperature_of_the_evaluated_images_is_marked(
    store: FeatureStore, changes: dict[str, Any], mark: str
) -> None:
    found = cells(store, n_rows=60, source=SOURCE)
    small_head(store, cells(store, source={**SOURCE, "split": "train"}))
    fitted = cells(store, **{"source": SOURCE, **changes})
    make_in(store, FitTemperature(features=fitted.name, name="f-t"))
    make_in(store, FitTemperature(features=fitted.name, head="h", name="h-t"))
    heads = {"T": "f-t", "H": "h-t"}
    page = page_of(
        store, make_in(store, Evaluate(features=found.name, heads=heads, resamples=0)).output
    )[0]
    assert page.count(f"fitted on {fitted.name}{mark}\n") == 1
    assert page.count(f"fitted on {fitted.name}{mark}; T = ") == 1
    is_training = changes.get("source", SOURCE)["split"] == "train"
    chosen = f"is chosen on labelled images for H (on {fitted.name}), T (on {fitted.name}): results"
    assert (chosen in page) is not is_training


def test_the_accuracy_on_clean_images_stands_beside_the_mean(
    store: FeatureStore, result: Artifact
) -> None:
    before = page_of(store, result)[0]
    clean = clean_set(store)
    markdown, table = page_of(store, result)
    accuracy = query(store.open(clean)).rows[0]["accuracy"]
    found = table[table["metric"] == "accuracy"].set_index("contender")["clean"]
    assert found["f"] == pytest.approx(accuracy)
    assert math.isnan(found["H"])
    assert f"“clean accuracy”: on the same images without corruption, {clean}." in markdown
    assert before != markdown

    heads = {"H": "h", "f at T": "t"}
    evaluated = make_in(store, Evaluate(features=clean, heads=heads, resamples=0)).output
    table = page_of(store, result)[1]
    found = table[table["metric"] == "accuracy"].set_index("contender")["clean"]
    average = evaluated.read_frame("average.parquet")
    theirs = average[average["metric"] == "accuracy"].set_index("predictor")["mean"]
    assert found.tolist() == pytest.approx(theirs[["f", "H", "f at T"]].tolist())


@pytest.mark.parametrize(
    "changes",
    [
        {"weights": "w2"},
        {"source": {**SOURCE, "family": "others"}},
        {"source": {**SOURCE, "split": "train"}},
        {"has_cells": True},
    ],
)
def test_other_images_and_other_networks_are_not_its_clean_set(
    store: FeatureStore, result: Artifact, changes: dict[str, object]
) -> None:
    clean_set(store, **changes)
    assert not clean_of(store, Entry({}, result))


def test_the_clean_evaluation_with_the_most_of_the_heads_is_used(
    store: FeatureStore, result: Artifact
) -> None:
    clean = clean_set(store)
    for heads in ({}, {"H": "h", "T": "t"}, {"H": "h"}):
        make_in(store, Evaluate(features=clean, heads=heads, resamples=0))

    used = store.artifact("result", clean_of(store, Entry({}, result)).result)
    assert list(used.card()["contenders"]) == ["H", "T"]
