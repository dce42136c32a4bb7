"""Eleven maps of each image (nine of them contrasts) against the forward pass alone.

Images of 32x32 pixels in memory, ResNet-18 with untrained weights, one process and its threads.
`forward pass` is the one of `extract`, with merged layers; `forward pass, layers kept` is what a
hook on a layer needs. pytorch-grad-cam is called as its documentation says, once for each map, with
all images of a batch; it enlarges its maps to the images, which the others do not.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from benchmarks import images
from benchmarks.measuring import Contender, Once, WrongNumbersError, cpu_per_row, wall_per_row
from benchmarks.part import Figure, Part, Sizes
from stages.explanation.layer_choice import chosen_layer
from stages.explanation.map_forward import MapForward
from stages.explanation.questions import asked_classes, questions_of
from stages.reflection.forward import Forward
from stages.sensing.model import Sensing, load_sensing
from stages.sensing.torchvision_ops import import_torchvision

BATCH_ROWS, CHECKED, TOLERANCE = 64, 8, 1e-5
QUESTIONS = questions_of(
    ["grad-cam", "counterfactual-cam", "contrast-cam"], ["top-9"], images.CLASS_NAMES
)


def loaded(folder: Path, n_rows: int, *, keeps_layers: bool) -> tuple[images.Made, Sensing]:
    """Images and their network."""
    made = images.make(folder / "noise", n_rows)
    return made, load_sensing(made.card(), made.weights, keeps_layers=keeps_layers)


def passing(n_rows: int, keeps_layers: bool, folder: Path) -> Once:
    """Features and logits of all images."""
    made, sensing = loaded(folder, n_rows, keeps_layers=keeps_layers)
    forward = Forward(sensing, str(made.weights), None, BATCH_ROWS)
    pixels = np.load(made.images)
    out = {"features": np.empty((n_rows, 64), np.float32), "logits": blank(n_rows)}

    def once() -> None:
        forward.fill(out, pixels)

    return once


def mapping(n_rows: int, in_closed_form: bool, folder: Path) -> Once:
    """All maps of all images."""
    made, sensing = loaded(folder, n_rows, keeps_layers=True)
    found = {way: forward_of(made, sensing, way) for way in (True, False)}
    pixels = np.load(made.images)
    ours, theirs = (filled(each, made, pixels[:CHECKED])["maps"] for each in found.values())
    if np.abs(ours - theirs).max() > TOLERANCE * theirs.max():
        raise WrongNumbersError("the closed form gives other maps than backward passes")
    out = outputs(made, n_rows)

    def once() -> None:
        found[in_closed_form].fill(out, pixels)

    return once


def forward_of(made: images.Made, sensing: Sensing, in_closed_form: bool) -> MapForward:
    """The forward pass of a worker of `explain`."""
    layer = chosen_layer(sensing, made.pixels(0, 2))
    return MapForward(
        sensing,
        str(made.weights),
        None,
        BATCH_ROWS,
        target=layer,
        questions=QUESTIONS,
        in_closed_form=in_closed_form,
    )


def outputs(made: images.Made, n_rows: int) -> dict[str, NDArray[Any]]:
    """Stored logits and classes, and arrays to fill."""
    parts = [made.logits(at, min(at + 500, n_rows)).numpy() for at in range(0, n_rows, 500)]
    logits = np.concatenate(parts)
    return {
        "stored": logits,
        "asked": asked_classes(QUESTIONS, logits, logits.argmax(1)),
        "maps": np.empty((n_rows, len(QUESTIONS), 8, 8), np.float32),
        "logits": blank(n_rows),
    }


def filled(
    forward: MapForward, made: images.Made, pixels: NDArray[np.uint8]
) -> dict[str, NDArray[Any]]:
    """The outputs for some images."""
    out = outputs(made, len(pixels))
    forward.fill(out, pixels)
    return out


def blank(n_rows: int) -> NDArray[np.float32]:
    """Logits to fill."""
    return np.empty((n_rows, len(images.CLASS_NAMES)), np.float32)


def calling_grad_cam(n_rows: int, folder: Path) -> Once:
    """pytorch-grad-cam, once for each map of each batch."""
    import_torchvision()
    from pytorch_grad_cam import GradCAM

    made = images.make(folder / "noise", n_rows)
    network, pixels = made.network(), made.pixels(0, n_rows)
    asked = outputs(made, n_rows)["asked"]

    def once() -> None:
        with GradCAM(network, [network.get_submodule("layer3")]) as cam:
            for at in range(0, n_rows, BATCH_ROWS):
                batch = slice(at, at + BATCH_ROWS)
                for index, question in enumerate(QUESTIONS):
                    classes = asked[batch, index].tolist()
                    targets = [partial(SCORES[question.method], each) for each in classes]
                    cam(pixels[batch], targets)

    return once


def _contrast(asked: int, logits: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(logits[None], torch.tensor([asked]))


SCORES: dict[str, Callable[[int, torch.Tensor], torch.Tensor]] = {
    "grad-cam": lambda asked, logits: logits[asked],
    "counterfactual-cam": lambda asked, logits: -logits[asked],
    "contrast-cam": _contrast,
}
"""What pytorch-grad-cam takes the derivative of."""


def contenders(sizes: Sizes) -> list[Contender]:
    """Forward passes, both ways, and pytorch-grad-cam on fewer images."""
    n, few = sizes.pick(320, 10_000), sizes.pick(64, 640)
    return [
        Contender("forward pass", partial(passing, n, False), n),
        Contender("forward pass, layers kept", partial(passing, n, True), n),
        Contender("closed form", partial(mapping, n, True), n),
        Contender("backward passes", partial(mapping, few, False), few),
        Contender("pytorch-grad-cam", partial(calling_grad_cam, few), few),
    ]


PART = Part(
    "explanations",
    "Explanations",
    __doc__,
    contenders,
    columns=("seconds", "from", "to", "cpu s", "rows/s", "memory"),
    figures=(
        Figure(
            "closed form / forward pass", ["closed form"], "forward pass", wall_per_row, at_most=1.5
        ),
        Figure(
            "the same in CPU seconds", ["closed form"], "forward pass", cpu_per_row, at_most=1.5
        ),
        Figure("pytorch-grad-cam / closed form", ["pytorch-grad-cam"], "closed form", wall_per_row),
        Figure("backward passes / closed form", ["backward passes"], "closed form", wall_per_row),
    ),
)
