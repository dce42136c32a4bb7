import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.data.registry import open_source
from stages.errors import DataNotFoundError, InputError


def _image(path: Path, value: int, size: tuple[int, int] = (32, 32)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 255 - value)).save(path)


def _write(root: Path, splits: tuple[str, ...] = ("train", "test")) -> Path:
    for split in splits:
        for label, name in enumerate(("ant", "bee")):
            for index in range(3):
                _image(root / split / name / f"{index}.png", 100 * label + index)
    return root


def test_files_are_rows_in_sorted_order(tmp_path: Path) -> None:
    source = open_source(_write(tmp_path / "insects"))
    rows = source.read(0, 6)
    assert rows.images[:, 0, 0, 0].tolist() == [0, 1, 2, 100, 101, 102]
    assert rows.images[:, 5, 5, 2].tolist() == [255, 254, 253, 155, 154, 153]
    assert rows.columns["label"].tolist() == [0, 0, 0, 1, 1, 1]
    assert rows.columns["sample_id"][4] == "test/bee/1.png"


def test_facts_of_a_folder(tmp_path: Path) -> None:
    source = open_source(_write(tmp_path / "insects"), "train")
    assert (source.name, source.family, source.split) == ("insects", "insects", "train")
    assert source.class_names == ("ant", "bee")
    assert source.resize == "bilinear-antialias ->32x32 (stretched)"


def test_odd_sizes_and_modes_are_read(tmp_path: Path) -> None:
    root = _write(tmp_path / "insects")
    _image(root / "test" / "ant" / "0.png", 10, (50, 20))
    Image.new("L", (8, 8), 40).save(root / "test" / "ant" / "1.png")
    Image.new("RGBA", (8, 8), (1, 2, 3, 0)).save(root / "test" / "ant" / "2.png")
    rows = open_source(root).read(0, 3)
    assert rows.failed == {}
    assert rows.images[:, 3, 3].tolist() == [[10, 0, 245], [40, 40, 40], [1, 2, 3]]


def test_an_unreadable_file_is_a_failed_row_among_good_ones(tmp_path: Path) -> None:
    root = _write(tmp_path / "insects")
    (root / "test" / "ant" / "1.png").write_bytes(b"not an image")
    rows = open_source(root).read(0, 6)
    assert list(rows.failed) == [1]
    assert rows.failed[1].startswith("test/ant/1.png: cannot identify image file")
    assert "\n" not in rows.failed[1]
    assert not rows.images[1].any()
    assert rows.images[[0, 2, 3], 0, 0, 0].tolist() == [0, 2, 100]


def test_a_failed_row_is_numbered_within_the_range(tmp_path: Path) -> None:
    root = _write(tmp_path / "insects")
    (root / "test" / "bee" / "2.png").unlink()
    (root / "test" / "bee" / "2.png").symlink_to(root / "gone.png")
    assert list(open_source(root).read(4, 6).failed) == [1]


def test_a_truncated_jpeg_fails_alone(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    (root / "test" / "a").mkdir(parents=True)
    for index in range(3):
        Image.fromarray(noise).save(root / "test" / "a" / f"{index}.jpg")
    broken = root / "test" / "a" / "1.jpg"
    broken.write_bytes(broken.read_bytes()[:1_500])
    rows = open_source(root, image_size=64).read(0, 3)
    assert list(rows.failed) == [1]
    assert "truncated" in rows.failed[1]
    assert not rows.images[1].any()
    assert rows.images[0].any()


def test_large_files_are_read_in_parallel_with_the_same_result(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (130, 80, 80, 3), dtype=np.uint8)
    (root / "test" / "a").mkdir(parents=True)
    for index, image in enumerate(images):
        Image.fromarray(image).save(root / "test" / "a" / f"{index:03d}.png", compress_level=0)
    (root / "test" / "a" / "077.png").write_bytes(b"")
    rows = open_source(root, image_size=80).read(5, 125)
    assert list(rows.failed) == [72]
    good = np.delete(np.arange(120), 72)
    assert (rows.images[good] == images[5:125][good]).all()


def test_anything_else_in_the_folders_is_left_out(tmp_path: Path) -> None:
    root = _write(tmp_path / "insects")
    (root / "test" / "notes.txt").write_text("x")
    (root / "test" / "ant" / "notes.txt").write_text("x")
    (root / "test" / "ant" / ".hidden.png").write_text("x")
    _image(root / "test" / "ant" / "deeper" / "0.png", 1)
    (root / "test" / ".cache").mkdir()
    assert open_source(root).n_rows == 6


def test_one_split_alone_is_enough(tmp_path: Path) -> None:
    root = _write(tmp_path / "insects", ("test",))
    assert open_source(root).n_rows == 6
    with pytest.raises(DataNotFoundError, match="has no folder 'train'"):
        open_source(root, "train")


@pytest.mark.parametrize("split", ["val", "validation", "domain-2"])
def test_a_split_has_the_name_of_its_folder(tmp_path: Path, split: str) -> None:
    root = _write(tmp_path / "insects", ("train", split))
    source = open_source(root, split)
    assert (source.split, source.n_rows, source.class_names) == (split, 6, ("ant", "bee"))
    assert source.read(4, 5).columns["sample_id"].tolist() == [f"{split}/bee/1.png"]
    assert source.left_out == ()
    with pytest.raises(DataNotFoundError, match=f"it has train, {split}: use --split train$"):
        open_source(root, "test")


def test_a_set_may_have_none_of_the_usual_splits(tmp_path: Path) -> None:
    root = _write(tmp_path / "insects", ("amazon", "dslr"))
    assert open_source(root, "dslr").n_rows == 6
    with pytest.raises(DataNotFoundError, match=r"it has amazon, dslr: use --split amazon$"):
        open_source(root)


def test_a_test_folder_without_classes_is_ignored(tmp_path: Path) -> None:
    root = _write(tmp_path / "imagenet", ("train", "val"))
    _image(root / "test" / "0.png", 1)
    assert [open_source(root, split).n_rows for split in ("train", "val")] == [6, 6]
    with pytest.raises(InputError, match=r"expected <class>/<file> .*outside the class folders"):
        open_source(root)


def test_class_folders_without_a_split_are_all_images(tmp_path: Path) -> None:
    _write(tmp_path, ("insects",))
    root = tmp_path / "insects"
    (root / ".DS_Store").write_text("x")
    _image(root / ".ipynb_checkpoints" / "0.png", 1)
    source = open_source(root, "all")
    rows = source.read(0, 6)
    assert (source.name, source.split, source.class_names) == ("insects", "all", ("ant", "bee"))
    assert rows.columns["label"].tolist() == [0, 0, 0, 1, 1, 1]
    assert rows.columns["sample_id"][3] == "bee/0.png"
    assert [(each.reason, each.count) for each in source.left_out] == [
        ("companions of other programs", 2)
    ]
    assert open_source(root).class_names == ()  # as before: images without labels


def test_all_is_refused_where_there_are_splits_or_no_classes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no folder 'all'.*; it has train, test"):
        open_source(_write(tmp_path / "insects"), "all")
    _image(tmp_path / "flat" / "0.png", 1)
    with pytest.raises(InputError, match="has no images, expected <class>/<file>"):
        open_source(tmp_path / "flat", "all")


def test_other_classes_in_train_than_in_test_are_refused(tmp_path: Path) -> None:
    root = _write(tmp_path / "insects")
    _image(root / "train" / "wasp" / "0.png", 1)
    with pytest.raises(InputError, match="only in train: wasp; only in test: -"):
        open_source(root)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "insects").mkdir()
    with pytest.raises(InputError, match="no supported data"):
        open_source(tmp_path / "insects")


def test_classes_without_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "insects" / "test" / "ant").mkdir(parents=True)
    with pytest.raises(InputError, match="has no images"):
        open_source(tmp_path / "insects")


def test_the_fingerprint_follows_content_and_not_place(tmp_path: Path) -> None:
    root = _write(tmp_path / "insects")
    shutil.copytree(root, tmp_path / "copy")
    one = open_source(root).fingerprint()
    assert open_source(tmp_path / "copy").fingerprint() == one
    (tmp_path / "copy" / "test" / "ant" / "0.png").rename(
        tmp_path / "copy" / "test" / "bee" / "9.png"
    )
    assert open_source(tmp_path / "copy").fingerprint() != one


def test_a_source_survives_pickling(tmp_path: Path) -> None:
    source = open_source(_write(tmp_path / "insects"))
    again = pickle.loads(pickle.dumps(source))
    assert (again.read(1, 5).images == source.read(1, 5).images).all()


def test_a_folder_of_arrays_with_other_names_is_refused_with_a_remedy(tmp_path: Path) -> None:
    for name in ("x_test.npy", "y_test.npy"):
        np.save(tmp_path / name, np.zeros(3, np.uint8))
    with pytest.raises(InputError, match=r"to read an array give its file, such as .*/x_test.npy$"):
        open_source(tmp_path)
