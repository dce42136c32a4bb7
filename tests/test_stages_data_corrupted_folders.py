"""Sets in the layout of ImageNet-C give the rows and columns that CIFAR-10-C gives."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.data.known import KNOWN
from stages.data.registry import known_datasets, open_source
from stages.data.stored_sizes import stored_sizes
from stages.errors import InputError

CELLS = [(name, severity) for name in ("blur", "fog") for severity in (1, 2, 10)]
FILES = ("n01/a.JPEG", "n01/b.JPEG", "n02/a.JPEG")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two corruptions at three severities of three images; the grey value counts the rows."""
    row = 0
    for name, severity in CELLS:
        for file in FILES:
            path = tmp_path / "ImageNet-C" / name / str(severity) / file
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 10 * row).save(path, quality=100)
            row += 1
    return tmp_path / "ImageNet-C"


def test_rows_are_ordered_by_corruption_severity_class_and_file(root: Path) -> None:
    source = open_source(root)
    rows = source.read(0, source.n_rows)
    assert rows.failed == {}
    assert rows.images[:, 3, 3, 0].tolist() == list(range(0, 180, 10))
    assert rows.columns["corruption"].tolist() == ["blur"] * 9 + ["fog"] * 9
    assert (
        rows.columns["severity"].tolist()
        == [1] * 3 + [2] * 3 + [10] * 3 + [1] * 3 + [2] * 3 + [10] * 3
    )
    assert rows.columns["label"].tolist() == [0, 0, 1] * 6
    assert rows.columns["sample_id"][[0, 7, 17]].tolist() == [
        "blur/1/00000",
        "blur/10/00001",
        "fog/10/00002",
    ]
    assert rows.columns["clean_id"].tolist() == [*FILES] * 6


def test_facts_are_like_those_of_cifar10c(root: Path) -> None:
    source = open_source(root)
    assert (source.name, source.family, source.split) == ("ImageNet-C", "ImageNet", "test")
    assert source.class_names == ("n01", "n02")
    names = [name for name, _ in source.extra_columns]
    assert names == ["clean_id", "corruption", "severity"]
    assert stored_sizes(source) == {(8, 8): 18}
    infos = {info.name: info for info in known_datasets(root.parent)[len(KNOWN) :]}
    assert infos["ImageNet-C"].description == "ImageNet-C layout"
    assert infos["ImageNet-C"].n_rows == {"test": 18}


def test_a_range_within_cells_equals_the_whole(root: Path) -> None:
    source = pickle.loads(pickle.dumps(open_source(root)))
    whole, part = source.read(0, 18), source.read(7, 12)
    assert (part.images == whole.images[7:12]).all()
    assert all((part.columns[name] == whole.columns[name][7:12]).all() for name in whole.columns)
    assert source.read(5, 5).images.shape == (0, 32, 32, 3)


def test_chosen_corruptions_and_classes(root: Path) -> None:
    source = open_source(root, corruptions=("fog",), classes=("n02", "n03", "n01"))
    assert (source.name, source.n_rows) == ("ImageNet-C-fog", 9)
    rows = source.read(0, 9)
    assert rows.images[:, 3, 3, 0].tolist() == list(range(90, 180, 10))
    assert rows.columns["label"].tolist() == [2, 2, 0] * 3
    with pytest.raises(InputError, match="has no corruption 'snow', expected one of blur, fog"):
        open_source(root, corruptions=("snow",))
    clean = root / "fog" / "1"
    clean.rename(root.parent / "test")
    with pytest.raises(InputError, match="it is not a corrupted set; omit --corruptions"):
        open_source(root.parent, corruptions=("snow",))


def test_an_image_that_a_cell_lacks_is_a_failed_row(root: Path) -> None:
    before = open_source(root).fingerprint()
    (root / "fog/1/n01/b.JPEG").unlink()
    source = open_source(root)
    failed = source.read(0, 18).failed
    assert list(failed) == [10]
    assert failed[10].startswith("fog/1/n01/b.JPEG: [Errno 2] No such file")
    assert source.fingerprint() != before


def test_everything_else_is_left_out(root: Path) -> None:
    before = open_source(root).fingerprint()
    (root / "README.md").write_text("x")
    (root / ".DS_Store").write_text("x")
    (root / "clean").mkdir()
    (root / "fog" / "1" / "._n01").write_text("x")
    source = open_source(root)
    assert {each.reason: each.examples for each in source.left_out} == {
        "other folders": ("clean/",),
        "companions of other programs": (".DS_Store",),
        "not images by name": ("README.md",),
    }
    assert source.fingerprint() == before


def test_differences_between_cells_are_refused(root: Path) -> None:
    (root / "fog" / "10" / "n01").rename(root / "fog" / "10" / "n03")
    with pytest.raises(InputError, match=r"fog/10 has other classes than blur/1.* has n01$"):
        open_source(root)
    (root / "fog" / "10").rename(root / "fog" / "3")
    with pytest.raises(InputError, match="fog has the severities 1, 2, 3 and blur 1, 2, 10"):
        open_source(root)


def test_decimal_severities_are_ranked_within_each_corruption(root: Path) -> None:
    for name, levels in {
        "blur": ("2.35", "3.20", "9.15"),
        "fog": ("1.00", "2.00", "10.00"),
    }.items():
        for old, new in zip(("1", "2", "10"), levels, strict=True):
            (root / name / old).rename(root / name / new)
    rows = open_source(root).read(0, 18)
    assert rows.failed == {}
    assert rows.images[:, 3, 3, 0].tolist() == list(range(0, 180, 10))
    assert rows.columns["severity"].tolist() == [1, 1, 1, 2, 2, 2, 3, 3, 3] * 2
    assert rows.columns["sample_id"][17] == "fog/3/00002"
    assert open_source(root, corruptions=("fog",)).read(0, 1).images[0, 3, 3, 0] == 90
    (root / "fog" / "10.00").rename(root / "moved")
    with pytest.raises(InputError, match=r"fog has the severities 1.00, 2.00 and blur 2.35, 3.20"):
        open_source(root)


def test_there_is_one_split(root: Path) -> None:
    with pytest.raises(InputError, match="a corrupted set has no split 'train', only test"):
        open_source(root, "train")


def test_folders_with_numbers_as_classes_are_an_image_folder_as_before(tmp_path: Path) -> None:
    for place in ("test/1", "test/2", "test/1/more"):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(tmp_path / place / "0.png")
    source = open_source(tmp_path)
    assert (source.class_names, source.extra_columns) == (("1", "2"), ())


def test_cifar100c_is_read_as_cifar10c(tmp_path: Path) -> None:
    folder = tmp_path / "CIFAR-100-C"
    folder.mkdir()
    np.save(folder / "fog.npy", np.zeros((10, 32, 32, 3), np.uint8))
    np.save(folder / "labels.npy", np.tile([99, 7], 5))
    source = open_source(folder)
    columns = source.read(0, 10).columns
    assert source.n_classes == 100
    assert columns["label"].tolist() == [99, 7] * 5
    assert columns["severity"].tolist() == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert set(columns["corruption"].tolist()) == {"fog"}
