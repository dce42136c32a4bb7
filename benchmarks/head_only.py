"""Per-sample gradients of a last layer, 512 to 10: computed from features, then stored or not.

Ours keeps the two factors, with checksums, receipt and fsync; `dense` writes r_x out in closed
form, into the store and, like the others, into a plain array. The loss is the mean squared error
to ``M`` in all classes, batches have 128 rows, every method has one thread. Only the files of the
store are synced and have checksums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.autograd import serial_gradients, vmap_gradients
from benchmarks.measuring import Contender, Once, WrongNumbersError, cpu_per_row, disk_per_row
from benchmarks.part import Figure, Part, Sizes
from pipeline.memory import keep_freed_memory
from stages.reflection.rank_one import last_layer_gradient
from store.catalog import FeatureStore
from store.encoding import encode_rows
from store.schema import ArraySpec, Schema

WIDTH, N_CLASSES, M = 512, 10, 3.0
BATCH_ROWS = 128
TOLERANCE = 1e-5
"""Largest difference from the closed form in float64, over the largest gradient."""

OfBatch = Callable[[Tensor], Tensor]
"""Features ``[n, WIDTH]`` to gradients ``[n, N_CLASSES * WIDTH]``, class-major."""


class Head(nn.Module):
    """The last layer, with the attributes that other libraries need."""

    def __init__(self) -> None:
        super().__init__()
        torch.set_num_threads(1)  # the time of threads that wait for each other says little
        keep_freed_memory()  # as in our workers
        torch.manual_seed(0)
        self.linear = nn.Linear(WIDTH, N_CLASSES)

    @property
    def device(self) -> torch.device:
        """Device of the layer."""
        return self.linear.weight.device

    def forward(self, features: Tensor) -> Tensor:
        """Features to logits."""
        logits: Tensor = self.linear(features)
        return logits


def features_of(n_rows: int) -> Tensor:
    """Non-negative features, as after a ReLU."""
    rng = np.random.default_rng(0)
    return torch.from_numpy(np.abs(rng.standard_normal((n_rows, WIDTH), dtype=np.float32)))


def closed_form(features: Tensor) -> NDArray[np.float64]:
    """``(2/N)(z - M) ⊗ f`` in float64, from the formula alone."""
    head = Head().double()
    f = features.double().numpy()
    z = f @ head.linear.weight.detach().numpy().T + head.linear.bias.detach().numpy()
    return ((2 / N_CLASSES) * (z - M)[:, :, None] * f[:, None, :]).reshape(len(f), -1)


def loss_of(logits: Tensor) -> Tensor:
    """Mean squared error to ``M`` of each row, summed, so that rows are independent."""
    return ((logits - M) ** 2).mean(dim=-1).sum()


def dense(head: Head) -> OfBatch:
    """Our gradients, dense."""

    @torch.no_grad()
    def gradients(features: Tensor) -> Tensor:
        return last_layer_gradient(features, head(features), M=M).dense()

    return gradients


def opacus(head: Head) -> OfBatch:
    """Opacus' hooks."""
    from opacus.grad_sample import GradSampleModule

    module = GradSampleModule(head, loss_reduction="sum")

    def gradients(features: Tensor) -> Tensor:
        module.zero_grad(set_to_none=True)
        loss_of(module(features)).backward()
        return head.linear.weight.grad_sample.flatten(1)

    return gradients


def backpack(head: Head) -> OfBatch:
    """BackPACK's BatchGrad."""
    from backpack import backpack as recording
    from backpack import extend
    from backpack.extensions import BatchGrad

    extend(head.linear)

    def gradients(features: Tensor) -> Tensor:
        head.zero_grad(set_to_none=True)
        with recording(BatchGrad()):
            loss_of(head(features)).backward()
        found: Tensor = head.linear.weight.grad_batch.flatten(1)
        return found

    return gradients


def bergson(head: Head) -> OfBatch:
    """Bergson's collector; rows are documents of one token."""
    from stages.sensing.torchvision_ops import import_torchvision

    import_torchvision()  # which it imports itself, and cannot on a CPU build of torch
    from bergson.collector.gradient_collectors import StreamingGradientCollector

    collector = StreamingGradientCollector(model=head, dtype=torch.float32)

    def gradients(features: Tensor) -> Tensor:
        with collector:
            loss_of(head(features[:, None, :])).backward()
        head.zero_grad(set_to_none=True)
        found: Tensor = collector.mod_grads.pop("linear")
        return found

    return gradients


def trak(head: Head) -> OfBatch:
    """TRAK's functional gradient computer."""
    from trak.gradient_computers import FunctionalGradientComputer

    computer = FunctionalGradientComputer(
        head, _output()(), WIDTH * N_CLASSES, torch.float32, "cpu", ["linear.weight"]
    )

    def gradients(features: Tensor) -> Tensor:
        found = computer.compute_per_sample_grad((features,))
        gradient: Tensor = found["linear.weight"].flatten(1)
        return gradient

    return gradients


def _output() -> type[Any]:
    """The loss in the form that TRAK needs."""
    from trak.modelout_functions import AbstractModelOutput

    class Loss(AbstractModelOutput):
        def __init__(self) -> None:
            pass

        @staticmethod
        def get_output(model: Any, weights: Any, buffers: Any, features: Tensor) -> Tensor:
            logits = torch.func.functional_call(model, (weights, buffers), features[None])
            return loss_of(logits)

        def get_out_to_loss_grad(self, *_: Any) -> Tensor:
            return torch.ones(1)

    return Loss


def vmap(head: Head) -> OfBatch:
    """torch.func: vmap over grad."""
    return partial(vmap_gradients, head.linear, loss="mse-m", M=M)


def autograd(head: Head) -> OfBatch:
    """One backward pass per row."""
    return partial(serial_gradients, head.linear, loss="mse-m", M=M)


def batches(features: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield batches and their first row."""
    for start in range(0, len(features), BATCH_ROWS):
        yield start, features[start : start + BATCH_ROWS]


def computed(method: Callable[[Head], OfBatch], n_rows: int, _: Path) -> Once:
    """Gradients that are not stored."""
    features, of_batch = features_of(n_rows), method(Head())
    head_rows = features[:BATCH_ROWS]
    check(of_batch(head_rows).detach().numpy(), head_rows)

    def once() -> None:
        for _, batch in batches(features):
            of_batch(batch)

    return once


def in_array(method: Callable[[Head], OfBatch], n_rows: int, folder: Path) -> Once:
    """Gradients into a plain array of numpy."""
    features, of_batch = features_of(n_rows), method(Head())
    path = folder / "gradients.npy"

    def once() -> None:
        out = np.lib.format.open_memmap(path, "w+", np.float32, (n_rows, N_CLASSES * WIDTH))
        for start, batch in batches(features):
            out[start : start + len(batch)] = of_batch(batch).detach().numpy()
        out.flush()

    return checked(once, lambda: np.load(path, mmap_mode="r"), features)


def in_bergson(n_rows: int, folder: Path) -> Once:
    """Gradients into Bergson's own index."""
    features, of_batch = features_of(n_rows), bergson(Head())
    from bergson.builder import Builder
    from bergson.config import PreprocessConfig

    def once() -> None:
        sizes = {"linear": N_CLASSES * WIDTH}
        builder = Builder(
            range(n_rows), sizes, torch.float32, PreprocessConfig(), path=folder / "index"
        )
        for start, batch in batches(features):
            builder(list(range(start, start + len(batch))), {"linear": of_batch(batch)})
        builder.teardown()

    def back() -> NDArray[Any]:
        return np.fromfile(folder / "index" / "gradients.bin", np.float32).reshape(n_rows, -1)

    return checked(once, back, features)


def in_trak(n_rows: int, folder: Path) -> Once:
    """Gradients into TRAK's own memory map, without its projection."""
    from trak import TRAKer
    from trak.projectors import NoOpProjector

    features, head = features_of(n_rows), Head()

    def once() -> None:
        traker = TRAKer(
            head,
            _output()(),
            n_rows,
            save_dir=str(folder / "trak"),
            device="cpu",
            projector=NoOpProjector(device="cpu"),
            use_half_precision=False,
            grad_wrt=["linear.weight"],
            logging_level=50,
        )
        traker.load_checkpoint(head.state_dict(), model_id=0)
        for _, batch in batches(features):
            traker.featurize((batch,), num_samples=len(batch))

    def back() -> NDArray[Any]:
        scale = np.sqrt(N_CLASSES * WIDTH)  # which TRAK divides by
        stored = np.load(folder / "trak" / "0" / "grads.mmap", mmap_mode="r")
        found: NDArray[Any] = np.concatenate([stored[:BATCH_ROWS], stored[-BATCH_ROWS:]]) * scale
        return found

    return checked(once, back, features)


def in_store(is_dense: bool, n_rows: int, folder: Path) -> Once:
    """Ours in the store: the factors, or the gradients written out."""
    features, head = features_of(n_rows), Head()
    names = {"gradients": N_CLASSES * WIDTH} if is_dense else {"features": WIDTH, "logits": 10}
    schema = Schema(tuple(ArraySpec(name, (n,)) for name, n in names.items()), (("row", "int64"),))
    plan = {
        "name": "rows-test@head",
        "n_rows": n_rows,
        "shard_rows": 10_000,
        "schema": schema.to_json(),
        "inputs": {"source": {"name": "rows"}, "model": {"name": "head"}},
    }
    of_batch = dense(head)

    @torch.no_grad()
    def arrays_of(rows: Tensor) -> dict[str, NDArray[Any]]:
        out = {name: np.empty((len(rows), width), np.float32) for name, width in names.items()}
        for start, batch in batches(rows):
            here = slice(start, start + len(batch))
            if is_dense:
                out["gradients"][here] = of_batch(batch).numpy()
            else:
                out["features"][here] = batch.numpy()
                out["logits"][here] = head(batch).numpy()
        return out

    def once() -> None:
        shards = FeatureStore(str(folder)).prepare().create(plan).shard_set
        for shard in shards.shards:
            arrays = arrays_of(features[shard.start : shard.stop])
            columns = {"row": np.arange(shard.start, shard.stop)}
            files = encode_rows(schema, shard, shards.chunk_rows, arrays, columns)
            shards.commit(shard, files, {})

    def back() -> NDArray[Any]:
        found = FeatureStore(str(folder)).open("rows-test@head")
        if is_dense:
            return found.read("gradients")
        ends = np.r_[:BATCH_ROWS, n_rows - BATCH_ROWS : n_rows]
        f, z = (found.read(name)[ends] for name in ("features", "logits"))
        return last_layer_gradient(f, z, M=M).dense()

    return checked(once, back, features)


def checked(once: Callable[[], None], back: Callable[[], NDArray[Any]], features: Tensor) -> Once:
    """The timed function, after its first and last rows were checked."""
    once()
    found = back()
    ends = [slice(0, BATCH_ROWS), slice(-BATCH_ROWS, None)]
    for end in ends:
        check(np.asarray(found[end]), features[end])
    return once


def check(found: NDArray[Any], features: Tensor) -> None:
    """Raise ``WrongNumbersError`` if gradients differ from the closed form."""
    expected = closed_form(features)
    difference = np.abs(found - expected).max() / np.abs(expected).max()
    if not difference <= TOLERANCE:
        raise WrongNumbersError(f"differs from the closed form by {difference:.1e}")


METHODS: dict[str, Callable[[Head], OfBatch]] = {
    "ours, dense": dense,
    "opacus": opacus,
    "backpack": backpack,
    "bergson": bergson,
    "TRAK": trak,
    "vmap(grad)": vmap,
    "loop with autograd": autograd,
}
STORED = " · stored"
PEERS = ("opacus", "backpack", "bergson", "TRAK", "vmap(grad)", "loop with autograd")


def contenders(sizes: Sizes) -> list[Contender]:
    """Each method, first computed only, then also stored."""
    n = sizes.pick(2_000, 20_000)
    only = [Contender(name, partial(computed, method, n), n) for name, method in METHODS.items()]
    own_files = {"bergson": partial(in_bergson, n), "TRAK": partial(in_trak, n)}
    stored = [
        Contender(name + STORED, own_files.get(name, partial(in_array, method, n)), n)
        for name, method in METHODS.items()
    ]
    in_stores = [
        Contender("ours, factored, in the store", partial(in_store, False, n), n),
        Contender("ours, dense, in the store", partial(in_store, True, n), n),
    ]
    return [*only, *in_stores, *stored]


OURS = "ours, factored, in the store"
PART = Part(
    "head-only",
    "Head only",
    __doc__,
    contenders,
    columns=("cpu s", "seconds", "from", "to", "memory", "on disk"),
    figures=(
        Figure(
            "best peer, stored, over ours factored",
            [p + STORED for p in PEERS],
            OURS,
            cpu_per_row,
            8,
        ),
        Figure(
            "best peer, stored, over ours dense",
            [p + STORED for p in PEERS],
            "ours, dense" + STORED,
            cpu_per_row,
            1,
        ),
        Figure(
            "ours factored over dense, bytes",
            [OURS],
            "ours, dense" + STORED,
            disk_per_row,
            at_most=0.12,
        ),
    ),
)
