"""Check a network on images of the run for the properties that later stages rely on.

Features and logits determine the gradients only if the logits are ``W f + b``, if the output for an
image depends only on that image, and if the copy rearranged for speed computes the same output.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.data.source import ImageSource
from stages.errors import InputError
from stages.metrics.finite import finite_rows
from stages.sensing.buffers import kept_buffers
from stages.sensing.device import full_float32, gpus_in_use
from stages.sensing.logit_layers import averaged, linear_map, logit_layers, side_by_side

Found = TypeVar("Found")

N_ROWS, N_PIXELS = 4, 2**20
"""Limits of the images of a run with which a network is checked; fewer if they are large."""

SMALL = 64
"""Height and width up to which a few images are computed on one thread."""

N_TRIES = 16
"""Maximum number of rows to try for readable images."""

TOLERANCE = 2e-4
"""Largest difference, relative to the largest value, that rounding in float32 can cause."""

HEAD_TOLERANCE = 2e-5
"""Like ``TOLERANCE`` for one matrix product, relative to the sum of the magnitudes it adds up."""

BF16_TOLERANCE = 0.3
"""Like ``TOLERANCE`` for a network under autocast to bfloat16."""

N_REPEATS = 16
"""Passes of a network that draws random numbers before its outputs count as equal."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The output of a network for some images.

    Attributes:
        features: input of the last layer, ``[n, feature_dim]`` float32.
        logits: output of the network, ``[n, n_classes]`` float32.
        terms: largest sum of magnitudes that the last layer adds up to a logit.
        eps: machine epsilon of the type in which the network computed them.
    """

    features: Tensor
    logits: Tensor
    terms: float = 0.0
    eps: float = torch.finfo(torch.float32).eps

    def take(self, rows: slice) -> Answer:
        """Select rows."""
        return replace(self, features=self.features[rows], logits=self.logits[rows])

    @property
    def is_finite(self) -> bool:
        """Whether any row is free of NaN and infinity."""
        return bool(finite_rows(self.features, self.logits).any())


def sample_images(source: ImageSource) -> Tensor:
    """A few images of a source, spread over its rows; ``[n, H, W, 3]`` uint8, ``n`` up to 4.

    Unreadable rows are skipped; noise is used if no row can be read.
    """
    n_images = _n_images(source.image_size)
    places = np.linspace(0, source.n_rows - 1, min(N_TRIES, source.n_rows)).astype(int)
    stride = max(1, len(places) // n_images)
    order = sorted(range(len(places)), key=lambda at: (at % stride, at))
    found: list[Tensor] = []
    for at in order:
        row = int(places[at])
        try:
            rows = source.read(row, row + 1)
        except Exception:
            continue
        if not rows.failed:
            found.append(torch.from_numpy(rows.images))
        if len(found) == n_images:
            break
    return torch.cat(found) if found else noise_images(source.image_size)


def noise_images(size: tuple[int, int], n_images: int | None = None) -> Tensor:
    """Noise images, ``[n, H, W, 3]`` uint8, always the same; by default as many as for a check.

    A network may refuse images of one colour.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (n_images or _n_images(size), *size, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def noise_pixels(size: tuple[int, int], n_images: int) -> Tensor:
    """`noise_images` as pixels in [0, 1], ``[n, 3, H, W]`` float32."""
    return noise_images(size, n_images).permute(0, 3, 1, 2).contiguous() / 255


def _n_images(size: tuple[int, int]) -> int:
    return max(1, min(N_ROWS, N_PIXELS // (size[0] * size[1])))


@contextmanager
def evaluating(network: nn.Module, image_size: int) -> Iterator[None]:
    """Eval mode, no gradients, full float32; afterwards everything is restored.

    That includes buffers and random generators. A few small images are faster on one thread:
    several threads would wait for each other at every layer.
    """
    n_threads = torch.get_num_threads()
    if image_size <= SMALL:
        torch.set_num_threads(1)
    was_training = {part: part.training for part in network.modules()}
    numpy_state, python_state = np.random.get_state(), random.getstate()
    network.eval()
    try:
        with (
            torch.no_grad(),
            torch.random.fork_rng(devices=gpus_in_use()),
            full_float32(),
            kept_buffers(network),
        ):
            yield
    finally:
        torch.set_num_threads(n_threads)
        np.random.set_state(numpy_state)
        random.setstate(python_state)
        for part, training in was_training.items():
            part.training = training


def seeded(function: Callable[[Tensor], Found], images: Tensor) -> Found:
    """The result of a function of images with every random generator set to the same seed."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    return function(images)


def computed(
    network: nn.Module, layer: str, pixels: Tensor, noise: Tensor
) -> tuple[Tensor, Answer]:
    """Pixels that a network can compute, and its output for them.

    These are all given pixels, or those that it can compute one by one, or noise if it can compute
    none: it may fail for an image of the run, or for several at once, and extraction handles that.

    Raises:
        InputError: it fails for noise too.
    """
    ask = partial(own_answer, network, layer)
    answer, _ = _attempt(ask, pixels)
    if answer:
        return pixels, answer
    alone = [each for each in torch.split(pixels, 1) if _attempt(ask, each)[0]]
    for chosen in (torch.cat(alone) if alone else noise, alone[0] if alone else noise[:1]):
        answer, error = _attempt(ask, chosen)
        if answer:
            return chosen, answer
    if error is None:  # it returns NaN, which extraction reports
        return chosen, seeded(ask, chosen)
    reason = (str(error).strip() or "no reason given").splitlines()[0]
    raise InputError(
        f"the network fails on images of {tuple(pixels.shape[2:])} pixels with "
        f"{type(error).__name__}: {reason}"
    ) from error


def _attempt(
    ask: Callable[[Tensor], Answer], pixels: Tensor
) -> tuple[Answer | None, Exception | None]:
    """The output if some of it is finite, otherwise the error, if there is one."""
    try:
        answer = seeded(ask, pixels)
    except InputError:
        raise
    except Exception as error:  # a network may raise anything for an image
        return None, error
    return (answer if answer.is_finite else None), None


def own_answer(network: nn.Module, layer: str, pixels: Tensor) -> Answer:
    """The output of the unmodified network for normalised pixels ``[n, 3, H, W]``.

    Raises:
        InputError: the network does not call the layer.
    """
    seen: dict[nn.Module, Tensor] = {}

    def note(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen[part] = next(iter([*args, *kwargs.values()]))

    layers = logit_layers(network, layer)
    with ExitStack() as hooks:
        for each in layers:
            handle = each.register_forward_pre_hook(note, with_kwargs=True)
            hooks.callback(handle.remove)
        logits: Tensor = network(pixels)
    if len(seen) < len(layers):
        raise InputError(f"last layer {layer!r}: the network does not call it")
    eps = max(torch.finfo(each.dtype).eps for each in (*seen.values(), logits))
    features = side_by_side([averaged(seen[each].float()) for each in layers])
    terms = functional.linear(features.abs(), *(each.abs() for each in linear_map(layers)))
    return Answer(features, logits.float(), size(terms), eps)


def check_head(network: nn.Module, layer: str, answer: Answer, name: str) -> None:
    """Check that the logits are ``W f + b`` of the last layer.

    Raises:
        InputError: they are not: the layer is a subclass with another forward, has hooks, or its
            output is modified.
    """
    layers = logit_layers(network, layer)
    expected = functional.linear(answer.features, *linear_map(layers))
    found = difference(answer.logits, expected)
    if found > max(HEAD_TOLERANCE, 8 * answer.eps) * answer.terms:
        raise InputError(
            f"{name}: its logits are not W f + b of its last layer {layer!r} "
            f"({type(layers[0]).__name__}): they differ by up to {found:.3g}, with values up to "
            f"{size(answer.logits):.3g}; end the network in a plain nn.Linear without hooks, "
            "return its output, and normalise or scale the features before it"
        )


def check_stable(network: nn.Module, layer: str, pixels: Tensor, answer: Answer, name: str) -> None:
    """Check that the output for an image depends only on the image.

    Args:
        network: the network in eval mode.
        layer: name of its last layer.
        pixels: normalised, ``[n, 3, H, W]``; the last and the first are also sent alone.
        answer: the network's output for them.
        name: name of the network, for the message.

    Raises:
        InputError: it depends on chance, or on the other images of the batch.
    """
    before = _random_states(pixels.device)
    for n_passes in range(1, N_REPEATS + 2):
        if found := disagreement(own_answer(network, layer, pixels), answer):
            raise InputError(
                f"{name}: the same images give different {found} the second time: they depend on "
                "chance; use nn.Dropout or pass training=self.training to F.dropout, and add no "
                f"noise in eval mode{_OR_ACCEPT}"
            )
        # A network that draws random numbers needs more passes for rare events to show.
        if n_passes == 1 and _random_states(pixels.device) == before:
            break
    for row in (slice(-1, None), slice(0, 1)):  # the others may depend on one of them
        if found := disagreement(own_answer(network, layer, pixels[row]), answer.take(row)):
            raise InputError(
                f"{name}: an image alone gives different {found} than in a batch: they "
                "depend on the other images; use batch norm with running statistics, and no mean "
                f"over the batch in eval mode{_OR_ACCEPT}"
            )


_OR_ACCEPT = ", or accept this with --accept-unstable"


def disagreement(found: Answer, expected: Answer, tolerance: float = TOLERANCE) -> str:
    """How two outputs differ, as text; empty if rounding can cause the difference.

    Differences are relative to the largest value. Those of logits are relative to the summed terms
    if these cancel each other out.
    """
    tolerance = max(tolerance, 8 * expected.eps)
    for what in ("features", "logits"):
        ours, theirs = getattr(found, what), getattr(expected, what)
        apart, largest = difference(ours, theirs), size(theirs)
        if apart > tolerance * max(largest, 0.1 * expected.terms * (what == "logits")):
            return f"{what} (by up to {apart:.3g}, with values up to {largest:.3g})"
    return ""


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference; infinite if only one of two values is a number."""
    if found.shape != expected.shape:
        return float("inf")
    is_same = (found == expected) | (found.isnan() & expected.isnan())
    apart = (found.double() - expected.double()).abs().nan_to_num(nan=float("inf"))
    return float(apart.masked_fill(is_same, 0).max())


def size(values: Tensor) -> float:
    """The largest magnitude of the finite values."""
    return float(values.abs().where(values.isfinite(), 0).max())


def _random_states(device: torch.device) -> list[Any]:  # Any: each generator has its own
    """States of the random generators of torch (host and device), numpy and Python."""
    kind, keys, *rest = np.random.get_state()
    of_device = [torch.cuda.get_rng_state(device).tolist()] if device.type == "cuda" else []
    return [*of_device, torch.get_rng_state().tolist(), kind, list(keys), rest, random.getstate()]
