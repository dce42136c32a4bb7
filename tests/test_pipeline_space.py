"""Room for what is to be written is looked for before a run starts."""

from pathlib import Path

import pytest

from pipeline.errors import ResourceError, RunFailedError
from pipeline.space import Room, check_space


def test_too_little_room_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"1,000,000.0 GB are to be written, .* are free: make"):
        check_space(str(tmp_path / "not" / "there" / "yet"), 10**15)


def test_room_enough_is_enough(tmp_path: Path) -> None:
    check_space(str(tmp_path), 1)


def test_the_disk_is_that_of_the_folder(tiny_disk: Path) -> None:
    with pytest.raises(ResourceError):
        check_space(str(tiny_disk / "store"), 300 * 1024)


def test_a_url_has_no_disk_to_look_at() -> None:
    check_space("s3://bucket/store", 10**18)
    assert Room("s3://bucket/store").take(10**18, n_left=5, n_lanes=2) == ""


def test_a_run_is_warned_once_where_the_rest_will_not_fit(tiny_disk: Path) -> None:
    room = Room(str(tiny_disk))
    told = [room.take(50 * 1024, n_left, n_lanes=1) for n_left in (7, 6, 5)]
    assert told == [
        "about 0.36 MB are left to write, 0.26 MB are free: make room while this runs, or it stops "
        "before the disk is full",
        "",
        "",
    ]


@pytest.mark.parametrize(("n_left", "n_lanes"), [(9, 5), (6, 8)])
def test_a_run_stops_where_what_is_at_work_would_fill_the_disk(
    tiny_disk: Path, n_left: int, n_lanes: int
) -> None:
    with pytest.raises(
        RunFailedError, match=r"nearly full, about .* MB are left .* free some space"
    ):
        Room(str(tiny_disk)).take(50 * 1024, n_left, n_lanes)


def test_the_last_shards_may_fill_it(tiny_disk: Path) -> None:
    assert Room(str(tiny_disk)).take(100 * 1024, n_left=2, n_lanes=8) == ""
