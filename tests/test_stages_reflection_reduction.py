"""Reductions over shards: groups of rows, the order of shards, and the threads at work."""

import threading

import pandas as pd
import pytest
import torch
from cells import cells

from stages.reflection import reduction
from stages.reflection.reduction import each_shard, in_threads, rows_by_group
from store.catalog import FeatureStore


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


def test_threads_are_at_most_two_items_each_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    # Three threads on any machine: how far they are ahead depends on their number.
    monkeypatch.setattr(reduction, "n_cpus", lambda: 3)
    begun: list[int] = []
    for n_read, item in enumerate(in_threads(begun.append, range(40))):
        assert item is None
        assert len(begun) <= n_read + 1 + 6
    assert sorted(begun) == list(range(40))
