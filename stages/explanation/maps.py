"""Maps from the class maps of images; pure functions of tensors.

The map of class c is ``C_c = Σ_k α_ck A_k``: the channels of a layer's output A, each weighted by
the mean over the image of ``∂z_c/∂A_k`` (Grad-CAM; Selvaraju et al., 2017, before its ReLU). It is
linear in the derivative, so the maps of all questions are ReLUs of combinations of class maps
(method notes, sections 13 and 19.9):

- ``grad-cam``: ``ReLU(C_P)``
- ``counterfactual-cam``: ``ReLU(-C_P)``
- ``contrast-cam``: ``ReLU(Σ_c (p_c - 1[c=Q]) C_c)``, since the derivative of the cross entropy to Q
  is ``p - e_Q``. P has no part in it but for the choice of Q.
- ``voice``: the variance over all Q other than P of the contrast maps (Prabhushankar and AlRegib,
  2024).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from stages.explanation.questions import Question

Combine = Callable[[Tensor], Tensor]
"""Maps directions ``[n, M, N]`` in the space of logits to signed maps ``[n, M, h, w]``."""

VOICE_NUMBERS = ("voice_mean", "voice_snr", "voice_iou")
"""What `voice_numbers` returns, in this order."""


def directions(questions: Sequence[Question], logits: Tensor, asked: Tensor) -> Tensor:
    """The derivative to the logits of what each map explains, before the ReLU.

    Args:
        questions: the maps; ``voice`` has the direction of ``grad-cam``.
        logits: shape ``(n, N)``.
        asked: the class of each map, shape ``(n, M)``; see `questions.asked_classes`.

    Returns:
        Shape ``(n, M, N)``.
    """
    one_hot = functional.one_hot(asked, logits.shape[1]).to(logits.dtype)
    probabilities = logits.softmax(dim=1)
    parts = {"counterfactual-cam": -one_hot, "contrast-cam": probabilities[:, None] - one_hot}
    columns = [parts.get(each.method, one_hot)[:, at] for at, each in enumerate(questions)]
    return torch.stack(columns, dim=1)


def maps_of(
    questions: Sequence[Question], logits: Tensor, asked: Tensor, combine: Combine
) -> tuple[Tensor, Tensor | None]:
    """The maps of some images, and the summary numbers of their VOICE maps.

    Args:
        questions: the maps.
        logits: shape ``(n, N)``.
        asked: the class of each map, shape ``(n, M)``.
        combine: computes signed maps; called once.

    Returns:
        Maps ``(n, M, h, w)``, zero or more, and numbers ``(n, 3)`` in the order of
        `VOICE_NUMBERS`; None without a question ``voice``.
    """
    wanted = directions(questions, logits, asked)
    voices = [at for at, each in enumerate(questions) if each.method == "voice"]
    if not voices:
        return combine(wanted).relu(), None
    n_rows, n_classes = logits.shape
    everything = torch.eye(n_classes, dtype=logits.dtype, device=logits.device)
    class_maps = combine(everything.expand(n_rows, -1, -1))
    found = torch.einsum("nmc,nchw->nmhw", wanted, class_maps).relu()
    explained = asked[:, voices[0]]
    grad_cam = found[:, voices[0]].clone()
    spread = voice_map(class_maps, logits.softmax(dim=1), explained)
    found[:, voices] = spread[:, None]
    return found, voice_numbers(spread, grad_cam)


def voice_map(class_maps: Tensor, probabilities: Tensor, explained: Tensor) -> Tensor:
    """Variance over all Q other than P of the maps "Why P, rather than Q?", shape ``(n, h, w)``.

    Args:
        class_maps: shape ``(n, N, h, w)``.
        probabilities: softmax of the logits, shape ``(n, N)``.
        explained: P of each row, shape ``(n,)``.
    """
    base = torch.einsum("nc,nchw->nhw", probabilities, class_maps)
    contrasts = (base[:, None] - class_maps).relu()
    is_other = 1 - functional.one_hot(explained, class_maps.shape[1]).to(class_maps.dtype)
    weights = is_other / is_other.sum(dim=1, keepdim=True)
    mean = torch.einsum("nc,nchw->nhw", weights, contrasts)
    return torch.einsum("nc,nchw->nhw", weights, (contrasts - mean[:, None]) ** 2)


def voice_numbers(spread: Tensor, grad_cam: Tensor) -> Tensor:
    """Summaries of VOICE maps, shape ``(n, 3)``; zero for a map that is zero everywhere.

    ``voice_mean`` is the mean over the map, ``voice_snr`` this mean divided by the standard
    deviation (0 where that is 0), and ``voice_iou`` the overlap with Grad-CAM,
    ``Σ min(a, b) / Σ max(a, b)`` of the two maps scaled to [0, 1]: where it is high, the
    explanation is uncertain about the very places that it highlights.

    Args:
        spread: VOICE maps, shape ``(n, h, w)``.
        grad_cam: Grad-CAM of the explained class, of the same shape.
    """
    flat = spread.flatten(1)
    mean, deviation = flat.mean(dim=1), flat.std(dim=1, correction=0)
    ours, theirs = normalised_maps(spread).flatten(1), normalised_maps(grad_cam).flatten(1)
    union = torch.maximum(ours, theirs).sum(dim=1)
    overlap = torch.minimum(ours, theirs).sum(dim=1)
    return torch.stack([mean, _ratio(mean, deviation), _ratio(overlap, union)], dim=1)


def _ratio(over: Tensor, under: Tensor) -> Tensor:
    return torch.where(under > 0, over / under.where(under > 0, 1), 0)


def normalised_maps(maps: Tensor) -> Tensor:
    """Each map scaled to [0, 1] by its minimum and maximum; a constant map becomes zeros.

    Args:
        maps: shape ``(..., h, w)``.
    """
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return _ratio(maps - low, high - low)


def enlarged_maps(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps ``(n, M, h, w)`` interpolated bilinearly to the ``(H, W)`` of the images."""
    return functional.interpolate(maps, size, mode="bilinear", align_corners=False)
