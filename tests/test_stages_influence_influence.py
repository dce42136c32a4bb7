"""Influence on the predictions of a small network of digits: tables, sheet, page, refusals."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from clouds import clouds
from conftest import Command, Refusal
from made import make_in
from small_data import write_npz_set

from stages.errors import InputError
from stages.influence.influence import Influence
from stages.influence.influence_result import INFLUENCES, METHODS, InfluenceCard
from stages.reflection.extract import Extract
from stages.reflection.losses import softmax
from stages.sensing.train_sensing import TrainSensing
from store.artifacts import Artifact
from store.catalog import FeatureStore

ROWS = ("1", "4", "7")
N_TRAIN, K, RATES = 200, 4, (0.5, 2.0)
NETS = ("cnn2-epoch-001", "cnn2-epoch-003")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a network of digits, two snapshots of it, and features of both splits."""
    folder = tmp_path_factory.mktemp("home")
    data = str(write_npz_set(folder / "digits", N_TRAIN, 20))
    store = FeatureStore(str(folder / "store")).prepare()
    stage = TrainSensing(dataset=data, preset="quick", name="cnn2", epochs=3, keep_every=2)
    make_in(store, stage)
    for model in ("cnn2", *NETS):
        for split in ("train", "test"):
            make_in(store, Extract(dataset=data, split=split, model=model, shard_rows=60))
    return folder


@pytest.fixture
def store(home: Path) -> FeatureStore:
    return FeatureStore(str(home / "store"))


def made_in(store: FeatureStore, home: Path, **options: Any) -> Artifact:
    sets = {"features": "digits-test@cnn2", "training": "digits-train@cnn2"}
    given = {**sets, "rows": ROWS, "dataset": str(home / "digits"), "listed": K, **options}
    found: Artifact = make_in(store, Influence(**given)).output
    return found


def gradients(
    store: FeatureStore, name: str, classes: Any = None
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Whole gradients at the last layer, ``[n, N (d + 1)]``; to the labels by default."""
    found = store.open(name)
    f, z = (found.read(each).astype(np.float64) for each in ("features", "logits"))
    y = found.samples()["label"].to_numpy() if classes is None else classes
    delta = softmax(z) - np.eye(10)[y]
    return np.stack([np.outer(d, [*x, 1]).ravel() for d, x in zip(delta, f, strict=True)])


def check_listed(table: pd.DataFrame, slow: Any, method: str) -> None:
    """The listed rows are the ``K`` highest and lowest of all scores ``[n_train, n]``."""
    for row, found in table[table["method"] == method].groupby("row"):
        order = np.argsort(slow[:, int(str(row))])
        for side, best in (("supports", order[::-1][:K]), ("opposes", order[:K])):
            mine = found[found["side"] == side]
            assert mine["training_row"].tolist() == best.tolist()
            assert mine["score"].to_numpy() == pytest.approx(slow[best, int(str(row))], rel=1e-4)


def test_the_listed_rows_are_the_extremes_of_all_scores(store: FeatureStore, home: Path) -> None:
    table = made_in(store, home).read_frame(INFLUENCES)
    assert set(table["row"]) == {int(row) for row in ROWS}
    features = store.open("digits-test@cnn2")
    predicted = features.samples()["prediction"].to_numpy()
    training, own = (
        gradients(store, "digits-train@cnn2"),
        gradients(store, "digits-test@cnn2", predicted),
    )
    check_listed(table, training @ own.T, "tracin")
    z = store.open("digits-train@cnn2").read("logits").astype(np.float64)
    f = store.open("digits-train@cnn2").read("features").astype(np.float64)
    hessian: Any = 0
    for p, x in zip(softmax(z), np.hstack([f, np.ones((len(f), 1))]), strict=True):
        hessian = hessian + np.kron(np.diag(p) - np.outer(p, p), np.outer(x, x))
    damped = hessian + 0.1 * np.trace(hessian) / len(hessian) * np.eye(len(hessian))
    check_listed(table, training @ np.linalg.solve(damped, own.T), "exact")


def test_tracin_sums_over_snapshots(store: FeatureStore, home: Path) -> None:
    trained = tuple(f"digits-train@{net}" for net in NETS)
    tested = tuple(f"digits-test@{net}" for net in NETS)
    options = {"snapshots": trained, "snapshot_features": tested, "rates": RATES}
    table = made_in(store, home, method="tracin", **options).read_frame(INFLUENCES)
    predicted = store.open("digits-test@cnn2").samples()["prediction"].to_numpy()
    slow = sum(
        rate * gradients(store, ours) @ gradients(store, theirs, predicted).T
        for rate, ours, theirs in zip(RATES, trained, tested, strict=True)
    )
    check_listed(table, slow, "tracin")


def test_a_training_row_is_not_compared_with_itself(store: FeatureStore, home: Path) -> None:
    found = made_in(store, home, features="digits-train@cnn2", of_class="label", sheet_rows=0)
    table = found.read_frame(INFLUENCES)
    assert len(table)
    assert (table["row"] != table["training_row"]).all()
    assert (table["class"] == table["label"]).all()


def test_the_sheet_shows_training_rows_beside_each_row(store: FeatureStore, home: Path) -> None:
    made_in(store, home, out=str(home / "out"))
    page = (home / "out" / "sheet.html").read_text()
    assert page.count("<article>") == len(ROWS)
    assert page.count("<img ") == len(ROWS) * (1 + 2 * K)
    assert page.count("Supports: training row") == len(ROWS) * K
    assert (home / "out" / "sheet-1.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_prints_a_line_for_each_method_and_side(
    home: Path, store: FeatureStore, intro_pipe: Command
) -> None:
    made_in(store, home, name="why")
    printed, _ = intro_pipe(
        f"influence --features digits-test@cnn2 --training digits-train@cnn2 --top 2 --listed 3 "
        f"--dataset {home}/digits --store {home}/store"
    )
    for method in ("exact", "kfac", "tracin"):
        assert printed.count(f"\n{method} ") == 2
    intro_pipe(f"report why --out {home}/page --store {home}/store")
    table = pd.read_csv(home / "page" / "table.csv")
    methods = store.artifact("result", "why").read_frame(METHODS)
    assert table["own_class"].to_numpy() == pytest.approx(methods["own_class"].to_numpy())
    assert "training row is left out" in (home / "page" / "report.html").read_text()
    assert InfluenceCard.of(store.artifact("result", "why")).training_rows == N_TRAIN


def test_snapshots_of_other_rows_are_refused(store: FeatureStore, home: Path) -> None:
    before = store.artifacts("result")
    options = {"snapshots": (f"digits-test@{NETS[0]}",), "method": "tracin"}
    with pytest.raises(InputError, match="expected the 200 rows of digits-train"):
        made_in(store, home, snapshot_features=(f"digits-test@{NETS[0]}",), **options)
    with pytest.raises(ValueError, match="expected one for each of the 1 --snapshots, found 0"):
        made_in(store, home, **options)
    assert store.artifacts("result") == before


def test_training_features_of_another_network_are_refused(home: Path, refused: Refusal) -> None:
    error = refused(
        *("influence", "--features", "digits-test@cnn2", "--store", str(home / "store")),
        *("--training", f"digits-train@{NETS[0]}", "--dataset", str(home / "digits")),
    )
    assert error.count("\n") == 1
    assert "made with the model 'cnn2-epoch-001'" in error


@pytest.mark.parametrize("side", ["features", "training"])
def test_labels_of_other_classes_are_refused(tmp_path: Path, side: str) -> None:
    store = FeatureStore(str(tmp_path))
    sets = {"features": clouds(store).name, "training": clouds(store).name}
    sets[side] = clouds(store, "shifted-train", first_label=1).name
    with pytest.raises(InputError, match="expected labels of the network's 3 classes, found 3"):
        make_in(store, Influence(**sets))
    assert not list(store.artifacts("result"))


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        (
            "--damping 1e-20",
            "--damping: expected greater than or equal to 0.0",
        ),
        ("--method=", "--method: expected at least 1 value, found none"),
        (f"--out {__file__}", "is a file, expected a folder"),
    ],
)
def test_options_without_sense_are_refused(refused: Refusal, option: str, reason: str) -> None:
    words = f"influence --features a --training b {option}"
    assert reason in refused(*words.split())
