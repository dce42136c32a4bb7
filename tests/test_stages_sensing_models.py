"""The models of a store: found by plan, chosen by family, stored during training."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made import make_in
from pydantic import ValidationError
from small_data import write_npz_set

from pipeline.stage import Made
from pipeline.work import Tick
from pipeline.workspace import Workspace
from stages.errors import DataNotFoundError, InputError
from stages.sensing.build import build_network
from stages.sensing.card import ModelCard
from stages.sensing.import_model import ImportModel
from stages.sensing.model import load_sensing
from stages.sensing.models import (
    choose_model,
    weights_path,
)
from stages.sensing.sensing_training import SensingTraining
from stages.sensing.snapshots import snapshot_epochs, snapshot_name, snapshot_plan
from stages.sensing.train_params import PRESETS, held_out_rows, params_from
from stages.sensing.train_sensing import TrainSensing
from stages.sensing.training_state import TrainState
from stages.sensing.weights import save_weights
from store.artifacts import Artifact
from store.catalog import FeatureStore
from store.errors import PlanMismatchError

EPOCHS = 4
PLAN_OF_AN_OLDER_VERSION = {
    "stage": {
        "name": "train-sensing",
        "version": 1,
        "params": {
            "network": "cnn2",
            "epochs": 4,
            "batch": 32,
            "lr": 0.02,
            "momentum": 0.9,
            "weight_decay": 0.0005,
            "schedule": "one-cycle",
            "milestones": [0.3, 0.6, 0.8],
            "gamma": 0.2,
            "augmentation": "none",
            "precision": "fp32",
            "seed": 0,
            "last_layer": None,
        },
    },
    "inputs": {
        "source": {
            "name": "few",
            "split": "train",
            "family": "few",
            "class_names": [str(k) for k in range(10)],
            "n_rows": 40,
            "image_size": [32, 32],
            "resize": "bilinear-antialias 8x8->32x32",
        }
    },
}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    write_npz_set(tmp_path / "few", 40, 10)
    return tmp_path


def train(
    home: Path,
    keep_every: int | None = None,
    *,
    name: str = "net",
    epochs: int = EPOCHS,
    place: str = "store",
) -> Made:
    store = FeatureStore(str(home / place))
    options = {"name": name, "epochs": epochs, "keep_every": keep_every}
    return make_in(store, TrainSensing(dataset="few", preset="quick", **options), home)


def store_of(home: Path) -> FeatureStore:
    return FeatureStore(str(home / "store"))


def plan_of(home: Path, epochs: int = EPOCHS) -> dict[str, object]:
    stage = TrainSensing(dataset="few", preset="quick", epochs=epochs)
    return dict(stage.plan(Workspace(store_of(home), str(home))))


def weights(home: Path, place: str = "store") -> dict[str, str]:
    """The hash of the weights of every finished model, by name."""
    models = FeatureStore(str(home / place)).artifacts("model")
    return {m.name: m.card()["card"]["weights_sha256"] for m in models if m.is_complete()}


def names(*epochs: int) -> set[str]:
    return {snapshot_name("net", epoch) for epoch in epochs}


def fails(*arguments: object) -> None:
    raise AssertionError("nothing was to be trained")


# Finding and choosing


def test_the_plan_is_that_of_versions_without_held_out_rows(home: Path) -> None:
    plan = json.loads(json.dumps(plan_of(home)))
    del plan["inputs"]["source"]["fingerprint"]
    assert plan == PLAN_OF_AN_OLDER_VERSION


def test_a_model_is_found_by_its_plan_whatever_it_is_called(home: Path) -> None:
    train(home, name="some-name")
    store = store_of(home)
    assert store.made_by("model", plan_of(home)) == [store.artifact("model", "some-name")]
    assert store.made_by("model", plan_of(home, 5)) == []


def test_snapshots_are_only_chosen_by_name(home: Path) -> None:
    train(home, 1)
    assert choose_model(store_of(home), "few", None).name == "net"
    assert choose_model(store_of(home), "few", "net-epoch-002").name == "net-epoch-002"
    shutil.rmtree(home / "store" / "models" / "net")
    with pytest.raises(DataNotFoundError, match="no model for few"):
        choose_model(store_of(home), "few", None)


# Held-out rows


def test_held_out_rows_are_sorted_distinct_and_follow_the_seed_alone() -> None:
    rows = held_out_rows(1_000, 300, 4)
    assert rows.dtype == np.int64
    assert (np.diff(rows) > 0).all()
    assert rows.min() >= 0
    assert rows.max() < 1_000
    assert len(rows) == 300
    assert (rows == held_out_rows(1_000, 300, 4)).all()
    assert set(rows) != set(held_out_rows(1_000, 300, 5))


def test_held_out_rows_are_those_of_this_version() -> None:
    assert held_out_rows(12, 5, 0).tolist() == [1, 2, 5, 8, 11]


def test_no_rows_are_held_out_by_default() -> None:
    assert held_out_rows(12, 0, 0).tolist() == []


def test_fewer_held_out_rows_are_some_of_more() -> None:
    assert set(held_out_rows(50, 10, 1)) < set(held_out_rows(50, 20, 1))


# Snapshots


def test_the_papers_snapshots_are_67() -> None:
    epochs = snapshot_epochs(200, 3)
    assert (len(epochs), epochs[0], epochs[1], epochs[-1]) == (67, 1, 4, 199)
    assert snapshot_name("f", 4) == "f-epoch-004"


def test_a_training_leaves_the_models_of_its_epochs(home: Path) -> None:
    train(home, 3)
    assert set(weights(home)) == {"net", *names(1, 4)}


def test_a_snapshot_is_the_model_that_a_training_of_so_many_epochs_would_be_at(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the rate does not depend on the number of epochs, so that the two are the same."""
    monkeypatch.setitem(PRESETS, "quick", params_from("quick", schedule="steps", gamma=1.0))
    train(home, 1)
    for epoch in (1, 3, 4):
        train(home, epochs=epoch, place=f"store-{epoch}")
        model = FeatureStore(str(home / f"store-{epoch}")).artifact("model", "net").card()
        kept = store_of(home).artifact("model", snapshot_name("net", epoch)).card()
        for fact in ("M", "train_accuracy", "test_accuracy", "n_train", "n_test"):
            assert kept[fact] == model[fact]
        assert kept["card"]["weights_sha256"] == model["card"]["weights_sha256"]


def test_a_snapshot_is_a_model_with_its_own_card(home: Path) -> None:
    train(home, 3)
    store = store_of(home)
    artifact = store.artifact("model", "net-epoch-001")
    facts = artifact.card()
    card = ModelCard.from_dict(facts["card"])
    assert (card.name, card.extra["epoch"], facts["epoch"]) == ("net-epoch-001", 1, 1)
    assert [sorted(entry) for entry in facts["history"]] == [["accuracy", "loss", "seconds"]]
    assert store.made_by("model", snapshot_plan(plan_of(home), 1)) == [artifact]
    load_sensing(card, weights_path(store, card.name))


def test_keeping_snapshots_changes_neither_plan_nor_weights(home: Path) -> None:
    train(home, 1)
    train(home, place="plain")
    assert weights(home)["net"] == weights(home, "plain")["net"]
    assert train(home).n_units_run == 0


@pytest.mark.parametrize("where", ["claim", "write"])
@pytest.mark.parametrize("epoch", [1, 4])
def test_a_snapshot_that_a_stop_left_out_is_made_from_the_checkpoint(
    home: Path, monkeypatch: pytest.MonkeyPatch, where: str, epoch: int
) -> None:
    train(home, 1, place="whole")
    with monkeypatch.context() as patch:
        patch.setattr(Artifact, where, stopping(where, snapshot_name("net", epoch)))
        with pytest.raises(KeyboardInterrupt):
            train(home, 1)
    assert set(weights(home)) == names(*range(1, epoch))
    assert train(home, 1).n_units_run == EPOCHS - epoch
    assert weights(home) == weights(home, "whole")


def stopping(where: str, name: str) -> Callable[..., object]:
    """A method of ``Artifact`` that stops the run at the artifact of that name."""
    whole = getattr(Artifact, where)

    def method(artifact: Artifact, *arguments: object, **options: object) -> object:
        if artifact.name == name:
            raise KeyboardInterrupt
        return whole(artifact, *arguments, **options)

    return method


def test_a_finished_training_with_all_its_snapshots_is_only_read(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(home, 1)
    monkeypatch.setattr(SensingTraining, "step", fails)
    assert train(home, 1).n_units_run == 0
    assert train(home, 3).n_units_run == 0


def test_snapshots_of_a_finished_training_are_refused(home: Path) -> None:
    train(home)
    with pytest.raises(
        InputError, match=r"'net' is trained past 2 snapshots .* net-epoch-001 first.*--keep-every"
    ):
        train(home, 3)
    assert set(weights(home)) == {"net"}


def test_snapshots_of_epochs_that_have_passed_are_refused(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(SensingTraining, "step", stopping_at(2))
        with pytest.raises(KeyboardInterrupt):
            train(home)
    monkeypatch.setattr(SensingTraining, "step", fails)
    with pytest.raises(InputError, match=r"1 snapshots .* net-epoch-001 first"):
        train(home, 1)


def test_the_epoch_of_the_last_checkpoint_can_still_be_kept(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(SensingTraining, "step", stopping_at(1))
        with pytest.raises(KeyboardInterrupt):
            train(home)
    train(home, 1)
    assert set(weights(home)) == {"net", *names(1, 2, 3, 4)}


def stopping_at(unit: int) -> Callable[..., dict[str, float]]:
    """``SensingTraining.step``, stopped at an epoch counted from 0."""
    whole = SensingTraining.step

    def step(stage: SensingTraining, state: TrainState, at: int, tick: Tick) -> dict[str, float]:
        if at == unit:
            raise KeyboardInterrupt
        return whole(stage, state, at, tick)

    return step


def test_a_used_name_is_refused_before_training(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(home, name="net-epoch-004", epochs=1)
    monkeypatch.setattr(SensingTraining, "step", fails)
    with pytest.raises(PlanMismatchError, match="'net-epoch-004' was made with another plan"):
        train(home, 3)
    assert set(weights(home)) == {"net-epoch-004"}


def test_a_step_of_no_epochs_is_refused(home: Path) -> None:
    with pytest.raises(ValidationError, match=r"keep_every\n.*should be greater than 0"):
        train(home, 0)


def test_weights_are_serialised_only_when_they_are_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = build_network("cnn2", 10)
    expected = save_weights(network)
    (tmp_path / "w.safetensors").write_bytes(expected)
    store = FeatureStore(str(tmp_path / "store"))
    weights, data = str(tmp_path / "w.safetensors"), str(write_npz_set(tmp_path / "few", 40, 40))
    stage = ImportModel(network="cnn2", weights=weights, name="mine", dataset=data)
    with monkeypatch.context() as patch:
        patch.setattr("stages.sensing.weights.save_weights", fails)
        stage.job(Workspace(store))
    assert not store.artifact("model", "mine").is_complete()
    card = make_in(store, stage).output.card()
    assert store.artifact("model", "mine").storage.read("weights.safetensors") == expected
    monkeypatch.setattr("stages.sensing.weights.save_weights", fails)
    assert make_in(store, stage).output.card() == card
