"""Pages list the network that a training began with, and how that one was trained."""

import shutil
from pathlib import Path

import pytest
from made import make_in
from small_data import train_small, write_image_folder

from stages.evaluation.evaluate import Evaluate
from stages.reflection.extract import Extract
from stages.report.provenance import networks_used
from stages.report.results import Entry, read_entries
from stages.sensing.train_sensing import TrainSensing
from store.catalog import FeatureStore


@pytest.mark.parametrize("is_kept", [True, False])
def test_the_model_that_training_began_with_has_a_row(
    store: FeatureStore, tmp_path: Path, is_kept: bool
) -> None:
    data = write_image_folder(tmp_path / "shapes", 30)
    train_small(store, data, name="first")
    last = {"from_model": "first", "train": "last-layer", "preset": "linear", "epochs": 2}
    make_in(store, TrainSensing(dataset=str(data), name="second", **last))
    features = make_in(store, Extract(dataset=str(data), model="second")).output
    result = make_in(store, Evaluate(features=features.name, heads=(), resamples=0)).output
    if not is_kept:
        shutil.rmtree(Path(store.location, "models", "first"))

    rows = networks_used(store, read_entries(store, [Entry({}, result)]))

    told = [(row["model"], row["trained from"], row["recipe"].split(",")[0]) for row in rows]
    if is_kept:
        assert told == [("second", "first", "epochs 2"), ("first", "random weights", "epochs 1")]
    else:
        assert told == [("second", "other weights", "epochs 2")]
    assert "milestones none" in rows[0]["recipe"]
