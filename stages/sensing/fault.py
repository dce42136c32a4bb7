"""Find out whether images or the learning rate cause a loss that is not finite."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from stages.errors import TrainingFailedError
from stages.metrics.finite import finite_rows


@torch.no_grad()
def blame_rows(
    title: str,
    network: nn.Module,
    inputs: Iterable[tuple[Tensor, ...]],
    name_of: Callable[[int], str],
    way_out: str = "remove them",
) -> None:
    """Raise ``TrainingFailedError`` if logits of an untrained network are not finite.

    Such rows make every training of that network fail, however small its learning rate. In eval
    mode no row changes the logits of another.

    Args:
        title: name of the training, for messages.
        network: the network with its initial weights; it is put into eval mode.
        inputs: inputs of the network, in batches.
        name_of: returns the name of a row, counted through all batches.
        way_out: what to do with such images.
    """
    network.eval()
    finite = torch.cat([finite_rows(network(*batch).float()) for batch in inputs])
    bad = torch.nonzero(~finite).flatten().tolist()
    if not bad:
        return
    if len(bad) == len(finite) > 1:
        raise TrainingFailedError(
            f"{title}: the logits are not finite for any of {len(finite):,} images before training "
            "starts: the cause is the network, not the learning rate; check its code"
        )
    raise TrainingFailedError(
        f"{title}: the logits are not finite for {len(bad):,} of {len(finite):,} images before "
        f"training starts (first: {name_of(bad[0])}): the cause is these images, not the learning "
        f"rate; {way_out}, or change the network"
    )
