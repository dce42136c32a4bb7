"""Images that are corrupted while they are read: the rows of a written set, without the set."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made import write_corrupted
from small_data import digits, write_image_folder

from pipeline.executors import LocalExecutor
from pipeline.journal import Journal
from stages.data.corrupting import corrupting
from stages.data.corruption_work import CorruptionWork
from stages.data.corruptions.cells import ALL, Cells, cells_of
from stages.data.corruptions.names import CORRUPTIONS
from stages.data.corruptions.severities import corrupt
from stages.data.planned_source import planned_source
from stages.data.registry import SourceSpec, open_source
from stages.data.resize import Resize
from stages.data.source import source_facts
from stages.data.stored_sizes import stored_sizes
from stages.errors import InputError
from store.catalog import FeatureStore

SPECKS = cells_of(["speckle_noise:2", "contrast"])
SIZE = Resize((40, 40), 44)


@pytest.fixture
def numbers(tmp_path: Path) -> SourceSpec:
    """Six digits, which are enlarged to 32x32."""
    images, labels = digits(6)
    np.savez(tmp_path / "few.npz", images=images, labels=labels)
    return SourceSpec("few.npz", "test", str(tmp_path))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> SourceSpec:
    """Seven image files, the third of which is broken."""
    root = write_image_folder(tmp_path_factory.mktemp("home") / "shapes", 7)
    files = sorted((root / "test").rglob("*.png"))
    files[2].write_bytes(b"no image")
    return SourceSpec(str(root), "test", "", SIZE)


def test_rows_are_those_of_a_written_set(numbers: SourceSpec, tmp_path: Path) -> None:
    store, words = FeatureStore(str(tmp_path / "store")), ("contrast", "speckle_noise")
    work = CorruptionWork(numbers, words, seed=4)
    write_corrupted(
        store, work, f"{tmp_path}/few-c", LocalExecutor(1), Journal.of(store.location, ["corrupt"])
    )
    written = open_source("few-c", "test", tmp_path)
    found = replace(numbers, cells=cells_of(words, seed=4)).open()
    assert (found.n_rows, found.family) == (written.n_rows, "few")
    ours, theirs = (source.read(0, written.n_rows) for source in (found, written))
    np.testing.assert_array_equal(ours.images, theirs.images)
    for name, values in theirs.columns.items():
        np.testing.assert_array_equal(ours.columns[name], values)
        assert ours.columns[name].dtype.kind == values.dtype.kind
    clean = numbers.open().read(0, 6).columns["sample_id"].tolist()
    assert ours.columns["clean_id"].tolist() == clean * 10


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (5, 16), (13, 14), (34, 42), (42, 42)])
def test_any_range_has_the_same_rows(folder: SourceSpec, start: int, stop: int) -> None:
    source = replace(folder, cells=SPECKS).open()
    whole, part = source.read(0, source.n_rows), source.read(start, stop)
    assert source.n_rows == 42
    np.testing.assert_array_equal(part.images, whole.images[start:stop])
    for name, values in whole.columns.items():
        np.testing.assert_array_equal(part.columns[name], values[start:stop])
    failed = {row - start: why for row, why in whole.failed.items() if start <= row < stop}
    assert part.failed == failed


def test_crops_are_corrupted_with_the_constants_of_imagenet_c(folder: SourceSpec) -> None:
    clean = folder.open().read(0, 7).images
    rows = replace(folder, cells=SPECKS).open().read(35, 42)
    expected = corrupt(clean, "speckle_noise", 2, np.arange(7), 0, collection="imagenetc")
    np.testing.assert_array_equal(np.delete(rows.images, 2, 0), np.delete(expected, 2, 0))


def test_an_unreadable_image_is_a_failed_row_of_zeros_in_every_cell(folder: SourceSpec) -> None:
    rows = replace(folder, cells=SPECKS).open().read(0, 42)
    bad = [2, 9, 16, 23, 30, 37]
    assert list(rows.failed) == bad
    assert (rows.images[bad] == 0).all()
    assert rows.images.any(axis=(1, 2, 3)).sum() == 36


def test_other_cells_or_another_limit_do_not_change_an_image(folder: SourceSpec) -> None:
    few = replace(folder, cells=cells_of(["speckle_noise:2"]), limit=2).open()
    many = replace(folder, cells=SPECKS).open()
    np.testing.assert_array_equal(few.read(0, 2).images, many.read(35, 37).images)


def test_facts_record_the_constants_the_cells_and_the_seed(folder: SourceSpec) -> None:
    facts = source_facts(replace(folder, cells=SPECKS).open())
    assert facts["name"] == "shapes+contrast+speckle_noise-2"
    assert facts["corruption"] == {
        "of": "shapes",
        "n_images": 7,
        "collection": "imagenetc",
        "cells": ["contrast", "speckle_noise:2"],
        "seed": 0,
        "version": 1,
    }
    assert json.loads(json.dumps(facts)) == facts
    planned = planned_source(facts).corruption
    assert planned is not None
    assert cells_of(planned.cells, planned.seed) == SPECKS


def test_facts_of_clean_images_are_those_of_before(folder: SourceSpec) -> None:
    assert "corruption" not in source_facts(folder.open())


def test_every_option_has_its_fingerprint(folder: SourceSpec, numbers: SourceSpec) -> None:
    found = [
        replace(folder, cells=cells).open().fingerprint()
        for cells in (None, SPECKS, replace(SPECKS, seed=1), cells_of(["contrast"]))
    ]
    assert len(set(found)) == 4


def test_stored_sizes_are_those_of_the_clean_images(folder: SourceSpec) -> None:
    sizes = stored_sizes(replace(folder, cells=SPECKS).open())
    assert sizes == {(32, 32): 6}


def test_images_that_are_corrupted_already_are_refused(folder: SourceSpec) -> None:
    with pytest.raises(InputError, match=r"is already corrupted .*; corrupt the clean set"):
        corrupting(replace(folder, cells=SPECKS).open(), SPECKS)


def test_a_column_of_the_same_name_is_refused(folder: SourceSpec) -> None:
    source = replace(folder.open(), extra_columns=(("clean_id", "string"),))
    with pytest.raises(InputError, match=r"has a column 'clean_id', .*: rename it"):
        corrupting(source, SPECKS)


def test_images_that_are_too_small_are_refused(folder: SourceSpec) -> None:
    with pytest.raises(InputError, match="images are 31x31, expected at least 32x32"):
        replace(folder, image_size=31, cells=SPECKS).open()


def test_missing_photographs_of_frost_are_refused_when_the_source_is_opened(
    folder: SourceSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install --no-deps imagecorruptions-imaug"):
        replace(folder, cells=cells_of([ALL])).open()


@pytest.mark.parametrize(
    ("words", "n_cells", "short", "label"),
    [
        (["all"], 95, ("all",), "95-cells"),
        (CORRUPTIONS, 95, ("all",), "95-cells"),
        (["fog:3", "fog:3"], 1, ("fog:3",), "fog-3"),
        (["snow:1", "fog", "fog:2"], 6, ("fog", "snow:1"), "fog+snow-1"),
        (["fog:1", "fog:2", "snow:1", "snow:2"], 4, None, "4-cells"),
    ],
)
def test_cells_are_named_by_the_fewest_words(
    words: list[str], n_cells: int, short: tuple[str, ...] | None, label: str
) -> None:
    cells = cells_of(words)
    assert len(cells.cells) == n_cells
    assert cells.words == (short or tuple(words))
    assert cells.label == label
    assert cells_of(cells.words) == cells == Cells(tuple(sorted(cells.cells)))


@pytest.mark.parametrize("word", ["haze", "fog:0", "fog:6", "fog:", "all:3", "", "fog:03", ":3"])
def test_a_word_that_is_no_cell_is_refused(word: str) -> None:
    with pytest.raises(InputError, match="expected "):
        cells_of([word])


def test_a_source_travels_to_a_worker(folder: SourceSpec) -> None:
    source = replace(folder, cells=SPECKS).open()
    assert pickle.loads(pickle.dumps(source)) == source
