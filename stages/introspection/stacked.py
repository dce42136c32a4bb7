"""Equal multilayer perceptrons trained side by side, with gradients implemented by hand.

Heads are small: autograd and its calls would take up to a third of the time of the products.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor, nn

from stages.introspection.first_layer import StackedGradients, fill_low_rank_grads, low_rank


@dataclass(slots=True)
class Activations:
    """What `StackedMlp.backward` needs from a forward pass.

    Attributes:
        entered: input of each linear layer, before dropout.
        products: the two products that form the outputs of a low-rank layer.
    """

    entered: list[Tensor | StackedGradients] = field(default_factory=list)
    products: tuple[Tensor, ...] = ()


class StackedMlp:
    """``K`` perceptrons of equal shape: linear layers with sigmoids between them.

    All parameters are in one vector, ``parameters``, whose ``grad`` `backward` fills, so that an
    optimiser step is one call. ``weights[l]`` are ``(K, out, in)`` and ``biases[l]``
    ``(K, 1, out)`` views of it. Products are computed in ``dtype``, from rounded copies if the
    parameters have another one.

    Inputs may be factored gradients, which are never materialised. With their lengths ``N`` and
    ``d`` as ``factors``, a low-rank layer precedes the first linear one; its parameters are
    ``vectors``, ``(K, sizes[0], N)`` and ``(K, sizes[0], d)``.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        n_copies: int,
        *,
        factors: tuple[int, ...] = (),
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        parameter_dtype: torch.dtype = torch.float32,
    ) -> None:
        shapes = [(n_copies, sizes[0], length) for length in factors]
        for n_in, n_out in pairwise(sizes):
            shapes += [(n_copies, n_out, n_in), (n_copies, 1, n_out)]
        zeros = torch.zeros(sum(map(math.prod, shapes)), device=device, dtype=parameter_dtype)
        self.parameters = nn.Parameter(zeros)
        self._grad = self.parameters.grad = torch.zeros_like(zeros)
        self.tensors = _views(self.parameters.detach(), shapes)
        self.dtype = dtype
        self._is_rounded = dtype != parameter_dtype
        used = self.parameters.detach(), self._grad
        if self._is_rounded:
            used = torch.zeros_like(zeros, dtype=dtype), torch.zeros_like(zeros, dtype=dtype)
        self._used, self._used_grad = used
        n = len(factors)
        self.vectors, self.weights, self.biases = _by_kind(self.tensors, n)
        self._vectors, self._weights, self._biases = _by_kind(_views(used[0], shapes), n)
        self._vector_grads, self._weight_grads, self._bias_grads = _by_kind(
            _views(used[1], shapes), n
        )

    def forward(
        self, inputs: Tensor | StackedGradients, masks: Sequence[Tensor] = ()
    ) -> tuple[Activations, Tensor]:
        """Logits ``(K, n, N)`` of inputs ``(K, n, in)``, and what `backward` needs.

        Args:
            inputs: in the dtype of the products; factored, if the first layer has low rank.
            masks: dropout masks, ``(K, n, width)`` for each hidden layer: 0 or 1 / (1 - p).
        """
        if self._is_rounded:
            self._used.copy_(self.parameters.detach())
        found = Activations()
        values = inputs
        if self._vectors:
            assert isinstance(inputs, StackedGradients)  # required of the caller
            values, *products = low_rank(inputs, self._vectors)
            found.products = tuple(products)
        for layer, (weight, bias) in enumerate(zip(self._weights, self._biases, strict=True)):
            found.entered.append(values)
            if isinstance(values, StackedGradients):
                values = values.project(weight).add_(bias)
            else:
                fed = values * masks[layer - 1] if layer and masks else values
                values = torch.baddbmm(bias, fed, weight.mT)
            if layer < len(self._weights) - 1:
                values.sigmoid_()
        assert isinstance(values, Tensor)  # there is at least one layer
        return found, values

    def backward(
        self,
        inputs: Tensor | StackedGradients,
        found: Activations,
        slope: Tensor,
        masks: Sequence[Tensor] = (),
    ) -> None:
        """Fill the gradient from ``slope``, the loss's derivative to the logits ``(K, n, N)``."""
        for layer in reversed(range(len(self._weights))):
            below = found.entered[layer]
            torch.sum(slope, dim=1, keepdim=True, out=self._bias_grads[layer])
            if isinstance(below, StackedGradients):
                below.weighted_sums(slope, self._weight_grads[layer])
                continue
            is_dropped = layer > 0 and len(masks) > 0
            fed = below * masks[layer - 1] if is_dropped else below
            torch.bmm(slope.mT, fed, out=self._weight_grads[layer])
            if layer or self._vectors:
                slope = torch.bmm(slope, self._weights[layer])
            if is_dropped:
                slope.mul_(masks[layer - 1])
            if layer:
                slope.mul_(below).addcmul_(slope, below, value=-1)  # sigmoid' = h (1 - h)
        if self._vectors:
            assert isinstance(inputs, StackedGradients)  # as in the forward pass
            fill_low_rank_grads(inputs, self._vectors, found.products, slope, self._vector_grads)
        if self._is_rounded:
            self._grad.copy_(self._used_grad)


def cross_entropy(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Log-likelihoods ``(K, n)`` of the labels, and gradient ``(K, n, N)`` of the negative mean.

    The gradient is ``(softmax(z) - onehot) / n``, computed in float32, in the dtype of the logits.
    """
    log_shares = logits.float().log_softmax(dim=2)
    of_label = log_shares.gather(2, labels[:, :, None])
    slope = log_shares.exp()
    slope.scatter_add_(2, labels[:, :, None], torch.full_like(of_label, -1.0))
    return of_label.squeeze(2), slope.div_(labels.shape[1]).to(logits.dtype)


def _views(flat: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Consecutive parts of a vector as tensors with these shapes."""
    parts = torch.split(flat, [math.prod(shape) for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def _by_kind(
    tensors: list[Tensor], n_vectors: int
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """The vectors of a low-rank layer, the weights, and the biases."""
    return tensors[:n_vectors], tensors[n_vectors::2], tensors[n_vectors + 1 :: 2]
