"""Free space is checked before a run starts."""

from pathlib import Path

import pytest

from pipeline.errors import ResourceError, RunFailedError
from pipeline.space import Room, check_space


def test_too_little_space_is_refused_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"1,000,000.0 GB are to be written, .* are free: free"):
        check_space(str(tmp_path / "not" / "there" / "yet"), 10**15)


def test_sufficient_space_is_accepted(tmp_path: Path) -> None:
    check_space(str(tmp_path), 1)


def test_the_disk_is_that_of_the_folder(tiny_disk: Path) -> None:
    with pytest.raises(ResourceError):
        check_space(str(tiny_disk / "store"), 300 * 1024)


def test_space_is_not_checked_for_urls() -> None:
    check_space("s3://bucket/store", 10**18)
    assert Room("s3://bucket/store").take(10**18, n_left=5, n_lanes=2) == ""


def test_a_run_warns_once_if_the_rest_will_not_fit(tiny_disk: Path) -> None:
    room = Room(str(tiny_disk))
    told = [room.take(50 * 1024, n_left, n_lanes=1) for n_left in (7, 6, 5)]
    assert told == [
        "about 0.36 MB are left to write, 0.26 MB are free: free some space while this runs, or "
        "it stops before the disk is full",
        "",
        "",
    ]


@pytest.mark.parametrize(("n_left", "n_lanes"), [(9, 5), (6, 8)])
def test_a_run_stops_if_the_shards_in_progress_would_fill_the_disk(
    tiny_disk: Path, n_left: int, n_lanes: int
) -> None:
    with pytest.raises(
        RunFailedError, match=r"nearly full, about .* MB are left .* free some space"
    ):
        Room(str(tiny_disk)).take(50 * 1024, n_left, n_lanes)


def test_the_last_shards_may_fill_the_disk(tiny_disk: Path) -> None:
    assert Room(str(tiny_disk)).take(100 * 1024, n_left=2, n_lanes=8) == ""
