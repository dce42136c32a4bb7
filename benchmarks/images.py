"""Generated images in the exact layout of CIFAR-10-C, and untrained weights: speed needs no more.

They are noise and say nothing about accuracy.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from stages.data.corruptions.names import N_SEVERITIES
from stages.sensing.build import build_network
from stages.sensing.card import CIFAR10_MEAN, CIFAR10_STD, ModelCard
from stages.sensing.model import describe
from stages.sensing.weights import load_weights, save_weights

NETWORK = "resnet18"
CLASS_NAMES = tuple(str(label) for label in range(10))


@dataclass(frozen=True)
class Made:
    """A folder with images ``[n_rows, 32, 32, 3]`` and the weights of a network."""

    folder: Path
    n_rows: int
    network_name: str = NETWORK

    @property
    def dataset(self) -> Path:
        """The folder in CIFAR-10-C's layout."""
        return self.folder / "noise-c"

    @property
    def images(self) -> Path:
        """Its only array."""
        return self.dataset / "gaussian_noise.npy"

    @property
    def weights(self) -> Path:
        """The network's."""
        return self.folder / "weights.safetensors"

    def network(self) -> nn.Module:
        """The saved network in eval mode."""
        network = build_network(self.network_name, len(CLASS_NAMES))
        load_weights(network, self.weights)
        return network.eval()

    def card(self) -> ModelCard:
        """Card of the network."""
        return describe(
            self.network(),
            name=self.network_name,
            network_name=self.network_name,
            class_names=CLASS_NAMES,
            image_size=32,
            family="noise",
        )

    def pixels(self, start: int, stop: int) -> torch.Tensor:
        """Normalised images of some rows, computed the simple way."""
        images = torch.from_numpy(np.load(self.images, mmap_mode="r")[start:stop].copy())
        mean, std = torch.tensor(CIFAR10_MEAN), torch.tensor(CIFAR10_STD)
        return ((images / 255 - mean) / std).permute(0, 3, 1, 2)

    def logits(self, start: int, stop: int) -> torch.Tensor:
        """Output of the plain network for some rows, in float32."""
        with torch.no_grad():
            found: torch.Tensor = self.network()(self.pixels(start, stop))
        return found


def make(folder: Path, n_rows: int, network_name: str = NETWORK) -> Made:
    """Write images and weights; ``n_rows`` is a multiple of the severities."""
    made = Made(folder, n_rows, network_name)
    made.dataset.mkdir(parents=True)
    rng = np.random.default_rng(0)
    shape = (n_rows, 32, 32, 3)
    np.save(made.images, rng.integers(0, 256, shape, dtype=np.uint8))
    labels = np.arange(n_rows // N_SEVERITIES) % len(CLASS_NAMES)
    np.save(made.dataset / "labels.npy", np.tile(labels, N_SEVERITIES).astype(np.uint8))
    torch.manual_seed(0)
    network = build_network(network_name, len(CLASS_NAMES))
    with torch.no_grad():  # other than the identity
        network.train()(torch.randn(256, 3, 32, 32))
    made.weights.write_bytes(save_weights(network.eval()))
    return made
