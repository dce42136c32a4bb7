"""Networks with one input channel: images are converted to grey where they enter."""

from typing import Any

import torch
from torch import Tensor, nn

# ITU-R BT.601, in the fractions of 2^16 with which PIL converts RGB to L.
_WEIGHTS = (19595 / 65536, 38470 / 65536, 7471 / 65536)


class _Luma:
    """Converts the three channels of the input of a layer to one; leaves one channel as it is."""

    is_used = False

    def __call__(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor] | None:
        pixels = args[0]
        if len(args) != 1 or pixels.ndim != 4 or pixels.shape[1] != 3:
            return None
        self.is_used = True
        weights = torch.tensor(_WEIGHTS, dtype=pixels.dtype, device=pixels.device)
        return ((pixels * weights[:, None, None]).sum(1, keepdim=True),)


def accepting_rgb(network: nn.Module) -> nn.Module:
    """The same network; if its first convolution has one input channel, RGB is converted to grey.

    Grey is luma, as in PIL's mode L but not rounded: for grey images it is exactly their value. A
    network that converts RGB to grey itself is not changed.
    """
    convolutions = (each for each in network.modules() if isinstance(each, nn.Conv2d))
    first = next(convolutions, None)
    if first is not None and first.in_channels == 1:
        first.register_forward_pre_hook(_Luma())
    return network


def takes_grey(network: nn.Module) -> bool:
    """Whether RGB was converted to grey in a forward pass of the network."""
    hooks = (hook for part in network.modules() for hook in part._forward_pre_hooks.values())
    return any(isinstance(hook, _Luma) and hook.is_used for hook in hooks)
