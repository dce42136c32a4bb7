"""The last layer of a network, recording what enters it and what it gives."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.sensing.logit_layers import LogitLayer, averaged


class LastLayerTap(nn.Module):
    """A last layer, in float32; ``seen`` holds features and logits until they are removed.

    Removing them within the same forward pass leaves no side effect, as ``torch.export`` requires.
    """

    def __init__(self, layer: LogitLayer) -> None:
        super().__init__()
        self.weight = nn.Parameter(layer.weight.detach().clone().float().flatten(1))
        self.out_features, self.in_features = self.weight.shape
        bias = layer.bias
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone().float())
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, input: Tensor) -> Tensor:
        """``[n, d]`` or ``[n, d, h, w]`` of any dtype -> logits in float32; may be by keyword.

        A convolution gets the same logits at each place: only their average is used.
        """
        with torch.autocast(input.device.type, enabled=False):
            features = averaged(input.float())
            logits = functional.linear(features, self.weight, self.bias)
            self.seen = [(features, logits)]  # a new list: a failed pass may have left something
            if input.ndim == 2:
                return logits
            return logits[:, :, None, None].expand(-1, -1, *input.shape[2:])
