"""Networks of users, some with surprising behaviour; one factory each."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH = 12


class Net(nn.Module):
    """Two convolutions and a linear layer; subclasses change one thing."""

    def __init__(self, n_classes: int, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8) if norm is None else norm
        self.conv2 = nn.Conv2d(8, WIDTH, 3, stride=2, padding=1)
        self.fc = self.head(n_classes)

    def head(self, n_classes: int) -> nn.Linear:
        return nn.Linear(WIDTH, n_classes)

    def features(self, x: Tensor) -> Tensor:
        return functional.relu(self.conv2(functional.relu(self.norm(self.conv(x))))).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))


# Heads that are not W f + b


class Cosine(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 16 * functional.linear(functional.normalize(x), functional.normalize(self.weight))


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 1.05 * super().forward(x)


class Centred(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        z = super().forward(x)
        return z - z.mean(dim=1, keepdim=True)


class Lora(nn.Linear):
    """A low-rank update beside the weight."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.down, self.up = nn.Linear(sizes[0], 2), nn.Linear(2, sizes[1])

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.up(self.down(x))


class CosineNet(Net):
    def head(self, n_classes: int) -> nn.Linear:
        return Cosine(WIDTH, n_classes)


class ScaledNet(Net):
    def head(self, n_classes: int) -> nn.Linear:
        return Scaled(WIDTH, n_classes)


class CentredNet(Net):
    def head(self, n_classes: int) -> nn.Linear:
        return Centred(WIDTH, n_classes)


class LoraNet(Net):
    def head(self, n_classes: int) -> nn.Linear:
        return Lora(WIDTH, n_classes)


def cosine(n_classes: int) -> nn.Module:
    return CosineNet(n_classes)


def scaled(n_classes: int) -> nn.Module:
    return ScaledNet(n_classes)


def centred(n_classes: int) -> nn.Module:
    return CentredNet(n_classes)


def lora(n_classes: int) -> nn.Module:
    return LoraNet(n_classes)


def hooked(n_classes: int) -> nn.Module:
    """A hook on the last layer changes its output."""
    network = Net(n_classes)
    network.fc.register_forward_hook(lambda _module, _inputs, output: output / 0.9)
    return network


# Networks whose logits are W f + b, but whose copy with another last layer has another output


def pre_hooked(n_classes: int) -> nn.Module:
    """A hook on the last layer changes its input."""
    network = Net(n_classes)
    network.fc.register_forward_pre_hook(lambda _module, inputs: (functional.normalize(inputs[0]),))
    return network


class Typed(Net):
    """The output depends on the type of the last layer."""

    def forward(self, x: Tensor) -> Tensor:
        f = self.features(x)
        if not isinstance(self.fc, nn.Linear) or bool(x.isnan().all()):
            f = 2 * f
        return self.fc(f)


def typed(n_classes: int) -> nn.Module:
    return Typed(n_classes)


class Captured(Net):
    """Its forward runs the layers of the first copy."""

    def __init__(self, n_classes: int) -> None:
        super().__init__(n_classes)
        self.layers = [self.conv2.forward, self.fc.forward]
        self.whole = self._whole

    def _whole(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.whole(x) if bool((x == x).any()) else x

    def __deepcopy__(self, memo: dict[int, Any]) -> Captured:
        copied = Captured.__new__(Captured)
        nn.Module.__init__(copied)
        memo[id(self)] = copied
        for name, value in self.__dict__.items():
            copied.__dict__[name] = value if name == "whole" else copy.deepcopy(value, memo)
        return copied


def captured(n_classes: int) -> nn.Module:
    return Captured(n_classes)


class Single(Net):
    """A singleton: a copy is the network itself."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if bool((x == x).any()) else -x)

    def __deepcopy__(self, memo: dict[int, Any]) -> Single:
        return self


def single(n_classes: int) -> nn.Module:
    return Single(n_classes)


# Chance


class Dropping(Net):
    def features(self, x: Tensor) -> Tensor:
        return functional.dropout(super().features(x), 0.5)


class Noisy(Net):
    def features(self, x: Tensor) -> Tensor:
        f = super().features(x)
        return f + 0.1 * torch.randn_like(f)


class SeldomDropping(Net):
    """Stochastic depth that is left on, seldom."""

    def features(self, x: Tensor) -> Tensor:
        f = super().features(x)
        return f if torch.rand(()) > 0.2 else torch.zeros_like(f)


class OtherNoise(Net):
    """Noise from numpy and Python."""

    def features(self, x: Tensor) -> Tensor:
        return super().features(x) * (1 + 0.2 * np.random.rand()) + 0.1 * random.random()


class Counting(Net):
    """Each pass changes the next one."""

    n_calls = 0

    def features(self, x: Tensor) -> Tensor:
        self.n_calls += 1
        return super().features(x) * (1 + 0.01 * self.n_calls)


def dropping(n_classes: int) -> nn.Module:
    return Dropping(n_classes)


def noisy(n_classes: int) -> nn.Module:
    return Noisy(n_classes)


def seldom_dropping(n_classes: int) -> nn.Module:
    return SeldomDropping(n_classes)


def other_noise(n_classes: int) -> nn.Module:
    return OtherNoise(n_classes)


def counting(n_classes: int) -> nn.Module:
    return Counting(n_classes)


# Neighbours


class LessMean(Net):
    def features(self, x: Tensor) -> Tensor:
        f = super().features(x)
        return f - f.mean(dim=0)


class LessFirst(Net):
    def features(self, x: Tensor) -> Tensor:
        f = super().features(x)
        return f - 0.5 * f[:1]


class PerBatch(Net):
    """Scaled by the largest value in the batch, as quantisation does it."""

    def features(self, x: Tensor) -> Tensor:
        f = super().features(x)
        return f / f.max()


class BySize(Net):
    def features(self, x: Tensor) -> Tensor:
        return super().features(x) / x.shape[0]


def batch_norm(n_classes: int) -> nn.Module:
    return Net(n_classes, nn.BatchNorm2d(8, track_running_stats=False))


def less_mean(n_classes: int) -> nn.Module:
    return LessMean(n_classes)


def less_first(n_classes: int) -> nn.Module:
    return LessFirst(n_classes)


def per_batch(n_classes: int) -> nn.Module:
    return PerBatch(n_classes)


def by_size(n_classes: int) -> nn.Module:
    return BySize(n_classes)


# Networks that are right


class CallCounting(Net):
    """Its state changes in eval mode, and its answers do not."""

    def __init__(self, n_classes: int) -> None:
        super().__init__(n_classes)
        self.register_buffer("n_calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("last_mean", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.n_calls += 1
        self.last_mean = x.mean((0, 2, 3)).detach()
        return super().forward(x)


class TrainingNorm(Net):
    """Updates running statistics in eval mode."""

    def forward(self, x: Tensor) -> Tensor:
        self.norm.train()
        return super().forward(x)


def call_counting(n_classes: int) -> nn.Module:
    return CallCounting(n_classes)


def training_norm(n_classes: int) -> nn.Module:
    return TrainingNorm(n_classes)


class Tied(Net):
    """The last layer's weight is used twice."""

    def features(self, x: Tensor) -> Tensor:
        f = super().features(x)
        return f + functional.linear(functional.linear(f, self.fc.weight), self.fc.weight.T)


class NoBias(Net):
    def head(self, n_classes: int) -> nn.Linear:
        return nn.Linear(WIDTH, n_classes, bias=False)


class NamedArgument(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(input=self.features(x)[:, : self.fc.in_features])


class Viewing(Net):
    """Depends on the memory layout, so channels-last is not possible."""

    def head(self, n_classes: int) -> nn.Linear:
        return nn.Linear(WIDTH * 64, n_classes)

    def features(self, x: Tensor) -> Tensor:
        return functional.relu(self.conv2(functional.relu(self.norm(self.conv(x))))).view(
            -1, WIDTH * 64
        )


class Branching(Net):
    """Cannot be traced."""

    def features(self, x: Tensor) -> Tensor:
        f = super().features(x)
        return f if bool((x == x).any()) else -f


class DividingByStd(Net):
    """NaN for an image of one colour."""

    def features(self, x: Tensor) -> Tensor:
        return super().features(x / x.std(dim=(2, 3), keepdim=True))


class HalfPrecision(Net):
    """Computes in bfloat16 internally."""

    def features(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().features(x).float()


def ordinary(n_classes: int) -> nn.Module:
    return Net(n_classes)


def tied(n_classes: int) -> nn.Module:
    return Tied(n_classes)


def no_bias(n_classes: int) -> nn.Module:
    return NoBias(n_classes)


def named_argument(n_classes: int) -> nn.Module:
    return NamedArgument(n_classes)


def viewing(n_classes: int) -> nn.Module:
    return Viewing(n_classes)


def branching(n_classes: int) -> nn.Module:
    return Branching(n_classes)


def dividing_by_std(n_classes: int) -> nn.Module:
    return DividingByStd(n_classes)


def half_precision(n_classes: int) -> nn.Module:
    return HalfPrecision(n_classes)


def dropout_module(n_classes: int) -> nn.Module:
    return Net(n_classes, nn.Sequential(nn.BatchNorm2d(8), nn.Dropout(0.5)))


def channels_last(n_classes: int) -> nn.Module:
    return Net(n_classes).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # the stub lacks it


def weight_norm(n_classes: int) -> nn.Module:
    network = Net(n_classes)
    nn.utils.parametrizations.weight_norm(network.fc)
    return network


def zero_head(n_classes: int) -> nn.Module:
    network = Net(n_classes)
    nn.init.zeros_(network.fc.weight)
    nn.init.zeros_(network.fc.bias)
    return network


def tiny_logits(n_classes: int) -> nn.Module:
    """Logits far smaller than the terms of their sums."""
    network = Net(n_classes)
    with torch.no_grad():
        network.conv2.bias += 100
        network.fc.weight -= network.fc.weight.mean(dim=1, keepdim=True)
        network.fc.bias.zero_()
    return network


def data_parallel(n_classes: int) -> nn.Module:
    return nn.DataParallel(Net(n_classes))


def compiled(n_classes: int) -> nn.Module:
    return torch.compile(Net(n_classes), backend="eager")  # type: ignore[return-value]  # it is one


NOT_THE_HEAD = ("cosine", "scaled", "centred", "lora", "hooked")
NOT_THE_COPY = ("pre_hooked", "typed", "captured", "single")
CHANCE = ("dropping", "noisy", "seldom_dropping", "other_noise", "counting")
NEIGHBOURS = ("batch_norm", "less_mean", "less_first", "per_batch", "by_size")
RIGHT = (
    *("ordinary", "tied", "no_bias", "named_argument", "viewing", "branching", "dividing_by_std"),
    *("half_precision", "dropout_module", "channels_last", "weight_norm", "zero_head"),
    *("tiny_logits", "data_parallel", "compiled"),
)
