"""Equal multilayer perceptrons trained side by side, with gradients written by hand.

A head is small: autograd and the calls around its products cost as much as a third of the products.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class StackedMlp:
    """``K`` perceptrons of equal shape: linear layers with sigmoids between them.

    All parameters lie in one vector, ``parameters``, whose ``grad`` `backward` fills: an optimiser
    step is one call. ``weights[l]`` are ``(K, out, in)`` and ``biases[l]`` ``(K, 1, out)`` views of
    it. Products are made in ``dtype``, from rounded copies where the parameters have another one.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        n_copies: int,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        parameter_dtype: torch.dtype = torch.float32,
    ) -> None:
        shapes = [(n_copies, n_out, n_in) for n_in, n_out in pairwise(sizes)]
        n_numbers = sum(k * n_out * (n_in + 1) for k, n_out, n_in in shapes)
        zeros = torch.zeros(n_numbers, device=device, dtype=parameter_dtype)
        self.parameters = nn.Parameter(zeros)
        self.parameters.grad = torch.zeros_like(zeros)
        self.weights, self.biases = _views(self.parameters.detach(), shapes)
        self.dtype = dtype
        self._is_rounded = dtype != parameter_dtype
        self._rounded = torch.zeros_like(zeros, dtype=dtype)
        self._rounded_grad = torch.zeros_like(zeros, dtype=dtype)
        own = self.parameters.detach(), self.parameters.grad
        used = (self._rounded, self._rounded_grad) if self._is_rounded else own
        self._weights, self._biases = _views(used[0], shapes)
        self._weight_grads, self._bias_grads = _views(used[1], shapes)

    def forward(self, inputs: Tensor, masks: Sequence[Tensor] = ()) -> tuple[list[Tensor], Tensor]:
        """The hidden layers' outputs, and the logits ``(K, n, N)``, of inputs ``(K, n, in)``.

        Args:
            inputs: in the dtype of the products.
            masks: of dropout, ``(K, n, width)`` for each hidden layer: 0 or 1 / (1 - p).
        """
        if self._is_rounded:
            self._rounded.copy_(self.parameters.detach())
        hidden: list[Tensor] = []
        values = inputs
        for layer, (weight, bias) in enumerate(zip(self._weights, self._biases, strict=True)):
            values = torch.baddbmm(bias, values, weight.mT)
            if layer < len(self._weights) - 1:
                hidden.append(values.sigmoid_())
                values = values * masks[layer] if masks else values
        return hidden, values

    def backward(
        self, inputs: Tensor, hidden: list[Tensor], slope: Tensor, masks: Sequence[Tensor] = ()
    ) -> None:
        """Fill the gradient from ``slope``, the loss's derivative to the logits ``(K, n, N)``."""
        for layer in reversed(range(len(self._weights))):
            below = hidden[layer - 1] if layer else inputs
            is_dropped = layer > 0 and len(masks) > 0
            fed = below * masks[layer - 1] if is_dropped else below
            torch.bmm(slope.mT, fed, out=self._weight_grads[layer])
            torch.sum(slope, dim=1, keepdim=True, out=self._bias_grads[layer])
            if layer:
                slope = torch.bmm(slope, self._weights[layer])
                if is_dropped:
                    slope.mul_(masks[layer - 1])
                slope.mul_(below).addcmul_(slope, below, value=-1)  # sigmoid' = h (1 - h)
        if self._is_rounded:
            assert self.parameters.grad is not None  # as made in __init__
            self.parameters.grad.copy_(self._rounded_grad)


def _views(
    flat: Tensor, shapes: Sequence[tuple[int, int, int]]
) -> tuple[list[Tensor], list[Tensor]]:
    """Weights ``(K, out, in)`` and biases ``(K, 1, out)``, one after another in a vector."""
    weights, biases, start = [], [], 0
    for k, n_out, n_in in shapes:
        middle, stop = start + k * n_out * n_in, start + k * n_out * (n_in + 1)
        weights.append(flat[start:middle].view(k, n_out, n_in))
        biases.append(flat[middle:stop].view(k, 1, n_out))
        start = stop
    return weights, biases
