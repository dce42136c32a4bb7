"""The recipe `batch-statistics` on a few digits, from images to the page."""

import pandas as pd
import pytest
from small_data import write_npz_set
from tiny_recipe import run_tiny

from stages.evaluation.recognition import query
from stages.recipes.shipped import recipe_of, shipped_text
from stages.sensing.trust import trust
from store.catalog import FeatureStore

NETWORK = """
from torch import nn

def net(n_classes=10):
    layers = [nn.Conv2d(3, 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(256, n_classes))
"""
SMALL = {
    "dataset": "few",
    "corrupted": "few-c",
    "preset": "quick",
    "epochs": "2",
    "head_epochs": "2",
    "seeds": "[0]",
    "batch_sizes": "[4]",
    "resamples": "0",
}
CONTROL = "f with batch statistics"


@pytest.fixture
def network(tmp_path):
    (tmp_path / "mine.py").write_text(NETWORK)
    trust(f"{tmp_path / 'mine.py'}:net")
    return f"[{tmp_path / 'mine.py'}:net]"


def test_both_modes_stand_on_one_page_against_f_in_evaluation_mode(tmp_path, network):
    store, root = FeatureStore(str(tmp_path / "store")), tmp_path / "data"
    write_npz_set(root / "few", 160, 12)
    changes = {**SMALL, "networks": network}
    report = run_tiny(store, root, shipped_text("batch-statistics"), changes)
    page = report.statuses[-1].job.output
    table = pd.read_csv(f"{page.storage.location}/table.csv")
    markdown = page.read("report.md").decode()

    heads = ["H", "f's last layer, retrained", "f's last layer, H's decay"]
    with_batches = [
        *(CONTROL, "H with batch statistics"),
        "retrained last layer with batch statistics",
        "last layer with H's decay and batch statistics",
    ]
    assert list(table["contender"].unique()) == ["f", *heads, *with_batches]
    accuracy = table[table["metric"] == "accuracy"].set_index("contender")
    assert accuracy["clean"].notna().all()
    sets = {each.plan["name"].partition("@")[0]: each for each in store.feature_sets()}
    for label, name in (("f", "few-test"), (CONTROL, "few+batch-4-test")):
        assert accuracy["clean"][label] == pytest.approx(query(sets[name]).rows[0]["accuracy"])
    gains = accuracy["mean"] - accuracy["mean"]["f"]
    assert accuracy["gain"].drop("f").tolist() == pytest.approx(gains.drop("f").tolist())
    assert f"Control: {CONTROL}." in markdown
    assert "few-c+batch-4-test@" in markdown
    assert "its batch norm uses the mean and variance of groups of 4 rows" in markdown


def plans_of(name, network):
    """The stages before the evaluations, with the names of other steps taken out."""
    shared = {"seeds": "[0]", "networks": network}
    blocks = {"extractions": "[batch statistics of 125]", "trainings": "[]", "held_out": "[]"}
    changes = shared | (blocks if name == "readings" else {})
    recipe = recipe_of(shipped_text(name), f"{name}.yaml", changes)
    kinds = ("corrupt", "train-sensing", "extract", "train-head")
    return [
        {
            key: value
            for key, value in each.stage.to_json().items()
            if key not in ("features", "model")
        }
        for each in recipe.instances
        if each.kind.name in kinds
    ]


def test_after_the_recipe_readings_only_evaluations_are_left(network):
    ours, theirs = (plans_of(name, network) for name in ("batch-statistics", "readings"))

    assert [each for each in ours if each not in theirs] == []
