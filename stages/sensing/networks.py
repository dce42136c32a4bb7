"""Built-in networks: the paper's CIFAR ResNets, VGG-16, WRN-40-2, and a two-layer CNN."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

RESNETS: Mapping[str, tuple[bool, tuple[int, int, int]]] = {
    "resnet18": (False, (2, 2, 2)),
    "resnet34": (False, (3, 4, 6)),
    "resnet50": (True, (3, 4, 6)),
    "resnet101": (True, (3, 4, 23)),
}
"""Name -> (bottleneck blocks, blocks per stage): the first three of the usual four counts."""

WIDE_BLOCKS = 6
"""Blocks of a stage of WRN-40-2: (40 - 4) / 6."""

VGG16_GROUPS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, n_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, width, 3, stride, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = _shortcut(n_in, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """``[n, n_in, H, W]`` -> ``[n, width, H/stride, W/stride]``."""
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return functional.relu(y + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 (strided) and 1x1 convolutions to four times the width, and a shortcut."""

    expansion = 4

    def __init__(self, n_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * self.expansion, 1)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.shortcut = _shortcut(n_in, width * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        """``[n, n_in, H, W]`` -> ``[n, 4 width, H/stride, W/stride]``."""
        y = functional.relu(self.bn1(self.conv1(x)))
        y = functional.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return functional.relu(y + self.shortcut(x))


class CifarResNet(nn.Module):
    """Three stages of 16, 32 and 64 channels, global average pooling, one linear layer.

    Source: networks/resnet.py of meliketoy/wide-resnet.pytorch, whose widths, depths and learning
    rate table are those of the paper (method notes, section 1.3). All convolutions have a bias.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        n_blocks: tuple[int, int, int],
        n_classes: int,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _resnet_stage(block, 16, 16, n_blocks[0], stride=1)
        self.layer2 = _resnet_stage(block, 16 * block.expansion, 32, n_blocks[1], stride=2)
        self.layer3 = _resnet_stage(block, 32 * block.expansion, 64, n_blocks[2], stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64 * block.expansion, n_classes)
        self.apply(_init_conv)

    def forward(self, x: Tensor) -> Tensor:
        """``[n, 3, H, W]`` -> logits ``[n, n_classes]``."""
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(torch.flatten(self.pool(x), 1))
        return logits


class WideBlock(nn.Module):
    """Batch norm, ReLU and a 3x3 convolution, twice, and a shortcut."""

    def __init__(self, n_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(n_in)
        self.conv1 = nn.Conv2d(n_in, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        is_same = n_in == width
        self.shortcut = None if is_same else nn.Conv2d(n_in, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[n, n_in, H, W]`` -> ``[n, width, H/stride, W/stride]``."""
        y = functional.relu(self.bn1(x))
        kept = x if self.shortcut is None else self.shortcut(y)
        y = self.conv2(functional.relu(self.bn2(self.conv1(y))))
        total: Tensor = y + kept
        return total


class WideResNet(nn.Module):
    """WRN-40-2: three stages of six blocks with 32, 64 and 128 channels, without dropout.

    Source: Zagoruyko & Komodakis, "Wide Residual Networks", 2016, with the initial weights of
    AugMix's code (google-research/augmix, ``wideresnet.py``).
    """

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.layer1 = _wide_stage(16, 32, stride=1)
        self.layer2 = _wide_stage(32, 64, stride=2)
        self.layer3 = _wide_stage(64, 128, stride=2)
        self.bn1 = nn.BatchNorm2d(128)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(128, n_classes)
        nn.init.zeros_(self.linear.bias)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """``[n, 3, H, W]`` -> logits ``[n, n_classes]``."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        x = functional.relu(self.bn1(x))
        logits: Tensor = self.linear(torch.flatten(self.pool(x), 1))
        return logits


class Vgg16(nn.Module):
    """Thirteen 3x3 convolutions with batch norm in five pooled groups, and one linear layer."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        n_in = 3
        for group in VGG16_GROUPS:
            for width in group:
                layers += [nn.Conv2d(n_in, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                n_in = width
            # Rounding up keeps one pixel for images under 32 px; 32 px is halved exactly.
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(n_in, n_classes)
        self.apply(_init_conv)

    def forward(self, x: Tensor) -> Tensor:
        """``[n, 3, H, W]`` -> logits ``[n, n_classes]``."""
        logits: Tensor = self.linear(torch.flatten(self.pool(self.features(x)), 1))
        return logits


class Cnn2(nn.Module):
    """Two convolutions, a 50-wide hidden layer with ReLU, one linear layer (the paper's Fig. 5)."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 5, padding=2)
        self.conv2 = nn.Conv2d(16, 32, 5, padding=2)
        self.pool = nn.AdaptiveAvgPool2d(4)
        self.hidden = nn.Linear(32 * 4 * 4, 50)
        self.linear = nn.Linear(50, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """``[n, 3, H, W]`` -> logits ``[n, n_classes]``; the last layer's input is >= 0."""
        x = functional.max_pool2d(functional.relu(self.conv1(x)), 2)
        x = functional.max_pool2d(functional.relu(self.conv2(x)), 2)
        x = functional.relu(self.hidden(torch.flatten(self.pool(x), 1)))
        logits: Tensor = self.linear(x)
        return logits


def cifar_resnet(name: str, n_classes: int) -> CifarResNet:
    """The CIFAR ResNet called ``name`` (a key of ``RESNETS``)."""
    is_bottleneck, n_blocks = RESNETS[name]
    return CifarResNet(Bottleneck if is_bottleneck else BasicBlock, n_blocks, n_classes)


def vgg16(n_classes: int) -> Vgg16:
    """VGG-16 with batch norm and a single linear layer, ``d = 512``."""
    return Vgg16(n_classes)


def wrn40_2(n_classes: int) -> WideResNet:
    """WRN-40-2, ``d = 128``."""
    return WideResNet(n_classes)


def cnn2(n_classes: int) -> Cnn2:
    """The two-layer CNN, ``d = 50``."""
    return Cnn2(n_classes)


def network_factories() -> dict[str, Callable[[int], nn.Module]]:
    """Name -> function of the number of classes, for every built-in network."""
    resnets = {name: partial(cifar_resnet, name) for name in RESNETS}
    return {**resnets, "vgg16": vgg16, "wrn40-2": wrn40_2, "cnn2": cnn2}


def _resnet_stage(
    block: type[BasicBlock] | type[Bottleneck], n_in: int, width: int, n_blocks: int, *, stride: int
) -> nn.Sequential:
    n_out = width * block.expansion
    first = block(n_in, width, stride)
    return nn.Sequential(first, *(block(n_out, width, 1) for _ in range(n_blocks - 1)))


def _wide_stage(n_in: int, width: int, *, stride: int) -> nn.Sequential:
    rest = (WideBlock(width, width, 1) for _ in range(WIDE_BLOCKS - 1))
    return nn.Sequential(WideBlock(n_in, width, stride), *rest)


def _shortcut(n_in: int, n_out: int, stride: int) -> nn.Module:
    if stride == 1 and n_in == n_out:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride), nn.BatchNorm2d(n_out))


def _init_conv(module: nn.Module) -> None:
    """Xavier-uniform with gain sqrt 2 and zero bias, as the original initialises convolutions."""
    if isinstance(module, nn.Conv2d):
        nn.init.xavier_uniform_(module.weight, gain=2**0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
