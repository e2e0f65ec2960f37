"""Residual networks for 32x32 images: He et al. (2016), arXiv 1512.03385, section 4.2."""

from typing import Literal

import torch
from torch import Tensor, nn

from slimbit.records.errors import InputError
from slimbit.zoo.layers import initialize, scaled

Shortcut = Literal["projection", "A", "B"]


class PaddedShortcut(nn.Module):
    """Shortcut without weights ("option A"): every ``stride``-th pixel, missing channels filled with zeros.

    Half of the zeros go before the channels and half behind, as in the public CIFAR checkpoints.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.stride = stride
        before = (outputs - inputs) // 2
        # a module, not a function: pruning takes zero channels away with those that they are added to
        self.pad = nn.ZeroPad3d((0, 0, 0, 0, before, outputs - inputs - before))

    def forward(self, x: Tensor) -> Tensor:
        """Shape ``(batch, inputs, H, W)`` to ``(batch, outputs, ceil(H / stride), ceil(W / stride))``."""
        padded: Tensor = self.pad(x[:, :, :: self.stride, :: self.stride])
        return padded


def _conv3x3(inputs: int, outputs: int, *, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


def _shortcut(inputs: int, outputs: int, *, stride: int, shortcut: Shortcut) -> nn.Module:
    """The side path of a stage's first block."""
    if shortcut != "projection" and stride == 1 and inputs == outputs:
        return nn.Identity()
    if shortcut == "A":
        return PaddedShortcut(inputs, outputs, stride=stride)
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, each with BatchNorm, added to ``shortcut`` of the input."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1 = _conv3x3(inputs, outputs, stride=stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity() if shortcut is None else shortcut
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Shape ``(batch, inputs, H, W)`` to ``(batch, outputs, H / stride, W / stride)``."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y)) + self.shortcut(x)
        out: Tensor = self.relu(y)
        return out


def _stage(inputs: int, outputs: int, *, blocks: int, stride: int, shortcut: Shortcut) -> nn.Sequential:
    first = BasicBlock(
        inputs, outputs, stride=stride,
        shortcut=_shortcut(inputs, outputs, stride=stride, shortcut=shortcut),
    )  # fmt: skip
    return nn.Sequential(first, *(BasicBlock(outputs, outputs) for _ in range(blocks - 1)))


class ResNetCifar(nn.Module):
    """A 3x3 convolution, three stages of basic blocks, global average, one linear layer."""

    def __init__(
        self, widths: tuple[int, int, int], *, blocks: int, classes: int, shortcut: Shortcut, inputs: int = 3
    ) -> None:
        super().__init__()
        first, second, third = widths
        self.conv1 = _conv3x3(inputs, first)
        self.bn1 = nn.BatchNorm2d(first)
        self.relu = nn.ReLU()
        self.layer1 = _stage(first, first, blocks=blocks, stride=1, shortcut=shortcut)
        self.layer2 = _stage(first, second, blocks=blocks, stride=2, shortcut=shortcut)
        self.layer3 = _stage(second, third, blocks=blocks, stride=2, shortcut=shortcut)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(third, classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(batch, inputs, H, W)`` to logits ``(batch, classes)``."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(torch.flatten(self.pool(x), 1))
        return logits


def resnet_cifar(*, depth: int, classes: int, width: float = 1.0, shortcut: Shortcut = "projection") -> ResNetCifar:
    """ResNet-``depth`` for small images, 16/32/64 filters times ``width``.

    Args:
        depth: ``6 n + 2`` with n basic blocks per stage.
        classes: Outputs.
        width: Multiplier of every layer's filters.
        shortcut: "projection" (1x1 convolution and BatchNorm in the first block of all three stages),
            "A" (zero padding) or "B" (projections in stages 2 and 3).

    Raises:
        InputError: ``depth`` is not ``6 n + 2``.

    >>> tuple(resnet_cifar(depth=8, classes=10, width=0.5).layer3[0].conv1.weight.shape)
    (32, 16, 3, 3)
    """
    blocks, rest = divmod(depth - 2, 6)
    if blocks < 1 or rest:
        raise InputError(f"depth of a CIFAR ResNet must be 6 n + 2 with n >= 1, got {depth}")
    widths = (scaled(16, width), scaled(32, width), scaled(64, width))
    return ResNetCifar(widths, blocks=blocks, classes=classes, shortcut=shortcut)


def digits_resnet(*, classes: int, width: float = 1.0) -> ResNetCifar:
    """ResNet-8 for one-channel 8x8 images, 8/16/32 filters times ``width``, projections in all three stages.

    >>> sum(parameter.numel() for parameter in digits_resnet(classes=10).parameters())
    19890
    """
    widths = (scaled(8, width), scaled(16, width), scaled(32, width))
    return ResNetCifar(widths, blocks=1, classes=classes, shortcut="projection", inputs=1)
