"""The networks are the published ones: multiply-accumulates, parameters, filters, state-dict names."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from slimbit import zoo


def meta_network(name: str) -> nn.Module:
    with torch.device("meta"):
        return zoo.network(name).eval()


def counted_macs(name: str) -> tuple[int, int]:
    """Convolution and linear MACs of one image, by torch's own counter (2 operations per MAC)."""
    model = meta_network(name)
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, *zoo.default_input(name), device="meta"))
    counts = {str(operation): flops for operation, flops in counter.get_flop_counts()["Global"].items()}
    convolution = counts.pop("aten.convolution")
    return convolution // 2, sum(counts.values()) // 2


# ResNet-(6n+2), 32x32 images, 3x3 convolutions:
#   stem      3*16*9 * 1024                              =    442,368
#   stage 1   2n * 16*16*9 * 1024                        = n * 4,718,592
#   stage 2   16*32*9 * 256 + (2n-1) * 32*32*9 * 256     = 1,179,648 + (2n-1) * 2,359,296
#   stage 3   32*64*9 * 64 + (2n-1) * 64*64*9 * 64       = 1,179,648 + (2n-1) * 2,359,296
#   n = 3:    442,368 + 14,155,776 + 2 * 12,976,128      = 40,550,400
#   1x1 projections: 16*16*1024 = 262,144 (stage 1), 16*32*256 = 32*64*64 = 131,072 (stages 2, 3); linear 64*10.
# VGG7: 9 * (3*128*1024 + 128*128*1024 + 128*256*256 + 256*256*256 + 256*512*64 + 512*512*64) = 607,518,720;
#   linear 8192*1024 + 1024*10.
# The ImageNet figures are the ones that are quoted everywhere (1.814 G, 4.09 G, 0.301 G).
MACS = {
    "resnet8": (442_368 + 4_718_592 + 2 * 3_538_944 + 524_288, 640),
    "resnet14": (442_368 + 9_437_184 + 2 * 8_257_536 + 524_288, 640),
    "resnet20": (41_074_688, 640),
    "resnet20-A": (40_550_400, 640),
    "resnet20-B": (40_550_400 + 262_144, 640),
    "vgg7": (607_518_720, 8_398_848),
    "vgg7@0.5": (152_764_416, 4096 * 512 + 5120),
    "vgg7@0.25": (38_633_472, 2048 * 256 + 2560),
    "densenet_bc_100_12": (287_926_272, 342 * 10),
    "resnet18": (1_814_073_344 - 512_000, 512_000),
    "resnet50": (4_089_184_256 - 2_048_000, 2_048_000),
    "mobilenet_v2": (300_774_272 - 1_280_000, 1_280_000),
}


@pytest.mark.parametrize("name", MACS)
def test_macs(name: str) -> None:
    assert counted_macs(name) == MACS[name]


# resnet20-A: the 269,722 of the public CIFAR code ("0.27M"); densenet: the 769,162 of the public CIFAR-10 code.
PARAMETERS = {
    "resnet20-A": 269_722,
    "densenet_bc_100_12": 769_162,
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    "mobilenet_v2": 3_504_872,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name: str) -> None:
    assert sum(parameter.numel() for parameter in meta_network(name).parameters()) == PARAMETERS[name]


# 16 (stem) + 2n * (16 + 32 + 64) + 112 (projections): n = 3: 16 + 672 + 112; without projections 688.
@pytest.mark.parametrize(
    ("name", "filters"),
    [("resnet20", 800), ("resnet14", 576), ("resnet8", 352), ("resnet20-A", 688), ("resnet20-B", 784)],
)
def test_convolution_filters(name: str, filters: int) -> None:
    convolutions = [m for m in meta_network(name).modules() if isinstance(m, nn.Conv2d)]
    assert sum(convolution.out_channels for convolution in convolutions) == filters


def batchnorm(*names: str) -> set[str]:
    fields = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return {f"{name}.{field}" for name in names for field in fields}


def residual_names(blocks: tuple[int, ...], *, convolutions: int, projected: tuple[int, ...], side: str) -> set[str]:
    names = {"conv1.weight", *batchnorm("bn1")}
    for stage, count in enumerate(blocks, start=1):
        for path in (f"layer{stage}.{block}" for block in range(count)):
            for number in range(1, convolutions + 1):
                names |= {f"{path}.conv{number}.weight", *batchnorm(f"{path}.bn{number}")}
        if stage in projected:
            names |= {f"layer{stage}.0.{side}.0.weight", *batchnorm(f"layer{stage}.0.{side}.1")}
    return names


def mobilenet_names() -> set[str]:
    names = {"features.0.0.weight", "features.18.0.weight", "classifier.1.weight", "classifier.1.bias"}
    names |= batchnorm("features.0.1", "features.18.1", "features.1.conv.0.1", "features.1.conv.2")
    names |= {"features.1.conv.0.0.weight", "features.1.conv.1.weight"}  # the first block does not widen
    for path in (f"features.{block}.conv" for block in range(2, 18)):
        names |= {f"{path}.0.0.weight", f"{path}.1.0.weight", f"{path}.2.weight"}
        names |= batchnorm(f"{path}.0.1", f"{path}.1.1", f"{path}.3")
    return names


FC, LINEAR = {"fc.weight", "fc.bias"}, {"linear.weight", "linear.bias"}
NAMES = {
    "resnet20": LINEAR | residual_names((3, 3, 3), convolutions=2, projected=(1, 2, 3), side="shortcut"),
    "resnet20-A": LINEAR | residual_names((3, 3, 3), convolutions=2, projected=(), side="shortcut"),
    "resnet20-B": LINEAR | residual_names((3, 3, 3), convolutions=2, projected=(2, 3), side="shortcut"),
    "resnet18": FC | residual_names((2, 2, 2, 2), convolutions=2, projected=(2, 3, 4), side="downsample"),
    "resnet50": FC | residual_names((3, 4, 6, 3), convolutions=3, projected=(1, 2, 3, 4), side="downsample"),
    "mobilenet_v2": mobilenet_names(),
}
# Entries of the public weight files: ResNet-18 122, ResNet-50 320, MobileNetV2 314.
ENTRIES = {"resnet18": 122, "resnet50": 320, "mobilenet_v2": 314}


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_names(name: str) -> None:
    state = meta_network(name).state_dict()
    assert set(state) == NAMES[name]
    assert len(state) == ENTRIES.get(name, len(NAMES[name]))


@pytest.mark.parametrize(
    ("name", "key", "shape"),
    [
        ("resnet18", "layer2.0.downsample.0.weight", (128, 64, 1, 1)),
        ("resnet50", "layer4.2.conv3.weight", (2048, 512, 1, 1)),
        ("mobilenet_v2", "features.14.conv.1.0.weight", (576, 1, 3, 3)),
        ("mobilenet_v2", "classifier.1.weight", (1000, 1280)),
        ("mobilenet_v2@0.35", "features.17.conv.2.weight", (112, 336, 1, 1)),
    ],
)
def test_shapes_of_public_weights(name: str, key: str, shape: tuple[int, ...]) -> None:
    assert tuple(meta_network(name).state_dict()[key].shape) == shape


def test_stride_of_resnet50_sits_in_the_3x3() -> None:
    block = meta_network("resnet50").get_submodule("layer2.0")
    assert (block.conv1.stride, block.conv2.stride) == ((1, 1), (2, 2))
