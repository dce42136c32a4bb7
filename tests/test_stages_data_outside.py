"""The out-of-distribution sets: their exact layouts, crops, selections, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import io

from stages.data import svhn
from stages.data.known import KNOWN
from stages.data.registry import SourceSpec, known_datasets, open_source
from stages.data.source import source_facts
from stages.errors import DataNotFoundError, InputError

RNG = np.random.default_rng(3)
LAYOUTS = {
    "textures": ("dtd/images/banded", "dtd/images/zigzagged"),
    "places365": ("places365/test_subset/a",),
    "lsun-c": ("LSUN/test",),
    "lsun-r": ("LSUN_resize/LSUN_resize",),
    "isun": ("iSUN/iSUN_patches",),
}


def write_images(folder: Path, n_images: int, size: tuple[int, int] = (40, 32)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(n_images):
        pixels = RNG.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
    return folder


def write_mat(path: Path, labels: list[int], **arrays: np.ndarray) -> np.ndarray:
    """A file as SVHN publishes it; gives its images ``[n, 32, 32, 3]``."""
    images = RNG.integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {"X": images.transpose(1, 2, 3, 0), "y": np.array(labels, np.uint8)[:, None]}
    io.savemat(path, found | arrays, do_compression=True)
    return images


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_set_is_found_in_its_original_layout(tmp_path: Path, name: str) -> None:
    for folder in LAYOUTS[name]:
        write_images(tmp_path / folder, 2)
    source = open_source(name, data_root=tmp_path)
    rows = source.read(0, source.n_rows)

    assert (source.name, source.split, source.n_classes) == (name, "test", 0)
    assert source.n_rows == 2 * len(LAYOUTS[name])
    assert rows.columns["label"].tolist() == [-1] * source.n_rows
    assert len(set(rows.columns["sample_id"])) == source.n_rows
    assert not rows.failed


def test_torchvision_unpacks_textures_one_folder_deeper(tmp_path: Path) -> None:
    write_images(tmp_path / "dtd/dtd/images/banded", 3)

    assert open_source("textures", data_root=tmp_path).n_rows == 3


def test_a_loose_folder_is_cropped_and_an_image_folder_is_stretched(tmp_path: Path) -> None:
    """Columns of 0 left and right of the middle: only a stretched image shows them."""
    pixels = np.full((32, 64, 3), 200, np.uint8)
    pixels[:, :16] = pixels[:, 48:] = 0
    for folder in ("loose", "set/test/a"):
        (tmp_path / folder).mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / folder / "x.png")
    loose, stretched = (open_source(tmp_path / each) for each in ("loose", "set"))

    assert loose.read(0, 1).images.min() == 200
    assert stretched.read(0, 1).images.min() == 0
    assert loose.resize == "bilinear-antialias shorter side ->32, centre 32x32"


def test_images_in_a_folder_and_its_subfolders_are_used(tmp_path: Path) -> None:
    write_images(tmp_path / "mine", 2)
    write_images(tmp_path / "mine" / "more", 3)
    (tmp_path / "mine" / "notes.txt").write_text("no image")
    source = open_source("mine", data_root=tmp_path)

    assert source.n_rows == 5
    assert source.read(0, 5).columns["sample_id"].tolist()[1:3] == ["001.png", "more/000.png"]
    with pytest.raises(DataNotFoundError, match="has no split 'train', only test"):
        open_source("mine", "train", tmp_path)


def test_a_broken_image_is_a_failed_row(tmp_path: Path) -> None:
    write_images(tmp_path / "iSUN" / "a", 3)
    (tmp_path / "iSUN" / "a" / "001.png").write_bytes(b"no png")

    assert list(open_source("isun", data_root=tmp_path).read(0, 3).failed) == [1]


@pytest.mark.parametrize("name", LAYOUTS)
def test_an_empty_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / LAYOUTS[name][0]).mkdir(parents=True)
    with pytest.raises(InputError, match="has no images, expected <file> or <folder>/<file>"):
        open_source(name, data_root=tmp_path)


def test_an_empty_folder_at_a_path_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no supported data"):
        open_source(tmp_path / "empty")


def test_svhn_has_its_pixels_and_calls_zero_zero(tmp_path: Path) -> None:
    images = write_mat(tmp_path / "svhn" / "test_32x32.mat", [1, 10, 9, 10])
    source = open_source("svhn", data_root=tmp_path)
    rows = source.read(0, 4)

    np.testing.assert_array_equal(rows.images, images)
    assert rows.columns["label"].tolist() == [1, 0, 9, 0]
    assert source.class_names == tuple("0123456789")


def test_the_selection_of_svhn_has_the_first_of_each_class_in_file_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(svhn, "N_OF_CLASS", 2)
    images = write_mat(tmp_path / "svhn" / "test_32x32.mat", [5, 10, 5, 5, 3, 10, 10, 1])
    source = open_source("svhn-10k", data_root=tmp_path)
    rows = source.read(0, source.n_rows)

    np.testing.assert_array_equal(rows.images, images[[0, 1, 2, 4, 5, 7]])
    assert rows.columns["label"].tolist() == [5, 0, 5, 3, 0, 1]
    assert source.name == "svhn-10k"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:300]), "expected a MATLAB file with X"),
        (lambda path: path.write_bytes(b"MATLAB 7.3 MAT-file" * 20), "expected a MATLAB file"),
        (lambda path: path.write_bytes(b""), "expected a MATLAB file"),
        (lambda path: io.savemat(path, {"X": np.zeros((32, 32, 3, 2), np.uint8)}), "'y'"),
        (lambda path: write_mat(path, [1, 11]), "the label of row 1 is 11, expected 0 to 9"),
        (
            lambda path: write_mat(path, [1, 2], y=np.ones((5, 1), np.uint8)),
            r"one per image: \[2\]",
        ),
        (lambda path: write_mat(path, [1], X=np.zeros((32, 32, 3, 1))), "images are float64"),
        (lambda path: write_mat(path, [1], X=np.zeros((32, 32), np.uint8)), "expected a MATLAB"),
        (lambda path: path.unlink(), "has no test_32x32.mat"),
    ],
)
def test_a_file_other_than_svhn_is_refused_in_one_line(tmp_path: Path, make, message: str) -> None:
    path = tmp_path / "svhn" / "test_32x32.mat"
    write_mat(path, [1, 2])
    write_mat(path.with_name("train_32x32.mat"), [1, 2])
    make(path)
    with pytest.raises(InputError, match=message) as caught:
        open_source("svhn", data_root=tmp_path)

    assert "\n" not in str(caught.value)


def test_patches_are_squares_of_photographs() -> None:
    from skimage import data

    source = open_source("patches")
    brick, astronaut = data.brick(), data.astronaut()
    images = source.read(0, source.n_rows).images

    assert source.n_rows == KNOWN["patches"].n_rows["test"]
    np.testing.assert_array_equal(images[17, :, :, 0], brick[32:64, 32:64])
    np.testing.assert_array_equal(images[3 * 256 + 1], astronaut[:32, 32:64])


@pytest.mark.parametrize("kind", ["uniform-noise", "gaussian-noise"])
def test_noise_is_of_the_row_alone_and_fills_the_range(kind: str) -> None:
    source = open_source(kind, image_size=16)
    images = source.read(0, 40).images

    np.testing.assert_array_equal(source.read(7, 9).images, images[7:9])
    assert images.std() > 60
    assert (images.min(), images.max()) == (0, 255)
    share_at_the_ends = np.isin(images, [0, 255]).mean()
    assert (share_at_the_ends > 0.5) == (kind == "gaussian-noise")


def test_a_source_without_its_labels_is_of_no_class() -> None:
    plain, bare = SourceSpec("digits", "test", ""), SourceSpec("digits", "test", "", labels=False)
    mine, others = plain.open(), bare.open()

    np.testing.assert_array_equal(mine.read(3, 9).images, others.read(3, 9).images)
    assert others.read(3, 9).columns["label"].tolist() == [-1] * 6
    assert others.class_names == ()
    assert source_facts(mine)["fingerprint"] != source_facts(others)["fingerprint"]


def test_a_set_that_cannot_be_downloaded_is_refused_with_its_source(tmp_path: Path) -> None:
    told = {info.name: info.how_to_get for info in known_datasets(tmp_path)}

    assert told["svhn"] == "intro-pipe datasets --download svhn"
    assert "facebookresearch/odin" in told["isun"]
    with pytest.raises(DataNotFoundError, match=r"isun: not under .*facebookresearch/odin"):
        open_source("isun", data_root=tmp_path)
