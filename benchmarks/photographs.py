"""Photographs of about 500x375 pixels, resized to 256 and cropped to 224: reading, and ResNet-18.

The files are made of scikit-learn's two photographs, each cut out at random, as JPEG of quality 90.
`read` only makes pixels: ours with the threads of a worker, the loop with torchvision's ImageFolder
and a DataLoader. With a ResNet-18 in fp32, ours is `extract`, in the same process; the tuned loop
feeds the folded, channels-last network from a DataLoader, and takes the fastest of several numbers
of threads and batch sizes. All pixels are equal, bit for bit. The weights are untrained. In the
last row, opening a file takes 20 ms longer, as over a slow network.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from benchmarks.measuring import Contender, Facts, Once, WrongNumbersError, wall_per_row
from benchmarks.part import Figure, Part, Sizes
from pipeline.cpus import n_cpus
from pipeline.executors import LocalExecutor
from pipeline.journal import Journal
from stages.data import image_files as files
from stages.data.folder import ALL, folder_source
from stages.data.registry import SourceSpec
from stages.data.resize import Resize
from stages.data.source import ImageSource, ReaderSource, read_each
from stages.reflection.extraction import Extraction, extraction_job
from stages.sensing.build import build_network
from stages.sensing.card import ModelCard, Normalisation
from stages.sensing.folding import folded
from stages.sensing.model import describe
from stages.sensing.torchvision_ops import import_torchvision
from stages.sensing.weights import save_weights
from store.catalog import FeatureStore

RESIZING = Resize((224, 224), 256)
NETWORK, CLASSES = "torchvision:resnet18", ("china", "flower")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
N_LOADERS, BATCHES, BATCH_ROWS = 2, (16, 64), 64
N_TRIED = 192
TOLERANCE = 1e-4


def write_photographs(folder: Path, n_rows: int) -> Path:
    """``n_rows`` different JPEG files in two class folders; gives the folder."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    for label, pixels in zip(CLASSES, load_sample_images().images, strict=True):
        (folder / label).mkdir(parents=True)
        height, width = pixels.shape[:2]
        for number in range(n_rows // 2):
            top, left = rng.integers(0, height - 375), rng.integers(0, width - 500)
            cut = np.ascontiguousarray(pixels[top : top + 375, left : left + 500])
            Image.fromarray(cut).save(folder / label / f"{number:05d}.jpg", quality=90)
    return folder


def _images(folder: Path, n_rows: int) -> Path:
    """The photographs of a contender, beside its folder, which is emptied after each run."""
    return write_photographs(folder.with_name(f"{folder.name}-images"), n_rows)


def _source(images: Path) -> ReaderSource:
    return folder_source(images, "photographs", ALL, RESIZING)


def _their_images(images: Path, *, as_floats: bool) -> Any:  # Any: torchvision has no types
    """The usual data set: uint8 pixels, or the floats that the usual loop gives to a network."""
    import_torchvision()
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    floats = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    steps = [transforms.Resize(256), transforms.CenterCrop(224)]
    steps += floats if as_floats else [transforms.PILToTensor()]
    return ImageFolder(str(images), transforms.Compose(steps))


def ours_read(n_rows: int, folder: Path) -> Once:
    """The pixels of all rows, with one thread per core, as a worker reads them."""
    source = _source(_images(folder, n_rows))
    return lambda: read_all(source)


def read_all(source: ImageSource) -> None:
    """Read all rows with one thread per core, in batches of which the last may be smaller."""
    n_rows = source.n_rows
    starts = range(0, n_rows, BATCH_ROWS)

    def n_read(start: int) -> int:
        return len(read_each(source, start, min(start + BATCH_ROWS, n_rows)).images)

    with ThreadPoolExecutor(n_cpus()) as pool:
        if sum(pool.map(n_read, starts)) != n_rows:
            raise WrongNumbersError("rows are missing")


def loader_read(n_rows: int, folder: Path) -> Once:
    """The pixels of all rows from a DataLoader; compared with ours first."""
    images = _images(folder, n_rows)
    theirs = _their_images(images, as_floats=False)
    some = torch.stack([theirs[row][0] for row in range(8)]).permute(0, 2, 3, 1).numpy()
    if not np.array_equal(some, read_each(_source(images), 0, 8).images):
        raise WrongNumbersError("the pixels differ from ours")

    def once() -> None:
        for _ in _batches(theirs, BATCH_ROWS):
            pass

    return once


def network_of(name: str = NETWORK) -> nn.Module:
    """A network with random weights, always the same."""
    torch.manual_seed(0)
    return build_network(name, len(CLASSES)).eval()


def stage_of(images: Path, network: nn.Module, name: str, weights: Path) -> Extraction:
    """The extraction of all images in fp32; writes the weights of the network."""
    weights.write_bytes(save_weights(network))
    source = SourceSpec(str(images), ALL, "", RESIZING)
    return Extraction(source, _card(network, name), str(weights), "fp32")


def _card(network: nn.Module, name: str) -> ModelCard:
    return describe(
        network,
        name=name.rpartition(":")[2],
        network_name=name,
        class_names=CLASSES,
        image_size=224,
        family="photographs",
        normalisation=Normalisation(MEAN, STD),
    )


def ours_extract(n_rows: int, folder: Path, wait_s: float = 0.0) -> Once:
    """`extract` in this process; its logits are compared with those of the plain network."""
    if wait_s:
        _wait_for_files(wait_s)
    images, network = _images(folder, n_rows), network_of()
    weights = folder.with_name(f"{folder.name}.safetensors")
    stage = stage_of(images, network, NETWORK, weights)

    def once() -> None:
        journal = Journal.of(str(folder), ["extract"])
        extraction_job(FeatureStore(str(folder)), stage, LocalExecutor()).run(journal)

    once()
    check(next(FeatureStore(str(folder)).feature_sets()).read("logits", 0, 8), images, network)
    return once


def _wait_for_files(wait_s: float) -> None:
    """Let the reader of image files wait before it opens each."""
    require_regular = files.require_regular

    def after_a_wait(path: str | Path) -> None:
        time.sleep(wait_s)
        require_regular(path)

    files.require_regular = after_a_wait


def check(found: NDArray[Any], images: Path, network: nn.Module) -> None:
    """Raise ``WrongNumbersError`` if the first logits are not those of the plain network."""
    theirs, n_rows = _their_images(images, as_floats=True), min(8, len(found))
    with torch.no_grad():
        right = network(torch.stack([theirs[row][0] for row in range(n_rows)])).numpy()
    if not (difference := np.abs(found[:n_rows] - right).max()) <= TOLERANCE:
        raise WrongNumbersError(f"the logits differ from the plain network's by {difference:.1e}")


def plain_loop(n_rows: int, folder: Path) -> Once:
    """The usual loop: ToTensor, Normalize, batches of 64; saves the logits."""
    images, network = _images(folder, n_rows), network_of()
    batches = partial(_batches, _their_images(images, as_floats=True), BATCH_ROWS)

    def once() -> None:
        np.save(folder / "logits", _logits(network, batches()))

    return once


def tuned_loop(n_rows: int, folder: Path) -> Once:
    """The fastest of several loops, tried first; stores nothing."""
    images = _images(folder, n_rows)
    theirs = _their_images(images, as_floats=False)
    some = torch.utils.data.Subset(theirs, range(0, n_rows, max(1, n_rows // N_TRIED)))
    network = folded(network_of()).to(memory_format=torch.channels_last)
    ways = list(product(BATCHES, (1, n_cpus())))
    fastest = min(ways, key=lambda way: _seconds(partial(_tuned, network, some, *way)))
    check(_tuned(network, theirs, *fastest, stop=8), images, network_of())

    def once() -> Facts:
        _tuned(network, theirs, *fastest)
        return {"way": f"batch {fastest[0]}, {fastest[1]} threads"}

    return once


def _tuned(
    network: nn.Module, theirs: Any, batch_rows: int, n_threads: int, stop: int | None = None
) -> NDArray[np.float32]:
    """Logits from uint8 pixels, which the processes of the DataLoader make."""
    torch.set_num_threads(n_threads)
    mean, std = (255 * torch.tensor(value)[:, None, None] for value in (MEAN, STD))
    some = theirs if stop is None else torch.utils.data.Subset(theirs, range(stop))
    floats = (
        (pixels.float().sub_(mean).div_(std), label) for pixels, label in _batches(some, batch_rows)
    )
    return _logits(network, floats)


def _batches(theirs: Any, batch_rows: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches from the processes of a DataLoader, which are forked, as in a script on Linux."""
    from torch.utils.data import DataLoader

    how = {"num_workers": N_LOADERS, "multiprocessing_context": "fork"}
    return iter(DataLoader(theirs, batch_size=batch_rows, **how))


def _logits(network: nn.Module, batches: Iterator[tuple[Tensor, Tensor]]) -> NDArray[np.float32]:
    with torch.inference_mode():
        return torch.cat([network(pixels) for pixels, _ in batches]).numpy()


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def contenders(sizes: Sizes) -> list[Contender]:
    """Reading alone, and with a network."""
    many, some = sizes.pick(128, 5_000), sizes.pick(64, 1_000)
    return [
        Contender("ours, read", partial(ours_read, many), many),
        Contender("DataLoader, read", partial(loader_read, many), many),
        Contender("ours, extract", partial(ours_extract, some), some),
        Contender("tuned loop", partial(tuned_loop, some), some),
        Contender("plain loop", partial(plain_loop, some), some),
        Contender("ours, slow files", partial(ours_extract, some, wait_s=0.02), some),
    ]


PART = Part(
    "photographs",
    "Photographs",
    __doc__,
    contenders,
    columns=("rows/s", "seconds", "from", "to", "cpu s", "memory", "on disk"),
    figures=(
        Figure("DataLoader over ours, read", ["DataLoader, read"], "ours, read", wall_per_row, 1),
        Figure("tuned loop over ours, extract", ["tuned loop"], "ours, extract", wall_per_row, 1),
        Figure(
            "ours, extract, over slow files",
            ["ours, extract"],
            "ours, slow files",
            wall_per_row,
            0.9,
        ),
        Figure("plain loop over ours, extract", ["plain loop"], "ours, extract", wall_per_row),
    ),
)
