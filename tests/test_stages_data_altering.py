"""Images that are denoised and augmented while they are read."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_data import write_image_folder

from stages.data.altering import Alteration, planned_alteration
from stages.data.augmenting import CROP_PAD, Augmenting
from stages.data.corruptions.cells import cells_of
from stages.data.denoising import denoising_of
from stages.data.planned_source import planned_source
from stages.data.registry import SourceSpec
from stages.data.source import source_facts
from stages.sensing.augmentation import augmented

MEDIAN = Alteration(denoising_of("median"))
BOTH = Alteration(denoising_of("median"), Augmenting("crop_flip", 3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> SourceSpec:
    """Seven image files of 32x32, the third of which is broken."""
    root = write_image_folder(tmp_path_factory.mktemp("home") / "shapes", 7)
    files = sorted((root / "test").rglob("*.png"))
    files[2].write_bytes(b"no image")
    return SourceSpec(str(root), "test", "")


@pytest.mark.parametrize("how", ["flip", "crop_flip"])
def test_augmentation_is_that_of_the_training_one_row_at_a_time(how: str) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 6, 9, 3), dtype=np.uint8)
    found = Augmenting(how, 5).of(images, 100)  # type: ignore[arg-type]  # a Literal
    n_flipped = 0
    for at, image in enumerate(images):
        generator = np.random.default_rng([5, 100 + at])
        flip = generator.random() < 0.5
        shift = generator.integers(0, 2 * CROP_PAD + 1, 2) if how == "crop_flip" else [0, 0]
        one, flag = torch.from_numpy(image[None]), torch.tensor([flip])
        expected = augmented(one, flag, torch.tensor(shift)[None], how)  # type: ignore[arg-type]
        np.testing.assert_array_equal(found[at], expected[0].numpy())
        n_flipped += flip
    assert 10 < n_flipped < 30


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (3, 7), (6, 14), (14, 14)])
def test_any_range_has_the_same_rows(folder: SourceSpec, start: int, stop: int) -> None:
    source = replace(folder, cells=cells_of(["contrast:1", "fog:2"]), alteration=BOTH).open()
    whole, part = source.read(0, source.n_rows), source.read(start, stop)
    np.testing.assert_array_equal(part.images, whole.images[start:stop])
    assert part.columns["sample_id"].tolist() == whole.columns["sample_id"][start:stop].tolist()


def test_corrupted_images_are_denoised_then_augmented(folder: SourceSpec) -> None:
    corrupted = replace(folder, cells=cells_of(["contrast:3"]))
    images = corrupted.open().read(0, 7).images
    expected = Augmenting("crop_flip", 3).of(denoising_of("median").of(images), 0)
    found = replace(corrupted, alteration=BOTH).open()
    assert found.name == "shapes+contrast-3+median+crop_flip-3"
    np.testing.assert_array_equal(found.read(0, 7).images, expected)
    assert (expected != images).any()


def test_an_unreadable_image_stays_a_failed_row_of_zeros(folder: SourceSpec) -> None:
    rows = replace(folder, alteration=MEDIAN).open().read(0, 7)
    assert list(rows.failed) == [2]
    assert not rows.images[2].any()


def test_a_plan_records_the_filter_the_draw_and_the_images_before(folder: SourceSpec) -> None:
    facts = source_facts(pickle.loads(pickle.dumps(replace(folder, alteration=BOTH))).open())
    assert json.loads(json.dumps(facts)) == facts
    assert facts["alteration"] == {
        "of": "shapes",
        "fingerprint": folder.open().fingerprint(),
        "version": 1,
        "denoising": "median:3",
        "augmentation": "crop_flip",
        "seed": 3,
    }
    planned = planned_source(facts)
    assert planned_alteration(planned.alteration) == BOTH
    assert planned.clean == ("shapes", 7)


def test_every_way_to_change_images_has_its_fingerprint(folder: SourceSpec, tmp_path: Path) -> None:
    ways = [None, MEDIAN, BOTH, Alteration(None, Augmenting("crop_flip", 3))]
    ways += [Alteration(None, Augmenting("flip", 3)), Alteration(None, Augmenting("flip", 4))]
    sources = [replace(folder, alteration=way).open() for way in ways]
    assert len({source.fingerprint() for source in sources}) == len(ways)
    assert "alteration" not in source_facts(sources[0])
