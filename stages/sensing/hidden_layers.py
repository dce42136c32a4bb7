"""Networks whose classifier has hidden layers: ``NETWORK+128``, or ``NETWORK+512+128``.

They are the network with its last linear layer replaced by linear layers with ReLU between them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING

from stages.errors import InputError

if TYPE_CHECKING:
    from torch import nn

_WIDTHS = re.compile(r"(\+[1-9][0-9]{0,5})+$")


def plain_name(network: str) -> str:
    """Name of the network without hidden layers in its classifier.

    >>> plain_name("torchvision:resnet18+512+128")
    'torchvision:resnet18'
    """
    return _WIDTHS.sub("", network)


def widths_in(network: str) -> tuple[int, ...]:
    """Widths of the hidden layers of a network's classifier.

    >>> widths_in("torchvision:resnet18+512+128"), widths_in("resnet18")
    ((512, 128), ())
    """
    return tuple(map(int, network.removeprefix(plain_name(network)).split("+")[1:]))


def with_widths(network: str, widths: Sequence[int]) -> str:
    """The inverse of `plain_name` and `widths_in`."""
    return network + "".join(f"+{width}" for width in widths)


def add_hidden_layers(module: nn.Module, network: str, widths: Sequence[int]) -> None:
    """Replace the last linear layer of a network by a classifier with hidden layers, in place.

    Raises:
        InputError: it has no linear layer, or is one itself.
    """
    from torch import nn

    linears = {name: each for name, each in module.named_modules() if isinstance(each, nn.Linear)}
    if not any(linears):
        raise InputError(
            f"network {network}: expected a linear layer inside it, to be replaced by one with "
            f"hidden layers, found {type(module).__name__}; use {plain_name(network)}"
        )
    name, last = list(linears.items())[-1]
    sizes = (last.in_features, *widths, last.out_features)
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    module.set_submodule(name, nn.Sequential(*layers[:-1]))


def classifier_name(last_layer: str) -> str:
    """Name of a classifier with hidden layers, from that of its last layer.

    >>> classifier_name("fc.2")
    'fc'
    """
    return last_layer.rpartition(".")[0]


@contextmanager
def without_hidden_layers(module: nn.Module, last_layer: str) -> Iterator[str]:
    """Replace a classifier with hidden layers by a linear layer, inside the block.

    Args:
        module: the network, which has hidden layers.
        last_layer: name of its last layer.

    Returns:
        Name of the linear layer. Its weight is the identity as far as it is square.
    """
    from torch import nn

    name = classifier_name(last_layer)
    classifier = module.get_submodule(name)
    linears = [each for each in classifier.children() if isinstance(each, nn.Linear)]
    weight, sizes = linears[0].weight, (linears[0].in_features, linears[-1].out_features)
    # An uninitialised layer, because initialisation draws random numbers.
    plain = nn.Linear(*sizes, device="meta").to_empty(device=weight.device)
    nn.init.eye_(plain.weight)
    nn.init.zeros_(plain.bias)
    module.set_submodule(name, plain)
    try:
        yield name
    finally:
        module.set_submodule(name, classifier)
