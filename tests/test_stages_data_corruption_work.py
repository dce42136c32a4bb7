import json
import pickle
import subprocess
import sys
from dataclasses import dataclass, field
from io import BytesIO

import google_crc32c
import numpy as np
import pytest

from stages.data.corruption_work import CorruptionWork, labels_npy
from stages.data.corruptions.names import CORRUPTIONS, CURE
from stages.data.corruptions.severities import corrupt
from stages.data.source import Rows
from stages.errors import InputError
from store.shards import Shard, shards_of

NAMES = ("contrast", "gaussian_noise", "pixelate")


@dataclass(frozen=True)
class Noise:
    """A source of random images, some of which cannot be read; its own spec."""

    n_rows: int = 6
    image_size: tuple[int, int] = (32, 32)
    class_names: tuple[str, ...] = ("a", "b", "c")
    label_shift: int = 0
    extra_columns: tuple[tuple[str, str], ...] = ()
    bad_rows: tuple[int, ...] = ()
    name: str = "noise"
    split: str = "test"
    family: str = "noise"
    resize: str = "none"
    left_out: tuple[()] = ()
    how_to_label: str = ""
    corruption: None = None
    alteration: None = None
    sample: None = None
    reads: list[tuple[int, int]] = field(default_factory=list, compare=False)

    @property
    def n_classes(self):
        return len(self.class_names)

    def open(self):
        return self

    def fingerprint(self):
        return "f00d"

    def images(self):
        shape = (self.n_rows, *self.image_size, 3)
        images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        images[list(self.bad_rows)] = 0
        return images

    def read(self, start, stop):
        self.reads.append((start, stop))
        rows = np.arange(start, stop)
        columns = {"sample_id": rows.astype(str), "label": rows % 3 + self.label_shift}
        failed = {row - start: "cut short" for row in self.bad_rows if start <= row < stop}
        return Rows(self.images()[start:stop], columns, failed)


def no_tick(n_rows):
    pass


def computed(stage, index=0, tick=no_tick):
    plan = stage.plan()
    shard = shards_of(plan["n_rows"], plan["shard_rows"])[index]
    output = stage.compute(stage.setup(1), shard, tick)
    ((path, content),) = output.files.items()
    return path, np.load(BytesIO(content), allow_pickle=False), output.facts


def test_a_shard_is_one_corruption_in_the_layout_of_cifar10c():
    source = Noise()
    path, array, facts = computed(CorruptionWork(source, NAMES, seed=3), index=1)
    assert path == "gaussian_noise.npy"
    assert array.dtype == np.uint8
    assert array.shape == (30, 32, 32, 3)
    assert facts["corruption"] == "gaussian_noise"
    assert facts["rows"] == 30
    for severity in (1, 2, 3, 4, 5):
        block = array[(severity - 1) * 6 : severity * 6]
        expected = corrupt(source.images(), "gaussian_noise", severity, np.arange(6), 3)
        np.testing.assert_array_equal(block, expected)


def test_the_file_equals_that_of_numpy():
    stage = CorruptionWork(Noise(), NAMES)
    (content,) = stage.compute(stage.setup(1), Shard(0, 0, 30), no_tick).files.values()
    buffer = BytesIO()
    np.save(buffer, np.load(BytesIO(content)))
    assert content == buffer.getvalue()


def test_computing_twice_gives_the_same_bytes():
    first, second = (computed(CorruptionWork(Noise(), ("shot_noise",)))[1] for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_large_sources_are_read_once_and_in_chunks():
    source = Noise(n_rows=2_300)
    ticks = []
    stage = CorruptionWork(source, ("underexposure",), collection="cure")
    source.reads.clear()
    _, array, facts = computed(stage, tick=ticks.append)
    assert source.reads == [(0, 1_000), (1_000, 2_000), (2_000, 2_300)]
    assert ticks == [1_000] * 10 + [300] * 5
    whole = corrupt(source.images(), "underexposure", 2, np.arange(2_300), 0, collection="cure")
    np.testing.assert_array_equal(array[2_300:4_600], whole)
    crc = google_crc32c.value(source.images().tobytes())
    assert facts["source_crc32c"] == f"{crc:08x}"


def test_random_numbers_do_not_depend_on_the_chunk():
    source = Noise(n_rows=1_003)
    _, array, _ = computed(CorruptionWork(source, ("impulse_noise",), seed=9))
    one = corrupt(source.images()[1_001:1_002], "impulse_noise", 4, np.array([1_001]), 9)
    np.testing.assert_array_equal(array[3 * 1_003 + 1_001], one[0])


def test_an_unreadable_image_is_zeros_at_every_severity_and_listed():
    _, array, facts = computed(CorruptionWork(Noise(bad_rows=(2,)), ("brightness",)))
    bad = [2, 8, 14, 20, 26]
    assert facts["failed"] == {str(row): "cut short" for row in bad}
    assert (array[bad] == 0).all()
    assert (np.delete(array, bad, axis=0).max(axis=(1, 2, 3)) > 0).all()


def test_facts_are_json_and_name_the_versions_of_the_libraries():
    _, _, facts = computed(CorruptionWork(Noise(bad_rows=(0,)), ("contrast",)))
    assert json.loads(json.dumps(facts)) == facts
    assert set(facts["versions"]) == {"numpy", "opencv", "pillow", "scipy"}
    assert facts["versions"]["numpy"] == np.__version__


def test_the_plan_has_everything_that_determines_the_bytes():
    plan = CorruptionWork(Noise(), NAMES, seed=3).plan()
    assert json.loads(json.dumps(plan)) == plan
    assert plan == {
        "stage": {
            "name": "corrupt",
            "version": 1,
            "params": {"collection": "cifar10c", "names": list(NAMES), "seed": 3},
        },
        "inputs": {
            "source": {
                "name": "noise",
                "split": "test",
                "family": "noise",
                "class_names": ["a", "b", "c"],
                "n_rows": 6,
                "image_size": [32, 32],
                "resize": "none",
                "fingerprint": "f00d",
            }
        },
        "n_rows": 90,
        "shard_rows": 30,
    }


def test_no_names_select_the_whole_collection():
    assert CorruptionWork(Noise()).names == CORRUPTIONS
    assert CorruptionWork(Noise(), collection="cure").names == CURE


def test_rotations_fill_fifteen_blocks_of_one_file():
    source = Noise()
    path, array, _ = computed(CorruptionWork(source, collection="rotations"))
    assert (path, array.shape) == ("rotation.npy", (90, 32, 32, 3))
    for severity in range(1, 16):
        block = array[(severity - 1) * 6 : severity * 6]
        rows = np.arange(6)
        expected = corrupt(source.images(), "rotation", severity, rows, 0, collection="rotations")
        np.testing.assert_array_equal(block, expected)


def test_the_order_of_the_names_does_not_matter():
    assert CorruptionWork(Noise(), NAMES[::-1]) == CorruptionWork(Noise(), NAMES)


def test_a_stage_travels_to_a_worker():
    stage = CorruptionWork(Noise(), NAMES, seed=1)
    assert pickle.loads(pickle.dumps(stage)) == stage


@pytest.mark.parametrize("n_severities", [5, 15])
def test_labels_are_bytes_repeated_for_each_severity(n_severities):
    labels = np.load(BytesIO(labels_npy(Noise(), n_severities)), allow_pickle=False)
    assert labels.dtype == np.uint8
    assert labels.tolist() == [0, 1, 2, 0, 1, 2] * n_severities


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Noise(image_size=(28, 28)), "noise test: images are 28x28, expected 32x32"),
        (Noise(image_size=(64, 64)), "noise test: images are 64x64, expected 32x32"),
        (Noise(class_names=()), "noise test: has no labels"),
        (Noise(extra_columns=(("corruption", "string"),)), "is already corrupted"),
    ],
)
def test_a_source_that_does_not_fit_is_refused_by_the_plan(source, message):
    with pytest.raises(InputError, match=message):
        CorruptionWork(source, NAMES).plan()


@pytest.mark.parametrize(("shift", "label"), [(-1, -1), (255, 256)])
def test_a_label_that_a_byte_cannot_hold_is_refused(shift, label):
    with pytest.raises(InputError, match=f"is {label}, expected 0 to 255"):
        labels_npy(Noise(label_shift=shift), 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": ("haze",)}, "'haze' is unknown; cifar10c has: brightness"),
        ({"names": ("fog",), "collection": "cure"}, "'fog' is unknown; cure has: gaussian_blur"),
        ({"collection": "rain"}, "use cifar10c or cure or rotations"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        CorruptionWork(Noise(), **options)


def test_frost_without_its_photographs_is_refused_by_the_plan(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install --no-deps imagecorruptions-imaug"):
        CorruptionWork(Noise(), ("fog", "frost")).plan()
    assert CorruptionWork(Noise(), ("fog",)).plan()["n_rows"] == 30


def test_a_shard_that_is_not_one_corruption_is_refused():
    stage = CorruptionWork(Noise(), NAMES)
    with pytest.raises(ValueError, match="expected one corruption: 30 rows from 30"):
        stage.compute(stage.setup(1), Shard(1, 20, 40), no_tick)


def test_importing_the_stage_loads_no_image_library():
    code = (
        "import sys; import stages.data.corrupt; "
        "sys.exit(' '.join({'cv2', 'skimage', 'scipy'} & set(sys.modules)) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
