"""Queries: the same numbers as an obvious loop over all rows in memory."""

import threading
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from cells import UNREAD, cells

from stages.applications.recognition import each_shard, query, rows_by_group
from stages.errors import InputError
from stages.metrics.calibration import METRICS
from stages.metrics.sums import sums
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


def softmax(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    e = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def test_query_equals_a_loop_over_the_groups_in_memory(store: FeatureStore) -> None:
    found = cells(store)
    table = query(found, by=("corruption", "severity"), metrics=tuple(METRICS))
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
    table = query(cells(store))
    assert table["n_rows"].tolist() == [83]
    assert table.attrs["n_left_out"] == 1


def test_rows_of_groups_come_as_the_groups_first_appear() -> None:
    kind = ["snow", "fog", None, "snow", None, "fog", "snow"]
    samples = pd.DataFrame({"kind": kind, "level": [2, 1, 1, 2, 1, 1, 3]}, index=range(10, 17))
    found = rows_by_group(samples, ("kind", "level"))
    assert [level for _, level in found] == [2, 1, 1, 3]
    assert [rows.tolist() for rows in found.values()] == [[0, 3], [1, 5], [2, 4], [6]]
    assert {group: rows.tolist() for group, rows in rows_by_group(samples, ()).items()} == {
        (): [0, 1, 2, 3, 4, 5, 6]
    }
    assert rows_by_group(samples[:0], ("kind",)) == rows_by_group(samples[:0], ()) == {}


def test_missing_values_of_several_shards_are_one_group_and_come_last(store: FeatureStore) -> None:
    rng = np.random.default_rng(0)
    values = rng.choice([0.5, np.nan, 0.25], 30)
    found = graded(store, values)
    table = query(found, by=("grade",))
    assert table["grade"].tolist()[:2] == [0.25, 0.5]
    assert np.isnan(table["grade"].tolist()[2])
    assert table["n_rows"].tolist() == [
        *((values == grade).sum() for grade in (0.25, 0.5)),
        np.isnan(values).sum(),
    ]


def test_where_leaves_other_rows_out(store: FeatureStore) -> None:
    table = query(cells(store), by=("severity",), where={"severity": [2, 3]})
    assert table["severity"].tolist() == [2, 3]


def test_unknown_names_and_empty_answers_are_refused(store: FeatureStore) -> None:
    found = cells(store)
    with pytest.raises(InputError, match=r"no column 'level'.*severity"):
        query(found, by=("level",))
    with pytest.raises(InputError, match=r"no metric 'f1'.*accuracy"):
        query(found, metrics=("f1",))
    with pytest.raises(InputError, match="no row"):
        query(found, where={"corruption": ["rain"]})


def test_an_incomplete_set_is_not_queried(store: FeatureStore) -> None:
    found = cells(store)
    found.shard_set.discard([found.shard_set.shards[3]], lambda: None)
    with pytest.raises(IncompleteError, match="1 of 9 shards"):
        query(found)


def test_shards_come_in_their_order_whoever_computes_them(store: FeatureStore) -> None:
    rows: list[int] = []
    found = list(each_shard(cells(store), lambda shard: shard.index, rows.append))
    assert found == list(range(9))
    assert sorted(rows) == [4, *[10] * 8]


def test_shards_are_computed_off_the_main_thread_with_one_torch_thread_each(
    store: FeatureStore,
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    work = each_shard(
        cells(store), lambda _: (threading.get_ident(), torch.get_num_threads()), lambda _: None
    )
    seen = list(work)
    assert threading.get_ident() not in {thread for thread, _ in seen}
    assert {n_threads for _, n_threads in seen} == {1}
    assert torch.get_num_threads() == 3
    torch.set_num_threads(before)
