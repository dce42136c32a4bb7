"""Batches for PyTorch: every row once, whatever epochs, workers and ranks share them."""

import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from cells import UNREAD, cells
from torch.utils.data import DataLoader

from stages.errors import InputError
from stages.reflection.batches import Batch, FeatureBatches
from store.catalog import FeatureStore
from store.featureset import FeatureSet, Selection

# A machine may have fewer cores than a test has workers, and Python 3.12 warns of every fork.
pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]

N_ROWS = 84
LOADERS: dict[str, dict[str, object]] = {
    "alone": {},
    "fork": {"num_workers": 1, "multiprocessing_context": "fork"},
    "spawn": {"num_workers": 1, "multiprocessing_context": "spawn"},
}
RANK_SCRIPT = f"""
import sys
import torch
from torch import distributed
from torch.utils.data import DataLoader
from stages.reflection.batches import FeatureBatches
from store.catalog import FeatureStore

if __name__ == "__main__":
    store, out, rank = sys.argv[1], sys.argv[2], int(sys.argv[3])
    batches = FeatureBatches(FeatureStore(store).open("shapes@net"), batch_rows=4)
    where = f"file://{{out}}/rendezvous"
    distributed.init_process_group("gloo", init_method=where, rank=rank, world_size=2)
    for name, workers in {LOADERS!r}.items():
        loader = DataLoader(batches, batch_size=None, **workers)
        features = torch.cat([features for features, _, _ in loader])
        torch.save(features, f"{{out}}/{{name}}-{{rank}}.pt")
    distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def feature_set(tmp_path_factory: pytest.TempPathFactory) -> FeatureSet:
    return cells(FeatureStore(str(tmp_path_factory.mktemp("batches"))).prepare(), n_rows=N_ROWS)


def rows_in(feature_set: FeatureSet, batches: Iterable[Batch]) -> list[int]:
    """The row numbers of batches, in order; every row of the set has unique features."""
    features = feature_set.read("features")
    row_of = {values.tobytes(): row for row, values in enumerate(features)}
    return [row_of[values.numpy().tobytes()] for batch in batches for values in batch[0]]


def usable_rows() -> list[int]:
    return [row for row in range(N_ROWS) if row != UNREAD]


@pytest.mark.parametrize("n_workers", [0, 1, 3])
@pytest.mark.parametrize("shuffle", [False, True])
def test_each_row_comes_once_for_any_number_of_workers(
    feature_set: FeatureSet, n_workers: int, shuffle: bool
) -> None:
    batches = FeatureBatches(feature_set, batch_rows=4, shuffle=shuffle)
    loader = DataLoader(batches, batch_size=None, num_workers=n_workers)
    found = rows_in(feature_set, loader)
    assert sorted(found) == usable_rows()
    assert len(loader) == len(batches) == 25  # eight shards of 10 rows, one of 4


def test_more_workers_than_shards_share_the_batches(feature_set: FeatureSet) -> None:
    batches = FeatureBatches(feature_set, batch_rows=4)
    parts = [list(batches._batches(0, first, first + 1)) for first in range(len(batches))]
    assert rows_in(feature_set, (batch for part in parts for batch in part)) == usable_rows()
    assert all(len(part) == 1 for part in parts)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("skip_failed", [False, True])
def test_a_selection_has_its_own_batches(
    feature_set: FeatureSet, shuffle: bool, skip_failed: bool
) -> None:
    rows = np.array([0, 3, 5, UNREAD, *range(20, 37), 83])
    chosen = Selection(feature_set, np.unique(rows))
    batches = chosen.torch_dataset(batch_rows=4, shuffle=shuffle, skip_failed=skip_failed)
    found = rows_in(feature_set, batches)
    assert sorted(found) == [r for r in chosen.rows.tolist() if r != UNREAD or not skip_failed]
    assert len(batches) == len(list(batches))


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_persistent_workers_follow_set_epoch(feature_set: FeatureSet, context: str) -> None:
    batches = FeatureBatches(feature_set, batch_rows=4, shuffle=True, seed=1)
    loader = DataLoader(
        batches,
        batch_size=None,
        num_workers=1,
        persistent_workers=True,
        multiprocessing_context=context,
    )
    orders = []
    for epoch in (0, 1, 2, 0):
        batches.set_epoch(epoch)
        orders.append(rows_in(feature_set, loader))
    expected = []
    for epoch in (0, 1, 2, 0):
        alone = FeatureBatches(feature_set, batch_rows=4, shuffle=True, seed=1)
        alone.set_epoch(epoch)
        expected.append(rows_in(feature_set, alone))
    assert orders == expected
    assert orders[0] != orders[1] != orders[2]


def test_a_pass_keeps_the_epoch_that_it_began_with(feature_set: FeatureSet) -> None:
    batches = FeatureBatches(feature_set, batch_rows=4, shuffle=True)
    order = rows_in(feature_set, batches)
    running = iter(batches)
    first = next(running)
    batches.set_epoch(5)
    assert rows_in(feature_set, [first, *running]) == order


@pytest.mark.parametrize("n_ranks", [2, 3, 7, 40])
@pytest.mark.parametrize("shuffle", [False, True])
def test_ranks_read_each_row_once_between_them(
    feature_set: FeatureSet, n_ranks: int, shuffle: bool
) -> None:
    ranks = [
        FeatureBatches(feature_set, batch_rows=4, shuffle=shuffle, rank=(rank, n_ranks))
        for rank in range(n_ranks)
    ]
    found = [rows_in(feature_set, rank) for rank in ranks]
    assert Counter(row for rows in found for row in rows) == Counter(usable_rows())
    sizes = [len(rank) for rank in ranks]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == [len(list(rank)) for rank in ranks]


@pytest.mark.parametrize("n_ranks", [2, 3, 7, 40])
def test_ranks_can_be_given_the_same_number_of_batches(
    feature_set: FeatureSet, n_ranks: int
) -> None:
    ranks = [
        FeatureBatches(feature_set, batch_rows=4, rank=(rank, n_ranks), drop_uneven=True)
        for rank in range(n_ranks)
    ]
    assert [len(list(rank)) for rank in ranks] == [25 // n_ranks] * n_ranks


def test_ranks_and_workers_share_at_the_same_time(feature_set: FeatureSet) -> None:
    found: list[int] = []
    for rank in range(2):
        batches = FeatureBatches(feature_set, batch_rows=4, rank=(rank, 2))
        found += rows_in(feature_set, DataLoader(batches, batch_size=None, num_workers=2))
    assert sorted(found) == usable_rows()


def test_ranks_of_torch_distributed_are_found(feature_set: FeatureSet, tmp_path: Path) -> None:
    """The data set is made before the process group, as training scripts may do."""
    script = tmp_path / "train.py"
    script.write_text(RANK_SCRIPT)
    store = feature_set.shard_set.storage.location.rpartition("/features/")[0]
    command = [sys.executable, str(script), store, str(tmp_path)]
    processes = [subprocess.Popen([*command, str(rank)]) for rank in (0, 1)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    for name in LOADERS:
        parts = [torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=True) for rank in (0, 1)]
        assert rows_in(feature_set, [(torch.cat(parts),)]) == usable_rows(), name
        assert abs(len(parts[0]) - len(parts[1])) <= 8, name


@pytest.mark.parametrize("rank", [(2, 2), (-1, 2), (0, 0), (1, 1)])
def test_a_rank_out_of_range_is_refused(feature_set: FeatureSet, rank: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="with 0 <= rank < n_ranks"):
        FeatureBatches(feature_set, rank=rank)


def test_batches_without_rows_are_refused(feature_set: FeatureSet) -> None:
    with pytest.raises(InputError, match="batch_rows is 0"):
        FeatureBatches(feature_set, batch_rows=0)


def test_an_unknown_array_is_refused_with_those_that_exist(feature_set: FeatureSet) -> None:
    with pytest.raises(InputError, match="has no array 'nope', expected one of features, logits"):
        FeatureBatches(feature_set, ("features", "nope"))


def test_failed_rows_are_left_out_by_default(feature_set: FeatureSet) -> None:
    batches = FeatureBatches(feature_set, batch_rows=4, skip_failed=False)
    features = torch.cat([batch[0] for batch in batches]).numpy()
    np.testing.assert_array_equal(features, feature_set.read("features"))
    assert len(batches) == 25
