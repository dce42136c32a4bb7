"""Shards cover every row once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.shards import Shard, shards_of

sizes = st.tuples(st.integers(0, 5_000), st.integers(1, 6_000))


@given(sizes)
def test_shards_cover_every_row_once_and_in_order(size: tuple[int, int]) -> None:
    shards = shards_of(*size)
    assert [row for s in shards for row in range(s.start, s.stop)] == list(range(size[0]))


@given(sizes)
def test_all_shards_but_the_last_are_full_and_are_numbered_from_zero(size: tuple[int, int]) -> None:
    n_rows, shard_rows = size
    shards = shards_of(n_rows, shard_rows)
    assert [shard.index for shard in shards] == list(range(-(-n_rows // shard_rows)))
    assert all(shard.n_rows == shard_rows for shard in shards[:-1])
    assert all(1 <= shard.n_rows <= shard_rows for shard in shards[-1:])


def test_one_shard_holds_all_rows_where_shards_are_huge() -> None:
    assert shards_of(10, 10**18) == (Shard(0, 0, 10),)


@pytest.mark.parametrize(("n_rows", "shard_rows"), [(-1, 4), (10, 0), (10, -4)])
def test_sizes_that_cannot_be_split_are_refused(n_rows: int, shard_rows: int) -> None:
    with pytest.raises(ValueError, match="cannot split"):
        shards_of(n_rows, shard_rows)


@pytest.mark.parametrize("numbers", [(-1, 0, 4), (0, -1, 4), (0, 4, 4), (0, 5, 4)])
def test_an_impossible_range_is_not_a_shard(numbers: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="not a shard"):
        Shard(*numbers)
