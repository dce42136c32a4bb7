"""Download the public data sets; a set is checked and complete before it gets its name."""

from __future__ import annotations

import hashlib
import http.client
import tarfile
import tempfile
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from stages.data.known import KNOWN, data_root_path, folder_of
from stages.data.registry import open_source
from stages.errors import InputError, StageError
from store.storage import leads_out

Progress = Callable[[str, int, int], None]
"""Called with the file name, bytes so far and total bytes (0 = unknown)."""

_BLOCK_BYTES = 2**20
_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Remote:
    """A file to download and its md5."""

    url: str
    md5: str

    @property
    def name(self) -> str:
        """File name on disk."""
        return self.url.split("?")[0].rsplit("/", 1)[-1]


@dataclass(frozen=True, slots=True)
class Recipe:
    """The files of a data set: they form ``folder``, or are an archive that contains it."""

    folder: str
    files: tuple[Remote, ...]
    is_archive: bool
    max_bytes: int = 2**26
    """Limit for the download and for the unpacked data; exceeding it means a wrong file."""


_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_SVHN = "http://ufldl.stanford.edu/housenumbers/"
_FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"

# Addresses and md5 sums as stated by the publishers and used in torchvision 0.28, and those of
# record 2535967 on Zenodo.
RECIPES: Mapping[str, Recipe] = {
    "cifar10": Recipe(
        "cifar-10-batches-py",
        (
            Remote(
                "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
                "c58f30108f718f92721af3b95e74349a",
            ),
        ),
        is_archive=True,
        max_bytes=2**28,  # of 186 MB
    ),
    "cifar10c": Recipe(
        "CIFAR-10-C",
        (
            Remote(
                "https://zenodo.org/records/2535967/files/CIFAR-10-C.tar?download=1",
                "56bf5dcef84df0e2308c6dcbcbbd8499",
            ),
        ),
        is_archive=True,
        max_bytes=2**32,  # of 2.9 GB
    ),
    "fashion-mnist": Recipe(
        "fashion-mnist",
        (
            Remote(f"{_FASHION}train-images-idx3-ubyte.gz", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
            Remote(f"{_FASHION}train-labels-idx1-ubyte.gz", "25c81989df183df01b3e8a0aad5dffbe"),
            Remote(f"{_FASHION}t10k-images-idx3-ubyte.gz", "bef4ecab320f06d8554ea6380940ec79"),
            Remote(f"{_FASHION}t10k-labels-idx1-ubyte.gz", "bb300cfdad3c16e7a12a480ee83cd310"),
        ),
        is_archive=False,
    ),
    "mnist": Recipe(
        "mnist",
        (
            Remote(f"{_MNIST}train-images-idx3-ubyte.gz", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
            Remote(f"{_MNIST}train-labels-idx1-ubyte.gz", "d53e105ee54ea40749a09fcbcd1e9432"),
            Remote(f"{_MNIST}t10k-images-idx3-ubyte.gz", "9fb629c4189551a2d022fa330f9573f3"),
            Remote(f"{_MNIST}t10k-labels-idx1-ubyte.gz", "ec29112dd5afa0611ce80d1b7f02629c"),
        ),
        is_archive=False,
    ),
    "svhn": Recipe(
        "svhn",
        (
            Remote(f"{_SVHN}train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373"),
            Remote(f"{_SVHN}test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3"),
        ),
        is_archive=False,
        max_bytes=2**28,  # of 182 and 64 MB
    ),
    "textures": Recipe(
        "dtd",
        (
            Remote(
                "https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz",
                "fff73e5086ae6bdbea199a49dfb8a4c1",
            ),
        ),
        is_archive=True,
        max_bytes=2**30,  # of 600 MB
    ),
}


def download(
    name: str,
    data_root: str | Path | None = None,
    progress: Progress | None = None,
    *,
    recipes: Mapping[str, Recipe] = RECIPES,
) -> Path:
    """Download a data set and return its folder; an existing one is not downloaded again.

    Everything happens in a temporary folder beside the target, which is renamed at the end, so an
    interrupted or refused download leaves nothing that looks like data.

    Raises:
        InputError: the data set cannot be downloaded by this name.
        StageError: the server does not respond, or the md5 of a file does not match.
    """
    if name in KNOWN and not KNOWN[name].folders:
        raise InputError(f"{name}: comes with the installation and needs no download")
    if name not in recipes:
        by_hand = f" ({KNOWN[name].by_hand})" if name in KNOWN else ""
        raise InputError(
            f"{name}: cannot be downloaded{by_hand}, expected one of {', '.join(recipes)}"
        )
    recipe, root = recipes[name], data_root_path(data_root)
    place = root / recipe.folder
    existing = _existing_folder(name, root, place)
    if existing is not None:
        return existing
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=root) as beside:
            _make(recipe, Path(beside), progress).rename(place)
    except (OSError, http.client.HTTPException, tarfile.TarError) as error:
        raise StageError(
            f"{name}: could not be downloaded to {root} ({error}); try again"
        ) from error
    return place


def _existing_folder(name: str, root: Path, place: Path) -> Path | None:
    """The folder of a complete set; ``None`` if it must be downloaded."""
    folder = folder_of(name, root)
    try:
        if folder is not None:
            open_source(name, "test", root)
            return folder
    except InputError as error:
        raise StageError(f"{folder}: exists but is damaged; remove it first ({error})") from error
    if place.exists() and any(place.iterdir()):
        raise StageError(f"{place}: exists but is not {name}; move it away first")
    return None


def _make(recipe: Recipe, beside: Path, progress: Progress | None) -> Path:
    """Create the complete folder inside ``beside``."""
    whole = beside / recipe.folder
    if not recipe.is_archive:
        whole.mkdir()
        for remote in recipe.files:
            _fetch(remote, whole / remote.name, recipe.max_bytes, progress)
        return whole
    for remote in recipe.files:
        archive = beside / f"archive-{remote.name}"
        _fetch(remote, archive, recipe.max_bytes, progress)
        _unpack(archive, beside, recipe.max_bytes)
        archive.unlink()
    if not whole.is_dir():
        raise StageError(f"{recipe.files[0].url}: the archive has no folder {recipe.folder}")
    return whole


def _unpack(archive: Path, folder: Path, max_bytes: int) -> None:
    """Extract plain files and folders from an archive, checking the size of each beforehand.

    Raises:
        StageError: it has links, devices, names that lead outside, or too much data.
    """
    n_bytes = 0
    with tarfile.open(archive) as tar:
        # Python 3.11.2, which Debian 12 has, lacks filters: the checks below do not need them.
        tar.extraction_filter = getattr(tarfile, "data_filter", None)
        for member in tar:
            n_bytes += member.size
            if leads_out(member.name) or not (member.isfile() or member.isdir()):
                raise StageError(
                    f"{archive.name}: {member.name} is a link, a device or leads outside; refused"
                )
            if n_bytes > max_bytes:
                raise StageError(
                    f"{archive.name}: unpacks to more than {max_bytes:,} bytes; refused"
                )
            tar.extract(member, folder, set_attrs=False)


def _fetch(remote: Remote, path: Path, max_bytes: int, progress: Progress | None) -> None:
    digest = hashlib.md5(usedforsecurity=False)
    n_done = 0
    with urllib.request.urlopen(remote.url, timeout=_TIMEOUT_S) as answer, path.open("wb") as file:
        n_total = int(answer.headers.get("Content-Length") or 0)
        while block := answer.read(_BLOCK_BYTES):
            if max(n_total, n_done + len(block)) > max_bytes:
                raise StageError(f"{remote.url}: sends more than {max_bytes:,} bytes; stopped")
            digest.update(block)
            file.write(block)
            n_done += len(block)
            if progress:
                progress(remote.name, n_done, n_total)
    if digest.hexdigest() != remote.md5:
        raise StageError(
            f"{remote.url}: md5 is {digest.hexdigest()}, expected {remote.md5} ({n_done} bytes "
            "received); nothing was kept, try again or from another network"
        )
