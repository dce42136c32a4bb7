"""Detection steps of a recipe: refusals, sharing with the command, and the report."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from small_data import write_npz_set
from tiny_recipe import run_tiny, tiny_run

from pipeline.errors import RecipeError
from stages.recipes.shipped import recipe_of
from stages.reflection.extract import Extract
from stages.report.paper import in_cell, paper_number
from store.catalog import FeatureStore

TEXT = """\
recipe: tiny
title: Detection on a few digits
parameters:
  outsides: [outside]
  detectors: [msp, odin]
steps:
  f: {stage: train-sensing, dataset: few, preset: quick, epochs: 1}
  train: {stage: extract, model: f, dataset: few, split: train}
  clean: {stage: extract, model: f, dataset: few}
  clean-odin: {stage: extract, model: f, dataset: few, odin: 1/255}
  other: &other
    stage: extract
    each: {out: $outsides}
    model: f
    dataset: $out
    out_of_distribution: true
  other-odin: {<<: *other, odin: 1/255}
  H:
    stage: train-head
    features: train
    layers: [20]
    epochs: 15
    batch_size: 16
    weight_decay: 0.0
  detected:
    stage: ood
    each: {detector: $detectors}
    features: clean
    against: other
    odin_features: clean-odin
    odin_against: other-odin
    detector: $detector
    heads: {H: H}
    resamples: 100
report:
  results: [detected]
  table: {metrics: [fpr95, auroc]}
"""


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "data"
    write_npz_set(folder / "few", 120, 20)
    rng = np.random.default_rng(2)
    (folder / "outside").mkdir()
    for number in range(12):
        pixels = rng.integers(0, 256, (40, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "outside" / f"{number}.png")
    return folder


@pytest.fixture
def store(tmp_path):
    return FeatureStore(str(tmp_path / "store"))


def test_a_recipe_makes_a_cell_for_each_set_and_detector_and_a_page(store, root):
    report = run_tiny(store, root, TEXT)
    again = run_tiny(store, root, TEXT)
    page = report.statuses[-1].job.output
    table = pd.read_csv(f"{page.storage.location}/table.csv")
    markdown = page.read("report.md").decode()

    assert again.n_made == 0
    assert list(table.groupby(["out", "detector"], sort=False).groups) == [
        ("outside", "msp"),
        ("outside", "odin"),
    ]
    assert set(table["contender"]) == {"f", "H"}
    assert set(table["metric"]) == {"fpr95", "auroc"}
    assert table[table["contender"] == "H"]["gain_low"].notna().all()
    assert "In AUROC H is" in markdown
    assert "FPR at 95 % TPR" in markdown
    assert "few against outside" in markdown
    assert "**odin**: largest softmax probability of z / T" in markdown
    assert "inside: kind odin, epsilon 0.00392157, temperature 1000. outside: kind odin" in markdown
    assert {each.plan["name"].partition("@")[0] for each in store.feature_sets()} == {
        "few-train",
        "few-test",
        "few+odin-test",
        "outside-test",
        "outside+odin-test",
    }


def refusal(text):
    with pytest.raises(RecipeError) as caught:
        recipe_of(text, "tiny.yaml")
    return str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("    odin_against: other-odin\n", "", "odin: expected 'odin_features' and 'odin_against'"),
        ("[msp, odin]", "[msp, knn]", "knn: expected 'training', features that it is fitted on"),
        ("[msp, odin]", "[vom]", "expected one of msp, odin, energy"),
        ("odin: 1/255}\n  other:", "odin: 1/0}\n  other:", "step clean-odin: odin: "),
        ("odin: 1/255}\n  other:", "odin: 7}\n  other:", "step clean-odin: odin: "),
        ("heads: {H: H}", "heads: {f: H}", "heads: 'f', the label of 'H'"),
        ("each: {out: $outsides}", "each: {auroc: $outsides}", "axis cannot be called 'auroc'"),
    ],
)
def test_a_wrong_key_is_refused_with_its_line(old, new, message):
    assert old in TEXT
    assert message in refusal(TEXT.replace(old, new, 1).replace("$out\n", "few\n"))


def test_sets_that_share_images_are_refused_before_the_first_step(store, root):
    run = tiny_run(store, root, TEXT, {"outsides": "[outside, few]"})
    with pytest.raises(RecipeError, match=r"detected.*20 of its 20 images are also images of few"):
        run.run(None)

    assert not list(root.parent.glob("store/*"))


def test_fractions_are_numbers():
    params = Extract(model="f", dataset="few", attack="uniform", epsilon="2/255", odin=0.5)

    assert (params.epsilon, params.step, params.odin) == (2 / 255, 1 / 255, 0.5)


def test_the_papers_numbers_are_shown_for_their_detector_and_set():
    dataset = "cifar10 against lsun-c"
    number = paper_number("table-11", "resnet18", in_cell("H", dataset, "odin"), "auroc")

    assert (number.value, number.dataset) == (0.9587, dataset)
    assert np.isnan(
        paper_number("table-11", "resnet18", in_cell(None, dataset, "odin"), "auroc").value
    )


def test_the_paper_prints_h_ahead_in_17_of_24_cells():
    """Counted from the table, where the text says 15."""
    cells = [
        (
            metric,
            *(
                paper_number("table-11", "resnet18", f"{who}, {detector}, {out}", metric).value
                for who in "Hf"
            ),
        )
        for detector in ("msp", "odin")
        for out in ("textures", "svhn-10k", "places365", "lsun-c")
        for metric in ("fpr95", "detection_error", "auroc")
    ]

    assert sum((h > f) == (metric == "auroc") for metric, h, f in cells) == 17
