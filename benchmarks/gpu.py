"""`make bench-gpu`: check numbers and speed of one GPU in at most eight minutes.

Each check has a process of its own and is reported as it ends: OK or FAILED with a figure, and the
aim. Numbers are compared with those of the CPU. Sets of noise images and untrained networks are
made first, which is not timed. The exit code is 1 if a check failed, and 2 without a GPU.

`--device cpu --quick` runs the same code on a CPU with small sizes; speed is then not judged.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from benchmarks import head_training, images, machine, photographs
from benchmarks.commands import INTRO_PIPE, cost_of
from benchmarks.end_to_end import seconds_at_work
from benchmarks.measuring import WrongNumbersError
from pipeline.executors import LocalExecutor
from pipeline.journal import Journal
from stages.data.registry import SourceSpec
from stages.introspection.head import Head, predict_probabilities
from stages.introspection.head_params import HeadParams
from stages.introspection.head_training import HeadTraining
from stages.reflection.extraction import Extraction, extraction_job
from stages.reflection.forward import Forward
from stages.reflection.named_layer import ARRAY, NamedLayer
from stages.reflection.perturbation import Pgd
from stages.sensing.card import Precision
from stages.sensing.model import Sensing, load_sensing, normalised
from stages.sensing.sensing_training import SensingTraining
from stages.sensing.train_params import TrainParams
from store.catalog import FeatureStore
from store.featureset import FeatureSet
from store.verify import verify_feature_set

FP32, BF16 = 1e-4, 2e-2
"""Largest difference from the CPU in float32, relative to the largest value."""

T = TypeVar("T")


@dataclass(frozen=True)
class Setting:
    """Device, small or full sizes, and an empty folder."""

    device: str
    is_quick: bool
    folder: Path

    def pick(self, quick: T, full: T) -> T:
        """One of two values, the first in a trial."""
        return quick if self.is_quick else full

    def images(self, quick: int, full: int) -> images.Made:
        """Noise images of 32x32 pixels, and the weights of an untrained network."""
        network = self.pick("cnn2", images.NETWORK)
        return images.make(self.folder / "images", self.pick(quick, full), network)


@dataclass(frozen=True)
class Check:
    """A figure of a setting, and its limits.

    Attributes:
        measure: computes the figure. It raises ``WrongNumbersError`` where numbers are wrong.
        unit: what is measured.
        at_most, at_least: the aim.
        limit_s: seconds after which the check is killed; ten times as many in a trial.
        is_speed: whether the figure says nothing at small sizes.
    """

    measure: Callable[[Setting], float]
    unit: str
    at_most: float | None = None
    at_least: float | None = None
    limit_s: float = 20
    is_speed: bool = False

    def is_reached(self, figure: float) -> bool:
        """Whether a figure is finite and within the limits."""
        most = float("inf") if self.at_most is None else self.at_most
        least = float("-inf") if self.at_least is None else self.at_least
        return bool(np.isfinite(figure)) and least <= figure <= most

    @property
    def aim(self) -> str:
        """The limits as text."""
        if self.at_most is not None:
            return f"at most {self.at_most:g}"
        return f"at least {self.at_least:g}" if self.at_least is not None else "no aim"


# Numbers


def vectors(precision: Precision, setting: Setting) -> float:
    """Largest difference of features and logits of an extraction from fp32 on a CPU."""
    made = setting.images(50, 4_000)
    found = extracted(made, setting, precision)
    right = extracted(made, replace(setting, device="cpu"), "fp32")
    return max(apart(found.read(name), right.read(name)) for name in ("features", "logits"))


def layer_gradients(setting: Setting) -> float:
    """Largest difference of the stored gradients of another layer from those of a CPU."""
    made, layer = setting.images(50, 500), NamedLayer("conv1", "bce")
    found = extracted(made, setting, "fp32", layer=layer)
    right = extracted(made, replace(setting, device="cpu"), "fp32", layer=layer)
    return apart(found.read(ARRAY), right.read(ARRAY))


def extracted(
    made: images.Made, setting: Setting, precision: Precision, **changes: Any
) -> FeatureSet:
    """The features of all images, in a store of the device."""
    stage = Extraction(
        SourceSpec(str(made.dataset), "test", ""),
        made.card(),
        str(made.weights),
        precision,
        device=setting.device,
    )
    return stored(replace(stage, **changes), setting)


def stored(stage: Extraction, setting: Setting) -> FeatureSet:
    """The features of a stage, in a store of the device; every shard must have been computed."""
    store = FeatureStore(str(store_of(setting)))
    journal = Journal.of(store.location, ["extract"])
    found: FeatureSet = extraction_job(store, stage, LocalExecutor()).run(journal).output
    return found


def store_of(setting: Setting) -> Path:
    """The folder of the store of a device."""
    return setting.folder / f"store-{setting.device}"


def head_predictions(setting: Setting) -> float:
    """Largest difference of probabilities of an untrained H from those of a CPU."""
    data = head_training.synthetic(setting.pick(100, 50_000))
    torch.manual_seed(0)
    head = Head(replace(data.spec, M=1.0)).eval()
    right = predict_probabilities(head, data.features, data.logits)
    found = predict_probabilities(head.to(setting.device), data.features, data.logits)
    return apart(found, right)


def training_of_f(precision: Precision, setting: Setting) -> float:
    """Difference of the mean loss of an epoch of f, relative to that on a CPU in fp32."""
    made = setting.images(50, 2_000)

    def loss(device: str, precision: Precision) -> float:
        stage = training(made, precision, device, batch=made.n_rows // 4)
        return stage.step(stage.start(), 0, silent)["loss"]

    return apart(loss(setting.device, precision), loss("cpu", "fp32"))


def training(made: images.Made, precision: Precision, device: str, batch: int) -> SensingTraining:
    """Training of the network on its noise."""
    params = TrainParams(made.network_name, epochs=2, batch=batch, lr=0.01, precision=precision)
    return SensingTraining("m", params, SourceSpec(str(made.dataset), "test", ""), device=device)


def training_of_h(precision: Precision, setting: Setting) -> float:
    """Difference of the mean loss of an epoch of H, relative to that on a CPU in fp32."""
    data = head_training.synthetic(setting.pick(500, 5_000))

    def loss(device: str, precision: Precision) -> float:
        params = HeadParams(seeds=(0, 1), precision=precision)
        stage = HeadTraining(data.features, data.logits, data.labels, data.spec, params, device)
        return stage.step(stage.start(), 0, silent)["loss"]

    return apart(loss(setting.device, precision), loss("cpu", "fp32"))


def attacked_pixels(setting: Setting) -> float:
    """Share of pixels that ten steps of PGD change as on a CPU; signs of tiny gradients differ."""
    made = setting.images(50, 500)
    pixels = torch.from_numpy(np.load(made.images))
    moved = [
        Pgd("uniform").of(load_sensing(made.card(), made.weights, device))(pixels.to(device)).cpu()
        for device in (setting.device, "cpu")
    ]
    return float((moved[0] == moved[1]).double().mean())


def out_of_memory(setting: Setting) -> float:
    """Difference of logits from a CPU's, of a batch for which there is not enough memory."""
    made = setting.images(1_000, 60_000)
    pixels = np.load(made.images)
    sensing = load_sensing(made.card(), made.weights, setting.device)
    forward = Forward(sensing, str(made.weights), None, batch_rows=len(pixels))
    shapes = {"features": sensing.card.feature_dim, "logits": sensing.card.n_classes}
    out = {name: np.zeros((len(pixels), n), np.float32) for name, n in shapes.items()}
    with little_memory(setting):
        failed = forward.fill(out, pixels)
    if failed or not 1 < forward.batch_rows < len(pixels):
        raise WrongNumbersError(f"{len(failed)} failed rows, in batches of {forward.batch_rows}")
    return apart(out["logits"][:64], made.logits(0, 64).numpy())


@contextmanager
def little_memory(setting: Setting) -> Iterator[None]:
    """Occupy all memory of the GPU but 2 GiB; on a CPU, allow this process 32 MiB more."""
    if setting.device == "cpu":
        with limited_address_space(2**25):
            yield
        return
    free, _ = torch.cuda.mem_get_info(setting.device)
    occupied = torch.empty(free - 2**31, dtype=torch.uint8, device=setting.device)
    yield
    del occupied


@contextmanager
def limited_address_space(n_bytes: int) -> Iterator[None]:
    """Let this process map only so many bytes more."""
    import resource

    n_pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    limit = n_pages * os.sysconf("SC_PAGE_SIZE") + n_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


# Whole extractions


def through_ray(setting: Setting) -> float:
    """Difference of logits from a CPU's, of `extract` with one worker on Ray."""
    made, store = setting.images(100, 10_000), setting.folder / "store"
    command = ["extract", "--dataset", str(made.dataset), "--network", made.network_name]
    command += ["--weights", str(made.weights), "--store", str(store), "--executor", "ray"]
    cost_of([*INTRO_PIPE, *command, *workers(setting)])
    (found,) = FeatureStore(str(store)).feature_sets()
    devices = {receipt.facts["device"] for receipt in found.shard_set.receipts()}
    if devices != {torch.device(setting.device).type}:
        raise WrongNumbersError(f"computed on {', '.join(devices)}")
    return apart(found.read("logits", 0, 64), made.logits(0, 64).numpy())


def workers(setting: Setting) -> list[str]:
    """Options for one worker on the device."""
    return ["--workers", "1"] if setting.device == "cpu" else ["--gpus", "1"]


def verified_store(setting: Setting) -> float:
    """Seconds from an npy file of 32x32 images to a store, all files checked; bf16."""
    made = setting.images(50, 950_000)
    began = time.perf_counter()
    found = extracted(made, setting, "bf16")
    problems = list(verify_feature_set(found))
    seconds = time.perf_counter() - began
    if problems:
        raise WrongNumbersError(f"{len(problems)} problems, first: {problems[0]}")
    if (difference := apart(found.read("logits", 0, 50), made.logits(0, 50).numpy())) > BF16:
        raise WrongNumbersError(f"logits differ from those of a CPU by {difference:.1e}")
    return seconds


def photographs_rate(setting: Setting) -> float:
    """Seconds that reading JPEG files takes alone, over those of an extraction at 224 pixels.

    The time before the first image does not count.
    """
    n_different, n_rows = setting.pick(2, 400), setting.pick(4, 8_000)
    folder = photographs.write_photographs(setting.folder / "photographs", n_different)
    for file in list(folder.rglob("*.jpg")):
        for number in range(1, n_rows // n_different):
            file.with_stem(f"{file.stem}-{number}").hardlink_to(file)
    name = setting.pick("cnn2", "torchvision:resnet50")
    network = photographs.network_of(name)
    stage = photographs.stage_of(folder, network, name, setting.folder / "weights")
    reading_s = seconds_of(lambda: photographs.read_all(stage.source.open()), setting)
    found = stored(replace(stage, device=setting.device), setting)
    photographs.check(found.read("logits", 0, 4), folder, network)
    return reading_s / seconds_at_work(store_of(setting))


# Speed


def head_speed(setting: Setting) -> float:
    """Seconds of an epoch of the usual loop over a DataLoader, over those of ours; H, fp32."""
    n_rows = setting.pick(500, 50_000)
    ours = head_training.ours((0,), "fp32", n_rows, setting.folder, setting.device)
    usual = head_training.ordinary(n_rows, setting.folder, setting.device)
    ours()  # the first epoch also starts CUDA
    return seconds_of(usual, setting) / seconds_of(ours, setting)


def attack_speed(setting: Setting) -> float:
    """Seconds of a bare forward and backward pass per step, over those of PGD."""
    made = setting.images(10, 2_000)
    sensing = load_sensing(made.card(), made.weights, setting.device)
    pixels = torch.from_numpy(np.load(made.images)).to(setting.device)
    attack = Pgd("uniform", steps=setting.pick(2, 10))

    def bare() -> None:
        for _ in range(attack.steps):
            passed_back(sensing, normalised(pixels, sensing.mean, sensing.scale))

    move = attack.of(sensing)
    bare()
    move(pixels)
    return seconds_of(bare, setting) / seconds_of(lambda: move(pixels), setting)


def passed_back(sensing: Sensing, pixels: Tensor) -> None:
    """A forward pass, and a backward pass to the pixels."""
    pixels.requires_grad_(True)
    with torch.enable_grad():
        _, logits = sensing.vectors(pixels)
        torch.autograd.grad(logits.logsumexp(1).sum(), pixels)


def training_speed(setting: Setting) -> float:
    """Seconds of bare training steps on the same batches, over those of an epoch of f; bf16."""
    made, batch = setting.images(50, 20_000), setting.pick(25, 256)
    stage = training(made, "bf16", setting.device, batch)
    state = stage.start()
    network = state.network
    optimiser = torch.optim.SGD(network.parameters(), 0.0, fused=True)
    pixels = normalised(state.data.images[:batch], state.mean, state.scale)
    labels = state.data.labels[:batch]

    def bare() -> None:
        for _ in range(made.n_rows // batch):
            with torch.autocast(torch.device(setting.device).type, torch.bfloat16):
                loss = functional.cross_entropy(network.train()(pixels), labels)
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimiser.step()

    stage.step(state, 0, silent)
    bare()
    ours_s = seconds_of(lambda: stage.step(state, 1, silent), setting)
    return seconds_of(bare, setting) / ours_s


def seconds_of(work: Callable[[], object], setting: Setting) -> float:
    """Wall-clock seconds until the device is done."""
    began = time.perf_counter()
    work()
    if setting.device != "cpu":
        torch.cuda.synchronize(setting.device)
    return time.perf_counter() - began


def apart(found: NDArray[Any] | float, right: NDArray[Any] | float) -> float:
    """Largest difference, relative to the largest magnitude; NaN where one is NaN."""
    return float(np.abs(np.subtract(found, right)).max() / np.abs(right).max())


def silent(n_rows: int) -> None:
    """Report no progress."""


OF_LARGEST, OF_LOSS = "of the largest value", "of the loss"
CHECKS = {
    "vectors-fp32": Check(partial(vectors, "fp32"), OF_LARGEST, FP32, limit_s=40),  # loads CUDA
    "vectors-bf16": Check(partial(vectors, "bf16"), OF_LARGEST, BF16),
    "layer-gradients": Check(layer_gradients, OF_LARGEST, FP32),
    "head": Check(head_predictions, OF_LARGEST, FP32),
    "train-f-fp32": Check(partial(training_of_f, "fp32"), OF_LOSS, 1e-2),
    "train-f-bf16": Check(partial(training_of_f, "bf16"), OF_LOSS, 5e-2),
    "train-h-fp32": Check(partial(training_of_h, "fp32"), OF_LOSS, 1e-3),
    "train-h-bf16": Check(partial(training_of_h, "bf16"), OF_LOSS, BF16),
    "attack": Check(attacked_pixels, "of the pixels as on a CPU", at_least=0.95),
    "out-of-memory": Check(out_of_memory, OF_LARGEST, FP32, limit_s=40),
    "ray": Check(through_ray, OF_LARGEST, FP32, limit_s=50),
    "store": Check(verified_store, "s from npy to a verified store", 20, limit_s=70, is_speed=True),
    "photographs": Check(
        photographs_rate, "of the rate of reading", at_least=0.8, limit_s=50, is_speed=True
    ),
    "head-speed": Check(head_speed, "times the usual loop", at_least=10, limit_s=30, is_speed=True),
    "attack-speed": Check(attack_speed, "of bare steps", at_least=0.5, is_speed=True),
    "train-speed": Check(training_speed, "of bare steps", at_least=0.8, is_speed=True),
}
"""Name -> check. Together they take at most eight minutes."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all or some checks, each in a process of its own; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 or cpu (default: cuda)")
    parser.add_argument("--quick", action="store_true", help="small sizes; speed is not judged")
    parser.add_argument("--only", action="append", choices=CHECKS, help="may be repeated")
    parser.add_argument("--folder", help="where to work (default: the system's temporary folder)")
    parser.add_argument("--figure", action="store_true", help="only compute, in this process")
    asked = parser.parse_args(arguments)
    if asked.figure:
        print(
            json.dumps(
                CHECKS[asked.only[0]].measure(
                    Setting(asked.device, asked.quick, Path(asked.folder))
                )
            )
        )
        return 0
    if asked.device != "cpu" and not torch.cuda.is_available():
        print("no GPU that torch can use: --device cpu --quick tries the script", file=sys.stderr)
        return 2
    about = machine.description()
    print(f"{about['accelerator']}, {about['processor']}; {about['versions']}", flush=True)
    results = []
    for name in asked.only or CHECKS:
        with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
            results.append(reported(name, Setting(asked.device, asked.quick, Path(folder))))
    print(f"{sum(results)} of {len(results)} checks OK")
    return 0 if all(results) else 1


def reported(name: str, setting: Setting) -> bool:
    """Run a check, print how it ended, and return whether it is OK."""
    check, began = CHECKS[name], time.monotonic()
    try:
        figure = figure_of(name, setting, check.limit_s * setting.pick(10, 1))
        is_judged = not (check.is_speed and setting.is_quick)
        is_ok = check.is_reached(figure) or not is_judged
        found = f"{figure:.3g} {check.unit} ({check.aim if is_judged else 'trial'})"
    except WrongNumbersError as error:
        is_ok, found = False, str(error).strip().splitlines()[-1]
        print(error, file=sys.stderr)
    seconds = time.monotonic() - began
    print(f"{'OK' if is_ok else 'FAILED':6}  {name:15}  {found}, {seconds:.0f} s", flush=True)
    return is_ok


def figure_of(name: str, setting: Setting, limit_s: float) -> float:
    """The figure of a check, from a process of its own.

    Raises ``WrongNumbersError`` if it fails, or does not end within ``limit_s``.
    """
    ends = time.monotonic() + limit_s
    command = [sys.executable, "-m", "benchmarks.gpu", "--figure", "--only", name]
    command += ["--device", setting.device, "--folder", str(setting.folder)]
    command += ["--quick"] if setting.is_quick else []
    cost = cost_of(command, kill_when=lambda: time.monotonic() > ends)
    if not cost.stdout:
        raise WrongNumbersError(f"did not end within {limit_s:g} s")
    return float(json.loads(cost.stdout.splitlines()[-1]))


if __name__ == "__main__":
    sys.exit(main())
