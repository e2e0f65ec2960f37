"""DenseNet-BC for 32x32 images: Huang et al. (2017), arXiv 1608.06993."""

import torch
from torch import Tensor, nn

from slimbit.records.errors import InputError
from slimbit.zoo.layers import initialize, scaled

COMPRESSION = 0.5
"""theta: the part of the channels that a transition keeps ("C" in BC)."""
BOTTLENECK = 4
"""A 1x1 convolution narrows to this many times the growth before each 3x3 ("B" in BC)."""


class DenseLayer(nn.Module):
    """BatchNorm, ReLU, convolution, twice (1x1, 3x3); the ``growth`` new channels go behind the input."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        between = BOTTLENECK * growth
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, between, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(between)
        self.conv2 = nn.Conv2d(between, growth, 3, padding=1, bias=False)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Shape ``(batch, inputs, H, W)`` to ``(batch, inputs + growth, H, W)``."""
        y = self.conv1(self.relu(self.bn1(x)))
        y = self.conv2(self.relu(self.bn2(y)))
        return torch.cat((x, y), 1)


class Transition(nn.Module):
    """BatchNorm, ReLU, a 1x1 convolution to fewer channels, and a pooling that halves the side."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(inputs)
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.pool = nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        """Shape ``(batch, inputs, H, W)`` to ``(batch, outputs, H / 2, W / 2)``."""
        out: Tensor = self.pool(self.conv(self.relu(self.bn(x))))
        return out


class DenseNet(nn.Module):
    """A 3x3 convolution, three dense blocks with transitions between, global average, linear layer."""

    def __init__(self, *, layers: int, growth: int, classes: int) -> None:
        super().__init__()
        channels = 2 * growth
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        stages: list[nn.Module] = []
        for stage in range(3):
            if stage:
                stages.append(Transition(channels, int(COMPRESSION * channels)))
                channels = int(COMPRESSION * channels)
            stages.append(nn.Sequential(*(DenseLayer(channels + i * growth, growth) for i in range(layers))))
            channels += layers * growth
        self.block1, self.transition1, self.block2, self.transition2, self.block3 = stages
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(channels, classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(batch, 3, H, W)`` to logits ``(batch, classes)``."""
        x = self.transition1(self.block1(self.conv1(x)))
        x = self.block3(self.transition2(self.block2(x)))
        x = self.pool(self.relu(self.bn(x)))
        logits: Tensor = self.linear(torch.flatten(x, 1))
        return logits


def densenet_bc(*, depth: int, growth: int, classes: int, width: float = 1.0) -> DenseNet:
    """DenseNet-BC of ``depth`` layers; ``width`` multiplies the growth, and with it every layer.

    Args:
        depth: ``6 n + 4``: three blocks of n layers with two convolutions each.
        growth: Channels that each layer adds (k).
        classes: Outputs.
        width: Multiplier of the growth.

    Raises:
        InputError: ``depth`` is not ``6 n + 4``.

    >>> densenet_bc(depth=100, growth=12, classes=100).linear
    Linear(in_features=342, out_features=100, bias=True)
    """
    layers, rest = divmod(depth - 4, 6)
    if layers < 1 or rest:
        raise InputError(f"depth of a DenseNet-BC must be 6 n + 4 with n >= 1, got {depth}")
    return DenseNet(layers=layers, growth=scaled(growth, width), classes=classes)
