"""Queries give the same numbers as a simple loop over all rows in memory."""

from typing import Any

import numpy as np
import pytest
from answers import answered, softmax
from cells import UNREAD, cells

from stages.errors import InputError
from stages.evaluation.recognition import query
from stages.metrics.calibration import METRICS, NEEDS
from stages.metrics.sums import sums
from stages.reflection.conditions import Condition
from store.catalog import FeatureStore
from store.encoding import encode_rows
from store.errors import IncompleteError
from store.featureset import FeatureSet
from store.schema import ArraySpec, Schema


def graded(store: FeatureStore, grades: np.ndarray[Any, Any]) -> FeatureSet:
    """Rows with a column of floats, ten a shard."""
    schema = Schema(
        (ArraySpec("features", (1,)), ArraySpec("logits", (2,))),
        (("grade", "float64"), ("label", "int64")),
    )
    plan = {
        "name": "graded-test@net",
        "n_rows": len(grades),
        "shard_rows": 10,
        "schema": schema.to_json(),
        "inputs": {"source": {"name": "graded"}, "model": {"name": "net"}},
    }
    found = store.prepare().create(plan)
    for shard in found.shard_set.shards:
        n = shard.n_rows
        arrays = {"features": np.zeros((n, 1), np.float32), "logits": np.zeros((n, 2), np.float32)}
        columns = {"grade": grades[shard.start : shard.stop], "label": np.zeros(n, np.int64)}
        found.shard_set.commit(
            shard, encode_rows(schema, shard, 10, arrays, columns), {"failed": {}}
        )
    return found


def test_query_equals_a_loop_over_the_groups_in_memory(store: FeatureStore) -> None:
    found = cells(store)
    table = query(found, by=("corruption", "severity"), metrics=tuple(METRICS)).frame()
    samples, logits = found.samples(), found.read("logits")
    assert len(table) == 6
    for row in table.to_dict(orient="records"):
        fits = (samples["corruption"] == row["corruption"]) & (
            samples["severity"] == row["severity"]
        )
        rows = np.flatnonzero(fits.to_numpy())
        rows = rows[rows != UNREAD]
        total = sums(softmax(logits[rows]), samples["label"].to_numpy()[rows])
        assert row["n_rows"] == len(rows)
        for name, metric in METRICS.items():
            assert row[name] == pytest.approx(metric(total), rel=1e-12)


def test_query_without_groups_is_one_row_over_everything(store: FeatureStore) -> None:
    answer = query(cells(store))
    assert answer.frame()["n_rows"].tolist() == [83]
    assert answer.n_left_out == 1


def test_missing_values_of_several_shards_are_one_group_and_come_last(store: FeatureStore) -> None:
    rng = np.random.default_rng(0)
    values = rng.choice([0.5, np.nan, 0.25], 30)
    found = graded(store, values)
    table = query(found, by=("grade",)).frame()
    assert table["grade"].tolist()[:2] == [0.25, 0.5]
    assert np.isnan(table["grade"].tolist()[2])
    assert table["n_rows"].tolist() == [
        *((values == grade).sum() for grade in (0.25, 0.5)),
        np.isnan(values).sum(),
    ]


def test_rows_are_grouped_by_the_names_of_their_classes(store: FeatureStore) -> None:
    found = cells(store, source={"class_names": ["cat", "dog", "ant"]})
    by_class, by_label = (
        query(found, by=("severity", name)).frame() for name in ("class", "label")
    )
    assert list(by_class) == ["severity", "class", "n_rows", "accuracy"]
    names = by_label["label"].map({0: "cat", 1: "dog", 2: "ant"})
    assert by_class["class"].tolist() == names.tolist()
    assert by_class["accuracy"].tolist() == by_label["accuracy"].tolist()
    assert list(query(found, by=("class", "label")).rows[0])[:2] == ["class", "label"]
    with pytest.raises(InputError, match="unknown column 'class'"):
        query(cells(store, "unnamed"), by=("class",))


def test_where_leaves_other_rows_out(store: FeatureStore) -> None:
    table = query(cells(store), by=("severity",), where=[Condition("severity", (2, 3))]).frame()
    assert table["severity"].tolist() == [2, 3]


def test_unknown_names_and_empty_answers_are_refused(store: FeatureStore) -> None:
    found = cells(store)
    with pytest.raises(InputError, match=r"unknown column 'level'.*severity"):
        query(found, by=("level",))
    with pytest.raises(InputError, match=r"unknown metric 'f1'.*accuracy"):
        query(found, metrics=("f1",))
    with pytest.raises(InputError, match="no row"):
        query(found, where=[Condition("corruption", ("rain",))])


def test_an_incomplete_set_is_not_queried(store: FeatureStore) -> None:
    found = cells(store)
    found.shard_set.discard([found.shard_set.shards[3]], lambda: None)
    with pytest.raises(IncompleteError, match="1 of 9 shards"):
        query(found)


def test_prediction_and_confidence_are_read_where_a_metric_needs_no_more(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = answered(store)
    fast = tuple(name for name in METRICS if name not in NEEDS)
    expected = query(found, by=("kind",), metrics=tuple(METRICS)).rows
    read = FeatureSet.read_chunk
    monkeypatch.setattr(FeatureSet, "read_chunk", lambda *_: pytest.fail("read the logits"))
    answer = query(found, by=("kind",), metrics=fast)
    monkeypatch.setattr(FeatureSet, "read_chunk", read)
    assert answer.n_left_out == 4
    for row, same in zip(answer.rows, expected, strict=True):
        assert row == {name: same[name] for name in ("kind", "n_rows", *fast)}
