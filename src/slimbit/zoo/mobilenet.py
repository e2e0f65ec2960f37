"""MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381) for 224x224 images, with public state-dict names."""

import torch
from torch import Tensor, nn

from slimbit.zoo.layers import initialize

STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Table 2 of the paper: expansion, channels, blocks, stride of the first block."""


def divisible(channels: float, by: int = 8) -> int:
    """The nearest multiple of ``by``, at least ``by``, and not more than 10 % below ``channels``.

    The rule of the reference implementation; public weights of other widths depend on it.

    >>> divisible(32 * 0.35), divisible(24 * 0.75)
    (16, 24)
    """
    rounded = max(by, int(channels + by / 2) // by * by)
    return rounded + by if rounded < 0.9 * channels else rounded


def _conv_bn_relu(inputs: int, outputs: int, *, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(),
    )


class InvertedResidual(nn.Module):
    """Widen with a 1x1, filter each channel with a 3x3, narrow with a 1x1; a shortcut where shapes agree."""

    def __init__(self, inputs: int, outputs: int, *, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        widen = [_conv_bn_relu(inputs, hidden, kernel=1)] if expansion != 1 else []
        self.conv = nn.Sequential(
            *widen,
            _conv_bn_relu(hidden, hidden, kernel=3, stride=stride, groups=hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.has_shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Shape ``(batch, inputs, H, W)`` to ``(batch, outputs, H / stride, W / stride)``."""
        y: Tensor = self.conv(x)
        return x + y if self.has_shortcut else y


class MobileNetV2(nn.Module):
    """A 3x3 convolution, 17 inverted residuals, a 1x1 convolution, global average, dropout, linear layer."""

    def __init__(self, *, classes: int, width: float) -> None:
        super().__init__()
        channels = divisible(32 * width)
        features: list[nn.Module] = [_conv_bn_relu(3, channels, kernel=3, stride=2)]
        for expansion, planes, blocks, first_stride in STAGES:
            outputs = divisible(planes * width)
            for index in range(blocks):
                stride = 1 if index else first_stride
                features.append(InvertedResidual(channels, outputs, expansion=expansion, stride=stride))
                channels = outputs
        last = divisible(1280 * max(1.0, width))  # the paper never narrows the last convolution
        self.features = nn.Sequential(*features, _conv_bn_relu(channels, last, kernel=1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, classes))
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(batch, 3, H, W)`` to logits ``(batch, classes)``."""
        logits: Tensor = self.classifier(torch.flatten(self.pool(self.features(x)), 1))
        return logits


def mobilenet_v2(*, classes: int, width: float = 1.0) -> MobileNetV2:
    """MobileNetV2 with channels times ``width``, rounded to multiples of 8.

    >>> mobilenet_v2(classes=1000, width=0.35).features[0][0].out_channels
    16
    """
    return MobileNetV2(classes=classes, width=width)
