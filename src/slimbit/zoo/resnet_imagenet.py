"""ResNet-18 and ResNet-50 for 224x224 images, with the state-dict names that public weights use."""

import torch
from torch import Tensor, nn

from slimbit.records.errors import InputError
from slimbit.zoo.layers import initialize, scaled


def _conv(inputs: int, outputs: int, *, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)


def _downsample(inputs: int, outputs: int, *, stride: int) -> nn.Module | None:
    """The projection on the shortcut; None where the shapes already agree."""
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(_conv(inputs, outputs, kernel=1, stride=stride), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, planes: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, planes, kernel=3, stride=stride)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU()
        self.conv2 = _conv(planes, planes, kernel=3)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = _downsample(inputs, planes, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """Shape ``(batch, inputs, H, W)`` to ``(batch, planes, H / stride, W / stride)``."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        out: Tensor = self.relu(self.bn2(self.conv2(y)) + shortcut)
        return out


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolution beside a shortcut; the 3x3 has the stride ("v1.5"), as in public weights."""

    expansion = 4

    def __init__(self, inputs: int, planes: int, *, stride: int) -> None:
        super().__init__()
        outputs = planes * self.expansion
        self.conv1 = _conv(inputs, planes, kernel=1)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = _conv(planes, planes, kernel=3, stride=stride)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = _conv(planes, outputs, kernel=1)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.downsample = _downsample(inputs, outputs, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """Shape ``(batch, inputs, H, W)`` to ``(batch, 4 planes, H / stride, W / stride)``."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        out: Tensor = self.relu(self.bn3(self.conv3(y)) + shortcut)
        return out


Block = type[BasicBlock] | type[Bottleneck]
KINDS: dict[int, tuple[Block, tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    50: (Bottleneck, (3, 4, 6, 3)),
}


class ResNetImageNet(nn.Module):
    """A 7x7 convolution, pooling, four stages of residual blocks, global average, one linear layer."""

    def __init__(self, block: Block, blocks: tuple[int, int, int, int], *, planes: int, classes: int) -> None:
        super().__init__()
        self.conv1 = _conv(3, planes, kernel=7, stride=2)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        inputs = planes
        stages: list[nn.Module] = []
        for number, count in enumerate(blocks):
            stage = []
            for index in range(count):
                stride = 2 if number and not index else 1
                stage.append(block(inputs, planes * 2**number, stride=stride))
                inputs = planes * 2**number * block.expansion
            stages.append(nn.Sequential(*stage))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(batch, 3, H, W)`` to logits ``(batch, classes)``."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits


def resnet_imagenet(*, depth: int, classes: int, width: float = 1.0) -> ResNetImageNet:
    """ResNet-18 or ResNet-50, 64/128/256/512 planes times ``width``.

    Args:
        depth: 18 or 50.
        classes: Outputs.
        width: Multiplier of every layer's filters.

    Raises:
        InputError: Another depth.

    >>> resnet_imagenet(depth=18, classes=1000, width=0.25).fc
    Linear(in_features=128, out_features=1000, bias=True)
    """
    if depth not in KINDS:
        raise InputError(f"depth of an ImageNet ResNet must be 18 or 50, got {depth}")
    block, blocks = KINDS[depth]
    return ResNetImageNet(block, blocks, planes=scaled(64, width), classes=classes)
