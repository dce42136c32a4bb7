"""Images of a data set in memory, or in a scratch file that leaves nothing behind."""

import dataclasses
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.errors import ResourceError
from stages.data.source import Rows
from stages.sensing import image_array, labelled
from stages.sensing.labelled import normalisation, read_labelled
from stages.sensing.sensing_training import SensingTraining
from stages.sensing.train_params import TrainParams
from stages.sensing.training_state import TrainState

PARAMS = TrainParams(
    network="cnn2", epochs=3, batch=16, lr=0.05, augmentation="crop_flip", held_out=7
)


@dataclasses.dataclass(frozen=True)
class Noise:
    """Images of two classes, dark and bright; each block is made when it is read."""

    n_rows: int = 60
    image_size: tuple[int, int] = (16, 16)
    name: str = "noise"
    split: str = "train"
    family: str = "noise"
    class_names: tuple[str, ...] = ("dark", "bright")
    n_classes: int = 2
    how_to_label: str = ""

    def open(self) -> "Noise":
        return self

    def read(self, start: int, stop: int) -> Rows:
        generators = [np.random.default_rng(row) for row in range(start, stop)]
        labels = np.array([row % 2 if row % 10 else -1 for row in range(start, stop)])
        pixels = [each.integers(0, 100, (*self.image_size, 3), np.uint8) for each in generators]
        images = np.stack(pixels) + (120 * (labels > 0)).astype(np.uint8)[:, None, None, None]
        return Rows(images, {"label": labels, "sample_id": labels.astype(str)}, {})


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No image fits in memory; scratch files go to this folder."""
    monkeypatch.setattr(image_array, "HELD_SHARE", 0.0)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def test_a_folder_that_takes_no_scratch_file_is_refused(scratch, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(scratch / "missing"))
    with pytest.raises(ResourceError, match=r"missing cannot hold a scratch file .*: set TMPDIR"):
        read_labelled(Noise())


def test_a_disk_that_fills_up_is_an_error_before_the_first_image(scratch, monkeypatch):
    monkeypatch.setattr(image_array, "free_space", lambda _: 2**70)
    with pytest.raises(ResourceError, match="cannot hold a scratch file"):
        image_array.image_array((2**31, 2**10, 2**10, 3), "noise", lambda _: None)


def trained(state: TrainState | None = None, first: int = 0, last: int = 3) -> bytes:
    stage = SensingTraining("m", PARAMS, Noise(), Noise(20))
    state = state or stage.start()
    for unit in range(first, last):
        stage.step(state, unit, lambda _: None)
    files, facts = stage.finish(state)
    return files["weights.safetensors"] + repr(sorted(facts.items())).encode()


def test_weights_and_card_are_those_of_a_training_in_memory(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = SensingTraining("m", PARAMS, Noise(), Noise(20))
    state = stage.start()
    assert list(scratch.iterdir()) == []
    assert f"kept in a scratch file in {scratch}" in capsys.readouterr().err
    stage.step(state, 0, lambda _: None)
    resumed = trained(stage.load(stage.save(state)), first=1)

    monkeypatch.setattr(image_array, "HELD_SHARE", 0.5)
    assert resumed == trained()


def test_images_in_a_scratch_file_take_no_memory_beyond_a_block(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labelled, "READ_BYTES", 2**20)
    tracemalloc.start()
    data = labelled.read_labelled(Noise(1_500, (64, 64)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert data.images.nbytes > 15 * 2**20
    assert peak < 5 * 2**20
    assert list(scratch.iterdir()) == []


def test_left_out_rows_leave_no_gap(scratch: Path) -> None:
    source = Noise(30)
    data, images = read_labelled(source), source.read(0, 30).images
    assert data.n_left_out == 3
    assert np.array_equal(data.images.numpy(), images[data.rows.numpy()])
    chosen = torch.tensor([5, 0, 5])
    assert np.array_equal(data.take(chosen).numpy(), images[data.rows.numpy()][[5, 0, 5]])


def test_the_normalisation_of_some_rows_is_that_of_their_images() -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (2_500, 2, 2, 3), np.uint8))
    rows = torch.arange(0, 2_500, 2)
    assert normalisation(images, "any", rows) == normalisation(images[rows], "any")
    chosen = images[rows].double() / 255
    (mean, std), _ = normalisation(images, "any", rows)
    assert mean == pytest.approx(chosen.mean(dim=(0, 1, 2)).tolist(), abs=1e-6)
    assert std == pytest.approx(chosen.std(dim=(0, 1, 2), correction=0).tolist(), abs=1e-6)


def test_images_that_fit_nowhere_are_refused(scratch: Path) -> None:
    with pytest.raises(ResourceError, match=r"more than half of .*: set TMPDIR to a folder with"):
        image_array.image_array((10**9, 224, 224, 3), "noise-train", print)
    assert list(scratch.iterdir()) == []
