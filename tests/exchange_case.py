"""Small networks of every form that is exported, and their compressed versions with quantized activations."""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slimbit.apply.activations import measure_activations
from slimbit.apply.compress import Compressed, compress
from slimbit.apply.layers import weights_of
from slimbit.plan.inputs import PlanInputs
from slimbit.plan.steps import step_by_range
from slimbit.records.activations import Codes
from slimbit.records.config import QuantConfig
from slimbit.records.dataflow import Dataflow
from slimbit.survey.dataflow import read_dataflow
from slimbit.survey.module import survey_network


class Residual(nn.Module):
    """Functional ReLUs, a residual sum, a global mean."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn0(self.stem(x)))
        x = F.relu(self.bn1(self.conv1(x)) + x)
        y = self.bn2(self.conv2(x))
        x = F.relu(y + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4)))
        return self.fc(x.mean((2, 3)))


class Mobile(nn.Module):
    """Depthwise layers, ReLU6, a linear bottleneck, squeeze and excitation, hard-swish; all in place."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Sequential(nn.Conv2d(4, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6(inplace=True))
        self.deep = nn.Sequential(
            nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16), nn.Hardswish(inplace=True)
        )
        self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 4, 1), nn.ReLU(inplace=True))
        self.gate = nn.Sequential(nn.Conv2d(4, 16, 1), nn.Hardsigmoid(inplace=True))
        self.down = nn.Sequential(nn.Conv2d(16, 4, 1, bias=False), nn.BatchNorm2d(4))
        self.head = nn.Sequential(nn.Conv2d(4, 6, 1), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.deep(self.up(x))
        y = y * self.gate(self.squeeze(y))
        return self.head(self.down(y) + x)


class UNet(nn.Module):
    """A skip by concatenation, transposed convolutions with and without overlap, a convolution as the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(6, 12, 3, padding=1), nn.BatchNorm2d(12), nn.LeakyReLU(0.1))
        self.c = nn.Sequential(nn.Conv2d(12, 12, 3, padding=1), nn.ReLU())
        self.up1 = nn.ConvTranspose2d(12, 12, 2, stride=2)
        self.up2 = nn.ConvTranspose2d(24, 6, 3, stride=2, padding=1, output_padding=1, groups=2)
        self.out = nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.b(F.max_pool2d(a, 2))
        c = self.up1(self.c(F.max_pool2d(b, 2)))
        return self.out(torch.cat([F.relu(self.up2(torch.cat([c, b], 1))), a], 1))


class Shuffle(nn.Module):
    """Grouped convolutions, a channel shuffle, halves that are split and joined, uneven padding, dilation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, (4, 3), padding="same")
        self.left = nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.fc = nn.Linear(8 * 16, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        a, b = x.chunk(2, dim=1)
        x = torch.cat([F.relu(self.left(a)), b], dim=1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.fc(torch.flatten(F.avg_pool2d(self.pool(x), 1), 1))


class Dense(nn.Module):
    """BatchNorm before the convolution, channels that grow by concatenation, constants in the forward method."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(6), nn.BatchNorm2d(10)])
        self.convs = nn.ModuleList([nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(10, 4, 3, padding=1)])
        self.last = nn.BatchNorm2d(14)
        self.fc = nn.Linear(14, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem((x - 0.25) / 0.5)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv(F.relu(norm(x)))], 1)
        x = F.adaptive_avg_pool2d(F.avg_pool2d(F.relu(self.last(x)), 2), 1)
        return self.fc(x.flatten(1))


class Tokens(nn.Module):
    """Linear layers on tokens, GELU, several outputs in a dict, one of them behind a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv1d(2, 8, 4, stride=4)
        self.mix, self.back = nn.Linear(8, 16), nn.Linear(16, 8)
        self.head, self.side = nn.Linear(8, 3), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.embed(x).transpose(1, 2)
        x = x + self.back(F.gelu(self.mix(x)))
        pooled = x.transpose(1, 2).mean(2)
        return {"logits": self.head(pooled), "kinds": torch.softmax(self.side(pooled), 1)}


class Vector(nn.Module):
    """Linear layers with BatchNorm, no positions at all; two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 8), nn.Linear(4, 8)
        self.bn, self.out = nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.out(self.bn(torch.tanh(self.left(a)) + torch.relu(self.right(b))))


class Upscale(nn.Module):
    """Nearest-neighbour scaling and a pixel shuffle; the image itself is added at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        detail = F.pixel_shuffle(self.b(F.relu(self.a(x))), 2)
        return (F.interpolate(x, scale_factor=2) + detail).clamp(0, 1)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[tuple[int, ...], ...]]] = {
    "residual": (Residual, ((3, 10, 10),)),
    "mobile": (Mobile, ((4, 7, 7),)),
    "unet": (UNet, ((1, 16, 16),)),
    "shuffle": (Shuffle, ((3, 8, 8),)),
    "dense": (Dense, ((3, 8, 8),)),
    "tokens": (Tokens, ((2, 24),)),
    "vector": (Vector, ((6,), (4,))),
    "upscale": (Upscale, ((3, 6, 6),)),
}


def built(name: str, *, seed: int = 0, alive: bool = False) -> nn.Module:
    """A network of that name with lively BatchNorms: some scales are negative and, unless ``alive``, one is zero."""
    torch.manual_seed(seed)
    network = NETWORKS[name][0]().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            n = module.num_features
            module.weight.data = torch.randn(n)
            module.weight.data[0] *= float(alive)
            module.bias.data, module.running_mean = torch.randn(n), torch.randn(n) * 0.3  # type: ignore[assignment]
            module.running_var = torch.rand(n) + 0.5
    return network


def inputs(name: str, count: int, *, seed: int = 1) -> tuple[Tensor, ...]:
    """Random inputs of a network, one tensor per argument."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.rand(count, *shape, generator=generator) * 2 - 0.5 for shape in NETWORKS[name][1])


def compressed(
    name: str,
    *,
    bits: int = 6,
    activation_bits: int = 8,
    grid: str = "midrise",
    alive: bool = False,
    codes: Codes = "unsigned",
) -> tuple[Compressed, Dataflow, tuple[Tensor, ...]]:
    """A network of that name in integers, its dataflow, and images that it was not calibrated on."""
    images = inputs(name, 24)
    network = built(name, alive=alive)
    result, flow = quantized(network, *images, bits=bits, activation_bits=activation_bits, grid=grid, codes=codes)
    return result, flow, inputs(name, 16, seed=2)


def quantized(
    network: nn.Module,
    *images: Tensor,
    bits: int = 6,
    activation_bits: int = 8,
    grid: str = "midrise",
    codes: Codes = "unsigned",
) -> tuple[Compressed, Dataflow]:
    """Any network in integers, by plain rounding, and its dataflow."""
    example = tuple(x[:1] for x in images)
    flow, spec = read_dataflow(network, example), survey_network(network, example).spec
    plain = QuantConfig(grid=grid, compensation=False, statistics="stored")
    plan = step_by_range(PlanInputs(spec=spec, weights=weights_of(network, spec)), bits, plain)
    batch = dict(zip(flow.inputs, images, strict=True)) if len(images) > 1 else images[0]
    plan = replace(plan, activations=measure_activations(network, flow, [batch], bits=activation_bits, codes=codes))
    return compress(network, plan, spec, [batch], flow=flow), flow
