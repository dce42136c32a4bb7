"""The recipe `readings` on a few digits, from images to the page."""

import pandas as pd
import pytest
from small_data import write_npz_set
from tiny_recipe import run_tiny

from stages.recipes.shipped import shipped_text
from store.catalog import FeatureStore

SMALL = {
    "dataset": "few",
    "corrupted": "few-c",
    "networks": "[cnn2]",
    "preset": "quick",
    "epochs": "8",
    "head_epochs": "2",
    "seeds": "[0]",
    "readings": "[H, CE + no scaling]",
    "pairs": "[]",
    "trainings": "[]",
    "held_out": "[]",
    "extractions": "[un-normalised inputs]",
    "resamples": "0",
}


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "data"
    write_npz_set(folder / "few", 160, 12)
    return folder


def test_a_part_of_the_readings_runs_and_ends_with_a_page(tmp_path, root):
    store = FeatureStore(str(tmp_path / "store"))
    report = run_tiny(store, root, shipped_text("readings"), SMALL)
    page = report.statuses[-1].job.output
    table = pd.read_csv(f"{page.storage.location}/table.csv")
    markdown = page.read("report.md").decode()

    contenders = table.groupby("sensing", sort=False)["contender"].unique()
    assert list(contenders.index) == ["as in the paper", "un-normalised inputs"]
    first = {"f", "H", "CE + no scaling", "H on [f, z]"}
    assert first <= set(contenders.iloc[0])
    controls = ["f's last layer, retrained", "f's last layer, H's decay"]
    assert list(contenders.iloc[1]) == ["f", "H", *controls]
    accuracy = table[(table["contender"] == "f") & (table["metric"] == "accuracy")]
    assert accuracy["clean"].notna().all()
    assert "explains the paper" in markdown
    assert "Control: f's last layer, retrained." in markdown
