"""The same files give the same pixels and labels in every layout."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from stages.data.layouts import LAYOUTS, layout_of
from stages.data.registry import open_source
from stages.data.resize import Resize
from stages.errors import InputError

FILES = ("ant/0.jpg", "ant/1.jpg", "bee/0.jpg")
LABELS = ("ant", "ant", "bee")
HOW = Resize((16, 16), 18, "bicubic")


@pytest.fixture(scope="module")
def photographs() -> list[bytes]:
    """Three photographs of noise, of different sizes."""
    rng, found = np.random.default_rng(0), []
    for size in ((20, 30), (40, 25), (24, 24)):
        buffer = io.BytesIO()
        image = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
        image.save(buffer, "JPEG")
        found.append(buffer.getvalue())
    return found


def files(root: Path, photographs: list[bytes]) -> Path:
    for name, content in zip(FILES, photographs, strict=True):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def split_folders(root: Path, photographs: list[bytes]) -> Path:
    files(root / "val", photographs)
    return root


def corrupted(root: Path, photographs: list[bytes]) -> Path:
    files(root / "fog" / "3", photographs)
    return root


def manifest(root: Path, photographs: list[bytes]) -> Path:
    files(root, photographs)
    rows = [f"{name},{label}" for name, label in zip(FILES, LABELS, strict=True)]
    (root / "mine.csv").write_text("\n".join(["path,label", *rows]))
    return root / "mine.csv"


def parquet(root: Path, photographs: list[bytes]) -> Path:
    root.mkdir()
    images = [{"bytes": content, "path": None} for content in photographs]
    pq.write_table(pa.table({"image": images, "label": LABELS}), root / "mine.parquet")
    return root / "mine.parquet"


def tar(root: Path, photographs: list[bytes]) -> Path:
    root.mkdir()
    with tarfile.open(root / "mine.tar", "w") as archive:
        for name, label, content in zip(FILES, LABELS, photographs, strict=True):
            key = name.removesuffix(".jpg")
            for member, data in ((f"{key}.jpg", content), (f"{key}.cls", label.encode())):
                info = tarfile.TarInfo(member)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return root / "mine.tar"


@pytest.mark.parametrize(
    ("written", "split"),
    [
        (split_folders, "val"),
        (files, "all"),
        (corrupted, "test"),
        (manifest, "test"),
        (parquet, "test"),
        (tar, "test"),
    ],
)
def test_every_layout_gives_the_same_rows(
    tmp_path: Path, photographs: list[bytes], written: Callable[..., Path], split: str
) -> None:
    loose = open_source(files(tmp_path / "loose", photographs), image_size=HOW).read(0, 3)
    source = open_source(written(tmp_path / "set", photographs), split, image_size=HOW)
    rows = source.read(0, source.n_rows)
    assert (rows.images == loose.images).all()
    assert rows.failed == {}
    assert source.class_names == ("ant", "bee")
    assert rows.columns["label"].tolist() == [0, 0, 1]
    assert source.resize == HOW.rule(None)


def tiny_imagenet(root: Path, photographs: list[bytes]) -> Path:
    """As published: ids in another order than the labels, and a table with boxes."""
    for at, (name, content) in enumerate(zip(FILES, photographs, strict=True)):
        label, file = name.split("/")
        for place in (
            root / "val" / "images" / f"{at}.JPEG",
            root / f"train/{label}/images/{file}",
        ):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
    lines = [f"{at}.JPEG\t{label}\t0\t32\t44\t62\n" for at, label in enumerate(LABELS)]
    (root / "val" / "val_annotations.txt").write_text("".join(reversed(lines)))
    (root / "wnids.txt").write_text("bee\nant\n")
    return root


def test_tiny_imagenet_is_read_as_published(tmp_path: Path, photographs: list[bytes]) -> None:
    root = tiny_imagenet(tmp_path / "tiny", photographs)
    val, train = (open_source(root, split, image_size=HOW) for split in ("val", "train"))

    assert val.class_names == train.class_names == ("ant", "bee")
    assert val.read(0, 3).columns["label"].tolist() == [0, 0, 1]
    assert (val.read(0, 3).images == train.read(0, 3).images).all()
    assert train.read(0, 3).columns["label"].tolist() == [0, 0, 1]
    with pytest.raises(InputError, match="expected --split train or val, found 'test'"):
        open_source(root, "test")
    (root / "val" / "images" / "3.JPEG").write_bytes(photographs[0])
    with pytest.raises(InputError, match=r"gives '3\.JPEG' the class None"):
        open_source(root, "val")


def test_a_path_has_at_most_one_layout_and_hidden_ones_have_none(
    tmp_path: Path, photographs: list[bytes]
) -> None:
    found = layout_of(manifest(tmp_path / "set", photographs))
    assert found is not None
    assert found.name == "manifest"
    assert found in LAYOUTS
    (tmp_path / "set").rename(tmp_path / ".set")
    assert layout_of(tmp_path / ".set") is None
