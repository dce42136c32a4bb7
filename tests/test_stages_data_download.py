import gzip
import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from stages.data.corruptions.names import CORRUPTIONS
from stages.data.download import RECIPES, Recipe, Remote, download
from stages.data.known import KNOWN
from stages.data.registry import open_source
from stages.errors import InputError, StageError


def _npy_bytes(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _archive(path: Path, members: dict[str, bytes]) -> Remote:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return _remote(path)


def _remote(path: Path) -> Remote:
    return Remote(path.as_uri(), hashlib.md5(path.read_bytes()).hexdigest())


def _cifar10c(path: Path) -> Remote:
    images = _npy_bytes(np.zeros((5, 32, 32, 3), dtype=np.uint8))
    members = {f"CIFAR-10-C/{name}.npy": images for name in CORRUPTIONS}
    members["CIFAR-10-C/labels.npy"] = _npy_bytes(np.zeros(5, dtype=np.uint8))
    return _archive(path, members)


def _recipes(*files: Remote) -> dict[str, Recipe]:
    return {"cifar10c": Recipe("CIFAR-10-C", files, is_archive=True)}


def test_an_archive_is_unpacked_and_opens(tmp_path: Path) -> None:
    root = tmp_path / "root"
    place = download("cifar10c", root, recipes=_recipes(_cifar10c(tmp_path / "c.tar")))
    assert place == root / "CIFAR-10-C"
    assert open_source("cifar10c", data_root=root).n_rows == 95
    assert [path.name for path in root.iterdir()] == ["CIFAR-10-C"]


def test_progress_is_reported_in_bytes(tmp_path: Path) -> None:
    remote = _cifar10c(tmp_path / "c.tar")
    size_bytes = (tmp_path / "c.tar").stat().st_size
    told: list[tuple[str, int, int]] = []
    download(
        "cifar10c", tmp_path / "root", lambda *news: told.append(news), recipes=_recipes(remote)
    )
    assert told[-1] == ("c.tar", size_bytes, size_bytes)


def test_single_files_become_a_folder(tmp_path: Path) -> None:
    files = []
    for name, shape in (("images-idx3", (3, 2, 2)), ("labels-idx1", (3,))):
        header = bytes((0, 0, 8, len(shape))) + np.array(shape, dtype=">u4").tobytes()
        path = tmp_path / f"t10k-{name}-ubyte.gz"
        path.write_bytes(gzip.compress(header + bytes(np.prod(shape))))
        files.append(_remote(path))
    recipes = {"mnist": Recipe("mnist", tuple(files), is_archive=False)}
    download("mnist", tmp_path / "root", recipes=recipes)
    assert open_source("mnist", data_root=tmp_path / "root").n_rows == 3


def test_a_wrong_checksum_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    remote = Remote(_cifar10c(tmp_path / "c.tar").url, "0" * 32)
    with pytest.raises(StageError, match="expected 00000000000000000000000000000000"):
        download("cifar10c", tmp_path / "root", recipes=_recipes(remote))
    assert list((tmp_path / "root").iterdir()) == []


def test_an_address_that_does_not_answer_is_one_line(tmp_path: Path) -> None:
    remote = Remote((tmp_path / "gone.tar").as_uri(), "0" * 32)
    with pytest.raises(StageError, match="cifar10c: could not be downloaded") as caught:
        download("cifar10c", tmp_path / "root", recipes=_recipes(remote))
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "root").iterdir()) == []


def test_an_archive_cannot_write_outside(tmp_path: Path) -> None:
    remote = _archive(tmp_path / "c.tar", {"CIFAR-10-C/a": b"", "../../escaped": b"x"})
    with pytest.raises(StageError, match="leads outside; refused"):
        download("cifar10c", tmp_path / "root", recipes=_recipes(remote))
    assert not (tmp_path / "escaped").exists()
    assert list((tmp_path / "root").iterdir()) == []


def test_an_archive_of_something_else_is_refused(tmp_path: Path) -> None:
    remote = _archive(tmp_path / "c.tar", {"other/file": b"x"})
    with pytest.raises(StageError, match="has no folder CIFAR-10-C"):
        download("cifar10c", tmp_path / "root", recipes=_recipes(remote))


def test_an_existing_set_is_not_downloaded_again(tmp_path: Path) -> None:
    root = tmp_path / "root"
    recipes = _recipes(_cifar10c(tmp_path / "c.tar"))
    download("cifar10c", root, recipes=recipes)
    (tmp_path / "c.tar").unlink()
    assert download("cifar10c", root, recipes=recipes) == root / "CIFAR-10-C"


def test_half_a_set_is_not_overwritten(tmp_path: Path) -> None:
    root = tmp_path / "root"
    recipes = _recipes(_cifar10c(tmp_path / "c.tar"))
    (download("cifar10c", root, recipes=recipes) / "fog.npy").unlink()
    with pytest.raises(StageError, match=r"is damaged; remove it first .*missing: fog"):
        download("cifar10c", root, recipes=recipes)


def test_names_that_cannot_be_fetched_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="digits: comes with the installation"):
        download("digits", tmp_path)
    with pytest.raises(InputError, match=r"isun: cannot be downloaded \(its archive is linked"):
        download("isun", tmp_path)
    with pytest.raises(InputError, match="expected one of cifar10, cifar10c"):
        download("imagenet", tmp_path)


def test_every_recipe_lands_where_the_registry_looks() -> None:
    assert all(recipe.folder in KNOWN[name].folders for name, recipe in RECIPES.items())
    fetched = {name for name, known in KNOWN.items() if known.folders and not known.by_hand}
    assert set(RECIPES) == fetched
