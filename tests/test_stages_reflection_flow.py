"""The flow of batches: one core each, rows independent of the number of cores, batch size."""

import threading
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made import extract
from torch import nn

from pipeline.executors import LocalExecutor
from stages.data.registry import SourceSpec
from stages.errors import InputError
from stages.reflection.extraction import Extraction, fitted
from stages.reflection.flow import flow_of
from stages.reflection.forward import Forward
from stages.reflection.named_layer import NamedLayer
from stages.sensing.build import build_network
from stages.sensing.model import Sensing, describe
from stages.sensing.weights import save_weights
from store.catalog import FeatureStore
from store.featureset import FeatureSet
from store.shards import Shard

CLASSES = tuple("abcdefghij")

TWO_AT_ONCE = """
import threading
import torch
from torch import nn

both = threading.Barrier(2, timeout=20)

class Net(nn.Module):
    def __init__(self, n_classes):
        super().__init__()
        self.last = nn.Linear(48, n_classes)

    def forward(self, pixels):
        if len(pixels) == 9:
            both.wait()
            with open(__file__ + ".log", "a") as log:
                print(torch.get_num_threads(), file=log)
        return self.last(nn.functional.adaptive_avg_pool2d(pixels, 4).flatten(1))
"""


def stage_of(
    folder: Path, network: str = "cnn2", n_rows: int = 40, **changes: object
) -> Extraction:
    """Random images under a network with random weights, in one shard."""
    torch.manual_seed(0)
    module = build_network(network, 10).eval()
    card = describe(
        module, name="n", network_name=network, class_names=CLASSES, image_size=32, family="images"
    )
    (folder / "weights.safetensors").write_bytes(save_weights(module))
    images = np.random.default_rng(0).integers(0, 256, (n_rows, 32, 32, 3), np.uint8)
    np.save(folder / "images.npy", images)
    source = SourceSpec(str(folder / "images.npy"), "test", "")
    return replace(Extraction(source, card, str(folder / "weights.safetensors")), **changes)


def run(stage: Extraction, place: Path, n_threads: int) -> FeatureSet:
    return extract(FeatureStore(str(place)).prepare(), stage, LocalExecutor(n_threads))


def test_rows_do_not_depend_on_the_number_of_cores(tmp_path: Path) -> None:
    stage = stage_of(tmp_path, batch_rows=3)
    alone, shared = (run(stage, tmp_path / str(n), n).read("features") for n in (1, 4))
    np.testing.assert_array_equal(alone, shared)


def test_every_core_has_its_own_batch(tmp_path: Path) -> None:
    """The network waits until two batches are in it, and notes the threads of a layer."""
    (tmp_path / "net.py").write_text(TWO_AT_ONCE)
    stage = stage_of(tmp_path, f"{tmp_path}/net.py:Net", n_rows=18, batch_rows=9)
    run(stage, tmp_path / "store", 2)
    assert (tmp_path / "net.py.log").read_text().split() == ["1", "1"]
    counts: list[int] = []
    later = threading.Thread(target=lambda: counts.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert counts == [2]  # what comes after it has all cores again


def test_rows_do_not_depend_on_reading_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = stage_of(tmp_path, batch_rows=3)
    at_once = run(stage, tmp_path / "at once", 2).read("features")
    monkeypatch.setattr("stages.reflection.reading_ahead.SLOW_S", -1.0)
    np.testing.assert_array_equal(run(stage, tmp_path / "ahead", 2).read("features"), at_once)


def sensing_of(precision: str = "fp32") -> Sensing:
    torch.manual_seed(0)
    network = build_network("resnet18", 10).eval()
    card = describe(
        network, name="n", network_name="resnet18", class_names=CLASSES, image_size=32, family="x"
    )
    return Sensing(network, card, precision)  # type: ignore[arg-type]  # a Literal's value


@pytest.mark.parametrize(
    ("n_threads", "n_images", "expected"), [(1, 999, 1), (4, 999, 4), (4, 24, 3), (4, 1, 1)]
)
def test_there_are_as_many_networks_as_cores_and_memory_allow(
    n_threads: int, n_images: int, expected: int, tmp_path: Path
) -> None:
    forward = Forward(sensing_of(), "", None, batch_rows=8)
    source = stage_of(tmp_path).source.open()
    assert len(flow_of(source, forward, n_threads, n_images).networks) == expected
    with_layer = replace(forward, layer=NamedLayer("conv1"))
    assert len(flow_of(source, with_layer, n_threads, n_images).networks) == 1


def test_networks_share_their_weights_and_nothing_else() -> None:
    forward = Forward(sensing_of(), "", None, batch_rows=8)
    twin = forward.twin()
    pairs = list(zip(forward.sensing.parameters(), twin.sensing.parameters(), strict=True))
    assert all(one.data_ptr() == other.data_ptr() for one, other in pairs)
    modules = {id(module) for module in forward.sensing.modules()}
    assert modules.isdisjoint(id(module) for module in twin.sensing.modules())


@pytest.mark.parametrize(
    ("precision", "asked", "expected"),
    [("fp32", None, 32), ("bf16", None, 64), ("fp32", 100, 100)],
)
def test_the_batch_size_is_the_requested_one_or_fits_the_network(
    tmp_path: Path, precision: str, asked: int | None, expected: int
) -> None:
    stage = stage_of(tmp_path, "resnet18", precision=precision, batch_rows=asked)
    assert fitted(stage, LocalExecutor(1, memory_bytes=2**32), 1).batch_rows == expected


def test_weights_rounded_once_equal_autocast() -> None:
    once, each_time = sensing_of("bf16"), sensing_of()
    each_time.precision = "bf16"
    images = torch.randint(0, 256, (5, 32, 32, 3), dtype=torch.uint8)
    convolutions = [each for each in once.modules() if isinstance(each, nn.Conv2d)]
    assert {each.weight.dtype for each in convolutions} == {torch.bfloat16}
    assert once.weight.dtype == torch.float32
    for one, other in zip(once(images), each_time(images), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ],
    ids=lambda error: str(error)[:20],
)
def test_a_batch_that_does_not_fit_is_freed_before_its_halves_are_computed(
    error: Exception,
) -> None:
    forward, made = Forward(sensing_of(), "", None, batch_rows=4), list[weakref.ref[torch.Tensor]]()

    def fail_for_several(module: nn.Module, args: tuple[torch.Tensor]) -> None:
        assert not any(each() is not None for each in made)
        activations = args[0] + 1
        made.append(weakref.ref(activations))
        if len(activations) > 1:
            raise error

    forward.sensing.network.register_forward_pre_hook(fail_for_several)
    out = {"features": np.zeros((4, 64), np.float32), "logits": np.zeros((4, 10), np.float32)}

    assert forward.fill(out, np.ones((4, 32, 32, 3), np.uint8)) == {}
    assert forward.batch_rows == 1
    assert len(made) == 6  # batches of 4 and 2, then one image at a time


def test_a_device_that_torch_cannot_use_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    with pytest.raises(InputError, match=r"device cuda:99: torch \S+ cannot use it"):
        run(stage_of(tmp_path, device="cuda:99"), tmp_path / "store", 1)
    assert not list(tmp_path.glob("store/features/*"))


def test_convolutions_are_not_rounded_to_tf32(tmp_path: Path) -> None:
    forward, seen = Forward(sensing_of(), "", None, batch_rows=8), []
    forward.sensing.register_forward_pre_hook(
        lambda *_: seen.append(torch.backends.cudnn.allow_tf32)
    )
    flow = flow_of(stage_of(tmp_path).source.open(), forward, 2, 99)
    out = {"features": np.empty((8, 64), np.float32), "logits": np.empty((8, 10), np.float32)}

    assert len(list(flow.through(Shard(0, 0, 8), out))) == 1
    assert seen == [False]
    assert torch.backends.cudnn.allow_tf32  # as before
