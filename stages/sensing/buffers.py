"""Keep the buffers of a network unchanged while it is only inspected."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def kept_buffers(network: nn.Module) -> Iterator[None]:
    """Restore buffers that change in the block.

    Some networks count their calls, or update running statistics in eval mode, too. Their weights
    are identified by content, so inspecting a network must not change them.
    """
    before = [
        (part, name, buffer, buffer.clone())
        for part in network.modules()
        for name, buffer in part.named_buffers(recurse=False)
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for part, name, buffer, content in before:
                setattr(part, name, buffer.copy_(content))
