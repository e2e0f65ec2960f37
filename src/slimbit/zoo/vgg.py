"""VGG7 for 32x32 images: (2x128C3)-MP-(2x256C3)-MP-(2x512C3)-MP-1024FC, each with BatchNorm."""

import torch
from torch import Tensor, nn

from slimbit.zoo.layers import initialize, scaled

SIDE_AFTER_POOLING = 32 // 2**3


def _pair(inputs: int, outputs: int) -> list[nn.Module]:
    """Two 3x3 convolutions and a pooling that halves the side."""
    modules: list[nn.Module] = []
    for channels in (inputs, outputs):
        modules += [
            nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
        ]  # fmt: skip
    return [*modules, nn.MaxPool2d(2)]


class VGG7(nn.Module):
    """Six convolutions, one hidden linear layer, one classifier."""

    def __init__(self, widths: tuple[int, int, int], *, hidden: int, classes: int) -> None:
        super().__init__()
        first, second, third = widths
        self.features = nn.Sequential(*_pair(3, first), *_pair(first, second), *_pair(second, third))
        self.hidden = nn.Linear(third * SIDE_AFTER_POOLING**2, hidden, bias=False)
        self.bn = nn.BatchNorm1d(hidden)
        self.relu = nn.ReLU()
        self.classifier = nn.Linear(hidden, classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(batch, 3, 32, 32)`` to logits ``(batch, classes)``."""
        x = self.hidden(torch.flatten(self.features(x), 1))
        logits: Tensor = self.classifier(self.relu(self.bn(x)))
        return logits


def vgg7(*, classes: int, width: float = 1.0) -> VGG7:
    """VGG7 with every layer's filters times ``width``, the hidden linear layer included.

    >>> vgg7(classes=10, width=0.5).hidden
    Linear(in_features=4096, out_features=512, bias=False)
    """
    widths = (scaled(128, width), scaled(256, width), scaled(512, width))
    return VGG7(widths, hidden=scaled(1024, width), classes=classes)
