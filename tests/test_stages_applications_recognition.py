"""Queries and evaluation: the same numbers as an obvious loop over all rows in memory."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline.journal import Journal
from stages.applications.evaluation import evaluate, prepared
from stages.applications.recognition import query
from stages.errors import DataNotFoundError, InputError
from stages.introspection.head import predict_probabilities
from stages.introspection.heads import choose_head, head_spec, open_head, train_head
from stages.introspection.train import HeadParams
from stages.metrics.calibration import METRICS, sums
from store.catalog import FeatureStore
from store.encoding import encode_rows
from store.errors import IncompleteError, PlanMismatchError
from store.featureset import FeatureSet
from store.schema import ArraySpec, Schema

N_CLASSES, WIDTH = 3, 4
SCHEMA = Schema(
    (ArraySpec("features", (WIDTH,)), ArraySpec("logits", (N_CLASSES,))),
    (
        ("corruption", "string"),
        ("severity", "int64"),
        ("label", "int64"),
        ("status", "string"),
    ),
)


def feature_set(
    store: FeatureStore, name: str = "shapes", n_rows: int = 83, weights: str = "w1"
) -> FeatureSet:
    """Rows of three overlapping clouds, in shards of 10, with one row that could not be read."""
    rng = np.random.default_rng([7, n_rows])
    labels = rng.integers(0, N_CLASSES, n_rows)
    centres = np.eye(N_CLASSES, WIDTH) * 2
    features = np.maximum(centres[labels] + rng.normal(size=(n_rows, WIDTH)), 0).astype(np.float32)
    logits = features @ np.eye(WIDTH, N_CLASSES, dtype=np.float32)
    features[5], logits[5] = np.nan, np.nan
    columns: dict[str, Any] = {
        "corruption": np.array(["fog", "snow"])[np.arange(n_rows) % 2],
        "severity": np.arange(n_rows) // 2 % 3 + 1,
        "label": labels,
        "status": ["unreadable" if row == 5 else "ok" for row in range(n_rows)],
    }
    model = {
        "name": "net",
        "n_classes": N_CLASSES,
        "feature_dim": WIDTH,
        "weights_sha256": weights,
        "M": 2.0,
    }
    plan = {
        "name": f"{name}-test@net",
        "n_rows": n_rows,
        "shard_rows": 10,
        "schema": SCHEMA.to_json(),
        "inputs": {"source": {"name": name}, "model": model},
    }
    found = store.create(plan)
    for shard in found.shard_set.shards:
        rows = slice(shard.start, shard.stop)
        here = {key: values[rows] for key, values in columns.items()}
        arrays = {"features": features[rows], "logits": logits[rows]}
        files = encode_rows(SCHEMA, shard, 10, arrays, here)
        failed = {"5": "unreadable"} if shard.index == 0 else {}
        found.shard_set.commit(shard, files, {"failed": failed})
    return found


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(str(tmp_path / "store")).prepare()


def softmax(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    e = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def small_head(store: FeatureStore, found: FeatureSet, name: str = "h") -> None:
    spec = head_spec(
        found, layers=(8,), loss="mse-m", variant="single-pass", scaling="minmax", dropout=0.0
    )
    params = HeadParams(epochs=30, weight_decay=0.0, batch_rows=16)
    train_head(
        store,
        found,
        name,
        spec,
        params,
        device="cpu",
        journal=Journal.of(store.location, ["train-head"]),
    )


def test_query_equals_a_loop_over_the_groups_in_memory(store: FeatureStore) -> None:
    found = feature_set(store)
    table = query(found, by=("corruption", "severity"), metrics=tuple(METRICS))
    samples, logits = found.samples(), found.read("logits")
    assert len(table) == 6
    for row in table.to_dict(orient="records"):
        fits = (samples["corruption"] == row["corruption"]) & (
            samples["severity"] == row["severity"]
        )
        rows = np.flatnonzero(fits.to_numpy())
        rows = rows[rows != 5]
        total = sums(softmax(logits[rows]), samples["label"].to_numpy()[rows])
        assert row["n_rows"] == len(rows)
        for name, metric in METRICS.items():
            assert row[name] == pytest.approx(metric(total), rel=1e-12)


def test_query_without_groups_is_one_row_over_everything(store: FeatureStore) -> None:
    table = query(feature_set(store))
    assert table["n_rows"].tolist() == [82]


def test_where_leaves_other_rows_out(store: FeatureStore) -> None:
    table = query(feature_set(store), by=("severity",), where={"severity": [2, 3]})
    assert table["severity"].tolist() == [2, 3]


def test_unknown_names_and_empty_answers_are_refused(store: FeatureStore) -> None:
    found = feature_set(store)
    with pytest.raises(InputError, match=r"no column 'level'.*severity"):
        query(found, by=("level",))
    with pytest.raises(InputError, match=r"no metric 'f1'.*accuracy"):
        query(found, metrics=("f1",))
    with pytest.raises(InputError, match="no row"):
        query(found, where={"corruption": ["rain"]})


def test_an_incomplete_set_is_not_queried(store: FeatureStore) -> None:
    found = feature_set(store)
    found.shard_set.discard(found.shard_set.shards[3])
    with pytest.raises(IncompleteError, match="1 of 9 shards"):
        query(found)


def test_evaluation_is_the_plain_mean_over_the_groups(store: FeatureStore) -> None:
    found = feature_set(store)
    small_head(store, found)
    result = evaluate(prepared(store, "shapes@net", None))
    for name in ("accuracy", "ece", "brier"):
        of_f = result.by_group[result.by_group["predictor"] == "f"][name]
        assert result.average.set_index("predictor").loc["f", name] == pytest.approx(of_f.mean())
    of_f = query(found, by=("corruption", "severity"), metrics=("accuracy",))["accuracy"]
    assert result.average["accuracy"][0] == pytest.approx(of_f.mean())


def test_evaluation_judges_h_by_its_own_probabilities(store: FeatureStore) -> None:
    found = feature_set(store)
    small_head(store, found)
    result = evaluate(prepared(store, "shapes@net", "h"))
    head = open_head(store.artifact("head", "h"))
    rows = np.delete(np.arange(83), 5)
    probabilities = predict_probabilities(
        head, found.read("features")[rows], found.read("logits")[rows]
    )
    right = probabilities.argmax(axis=1) == found.samples()["label"].to_numpy()[rows]
    of_h = result.by_group[result.by_group["predictor"] == "H"]
    weighted = (of_h["accuracy"] * of_h["n_rows"]).sum() / of_h["n_rows"].sum()
    assert weighted == pytest.approx(right.mean())


def test_a_result_keeps_table_sums_and_definitions(store: FeatureStore) -> None:
    small_head(store, feature_set(store))
    result = evaluate(prepared(store, "shapes@net", "h"))
    kept = pd.read_parquet(Path(result.location, "by-group.parquet"))
    pd.testing.assert_frame_equal(kept, result.by_group, check_dtype=False)
    card = json.loads(Path(result.location, "result.json").read_text())
    assert card["definitions"].keys() == METRICS.keys()
    assert sum(group["n_rows"] for group in card["sums"]["H"]) == 82


def test_a_head_of_another_network_is_refused(store: FeatureStore) -> None:
    small_head(store, feature_set(store))
    other = feature_set(store, "others", weights="w2")
    with pytest.raises(InputError, match="reads the gradients of model 'net'"):
        choose_head(store, other, "h")
    with pytest.raises(DataNotFoundError, match="train-head"):
        choose_head(store, other, None)


def test_two_heads_must_be_told_apart(store: FeatureStore) -> None:
    found = feature_set(store)
    small_head(store, found, "h1")
    small_head(store, found, "h2")
    with pytest.raises(InputError, match="h1, h2"):
        choose_head(store, found, None)


def test_a_head_under_the_same_name_with_other_parameters_is_refused(store: FeatureStore) -> None:
    found = feature_set(store)
    small_head(store, found)
    spec = head_spec(
        found, layers=(9,), loss="ce", variant="single-pass", scaling="minmax", dropout=0.0
    )
    with pytest.raises(PlanMismatchError, match=r'spec\.loss: "ce", there "mse-m"'):
        train_head(
            store,
            found,
            "h",
            spec,
            HeadParams(epochs=2),
            device="cpu",
            journal=Journal.of(store.location, ["x"]),
        )
