from pathlib import Path

import numpy as np

from stages.data import fingerprint
from stages.data.fingerprint import array_content, file_content, listing_content


def _sparse_file(path: Path, size_bytes: int, at: int, value: bytes) -> Path:
    with path.open("wb") as file:
        file.truncate(size_bytes)
        file.seek(at)
        file.write(value)
    return path


def test_one_changed_value_changes_the_hash_of_arrays() -> None:
    array = np.zeros((10, 4), dtype=np.uint8)
    changed = array.copy()
    changed[7, 2] = 1
    assert array_content(array) != array_content(changed)


def test_shape_and_dtype_are_part_of_the_hash() -> None:
    array = np.zeros((10, 4), dtype=np.uint8)
    assert array_content(array) != array_content(array.reshape(4, 10))
    assert array_content(array) != array_content(array.view(np.int8))


def test_small_files_are_hashed_whole(tmp_path: Path) -> None:
    one = _sparse_file(tmp_path / "one", 1_000_000, 777_777, b"1")
    two = _sparse_file(tmp_path / "two", 1_000_000, 777_777, b"2")
    assert file_content({"a": one}) != file_content({"a": two})


def test_the_place_of_a_file_does_not_matter(tmp_path: Path) -> None:
    one = _sparse_file(tmp_path / "one", 1_000, 7, b"1")
    two = _sparse_file(tmp_path / "two", 1_000, 7, b"1")
    assert file_content({"a": one}) == file_content({"a": two})


def test_large_files_are_distinguished_by_head_and_tail(tmp_path: Path) -> None:
    size_bytes = fingerprint.WHOLE_BYTES + 1
    ends = (0, size_bytes - 1)
    hashes = {
        file_content({"a": _sparse_file(tmp_path / f"{at}{value}", size_bytes, at, value)})
        for at in ends
        for value in (b"1", b"2")
    }
    assert len(hashes) == 4


def test_large_files_of_other_sizes_differ(tmp_path: Path) -> None:
    sizes = (fingerprint.WHOLE_BYTES + 1, fingerprint.WHOLE_BYTES + 2)
    files = [_sparse_file(tmp_path / str(size), size, 0, b"1") for size in sizes]
    assert file_content({"a": files[0]}) != file_content({"a": files[1]})


def test_a_listing_hashes_names_sizes_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"1")
    plain = listing_content(tmp_path, [("a", 1)])
    assert plain != listing_content(tmp_path, [("b", 1)])
    (tmp_path / "a").write_bytes(b"2")
    assert plain != listing_content(tmp_path, [("a", 1)])


def test_a_file_that_cannot_be_reached_does_not_stop_a_listing(tmp_path: Path) -> None:
    assert listing_content(tmp_path, [("gone", -1)])
