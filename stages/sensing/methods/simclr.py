"""The method simclr: two views of an image have similar features, those of others do not.

Chen et al. 2020, with the parameters of leftthomas/SimCLR. The labels do not reach the features:
the network's last layer is trained beside them, and no gradient flows back through its input (as in
that paper's appendix on linear evaluation). So the model is a classifier after any epoch.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.errors import InputError
from stages.sensing.card import ModelCard
from stages.sensing.logit_layers import TOGETHER, averaged
from stages.sensing.methods.method import Batch, Method, Views
from stages.sensing.methods.method_params import SimClr
from stages.sensing.methods.random_views import random_views, view_draws


def simclr(params: SimClr) -> Method:
    """The method; the key of a batch draws its views."""
    _, dim = params.projection
    return Method(
        views=two_views,
        loss=partial(contrastive_loss, dim=dim, temperature=params.nt_xent_temperature),
        trained=partial(with_projection, sizes=params.projection),
    )


def two_views(batch: Batch) -> Views:
    """Two random views of each image."""
    height, width = batch.images.shape[1:3]
    keys = ((*batch.key, view) for view in (0, 1))
    draws = (view_draws(len(batch.labels), (height, width), key) for key in keys)
    return tuple(random_views(batch.images, each.to(batch.images.device)) for each in draws)


class Projected(nn.Module):
    """A network with a projection head beside its last layer.

    Args:
        network: the network; it is used as it is.
        last_layer: name of its last layer.
        projection: maps features ``[n, d]`` to projections ``[n, p]``.
    """

    def __init__(self, network: nn.Module, last_layer: str, projection: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.projection = projection
        self.last_layer = last_layer

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits, from features through which no gradient flows, then projections.

        Args:
            pixels: ``[n, 3, H, W]``.

        Returns:
            ``[n, n_classes + p]`` float32.
        """
        seen: list[Tensor] = []

        def detached(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
            seen.append(inputs[0])
            return (inputs[0].detach(),)

        layer = self.network.get_submodule(self.last_layer)
        handle = layer.register_forward_pre_hook(detached)
        try:
            logits = self.network(pixels)
        finally:
            handle.remove()
        projections = self.projection(averaged(seen[0]))
        return torch.cat([logits.float(), projections.float()], dim=1)


def with_projection(network: nn.Module, card: ModelCard, *, sizes: tuple[int, ...]) -> Projected:
    """A network with a new projection head: a hidden layer with batch norm and ReLU, and a linear
    one.

    Raises:
        InputError: the logits are a mean of several layers.
    """
    if TOGETHER in card.last_layer:
        raise InputError(
            f"network {card.network}: --method simclr needs one last layer, found "
            f"{card.last_layer!r}"
        )
    hidden, dim = sizes
    projection = nn.Sequential(
        nn.Linear(card.feature_dim, hidden, bias=False),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, dim),
    )
    return Projected(network, card.last_layer, projection)


def contrastive_loss(outputs: Views, labels: Tensor, *, dim: int, temperature: float) -> Tensor:
    """NT-Xent of the projections, plus the cross entropy of the last layer, which is separate.

    Args:
        outputs: of `Projected`, for each of the two views.
        labels: ``[n]`` int64.
        dim: length of a projection.
        temperature: of NT-Xent.
    """
    first, second = (output[:, -dim:] for output in outputs)
    logits = torch.cat([output[:, :-dim] for output in outputs])
    separate = functional.cross_entropy(logits, labels.repeat(2))
    return nt_xent(first, second, temperature) + separate


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Normalised temperature-scaled cross entropy (Chen et al. 2020, equation 1), in float32.

    Each of the ``2 n`` projections has to find the other view of its image among the ``2 n - 1``
    others, by the cosine divided by the temperature.

    Args:
        first, second: projections of the two views, ``[n, p]``.
        temperature: more than 0.
    """
    n = len(first)
    with torch.autocast(first.device.type, enabled=False):
        unit = functional.normalize(torch.cat([first, second]).float())
        similar = unit @ unit.T / temperature
        similar.fill_diagonal_(-torch.inf)
        others = torch.arange(2 * n, device=first.device).roll(n)
        return functional.cross_entropy(similar, others)
