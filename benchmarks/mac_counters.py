"""What other tools say of one network, and why they differ: docs/mac-counters.md as a program.

    python benchmarks/mac_counters.py        counters that are not installed are left out

All count the same CIFAR ResNet-20 (projection shortcuts in stages 2 and 3) on one 3x32x32 image. Every difference
to our count is explained to the last operation by what else the tool counts; the program asserts it.
"""

import contextlib
import importlib.metadata
import io
import sys
import warnings
from collections.abc import Callable

import torch
from torch import nn

import slimbit

# What one image meets besides the multiply-accumulates of convolutions and the linear layer.
NORM = 200_704  # elements through BatchNorm: 7 x 16 x 1024 + 7 x 32 x 256 + 7 x 64 x 64
RELU = 188_416  # elements through ReLU: the same without the two shortcuts
POOL_IN, POOL_OUT = 4096, 64  # global average pooling
BIAS = 10
NORM_PARAMETERS = 2 * 784

Counter = Callable[[nn.Module, torch.Tensor], int]


def torch_flop_counter(model: nn.Module, image: torch.Tensor) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter:
        model(image)
    return counter.get_total_flops() // 2


def fvcore(model: nn.Module, image: torch.Tensor) -> int:
    from fvcore.nn import FlopCountAnalysis

    return int(FlopCountAnalysis(model, image).unsupported_ops_warnings(enabled=False).total())


def torchinfo(model: nn.Module, image: torch.Tensor) -> int:
    from torchinfo import summary

    return int(summary(model, input_data=image, verbose=0).total_mult_adds)


def torchprofile(model: nn.Module, image: torch.Tensor) -> int:
    from torchprofile import profile_macs

    return int(profile_macs(model, image))


def torch_pruning(model: nn.Module, image: torch.Tensor) -> int:
    import torch_pruning

    return int(torch_pruning.utils.count_ops_and_params(model, image)[0])


def ptflops(model: nn.Module, image: torch.Tensor) -> int:
    from ptflops import get_model_complexity_info

    options = {"as_strings": False, "print_per_layer_stat": False, "backend": "pytorch"}
    return int(get_model_complexity_info(model, tuple(image.shape[1:]), **options)[0])


def thop(model: nn.Module, image: torch.Tensor) -> int:
    from thop import profile

    return int(profile(model, inputs=(image,), verbose=False)[0])


COUNTERS: dict[str, tuple[Counter, int, str]] = {
    "torch": (torch_flop_counter, 0, "nothing else (two FLOP per MAC)"),
    "torchinfo": (torchinfo, NORM_PARAMETERS + BIAS, "BatchNorm parameters and biases, once each"),
    "torchprofile": (torchprofile, NORM + POOL_OUT, "BatchNorm 1 per element, pooling 1 per output"),
    "fvcore": (fvcore, 2 * NORM + POOL_IN, "BatchNorm 2 per element, pooling 1 per input"),
    "torch-pruning": (torch_pruning, 2 * NORM + RELU + POOL_IN + BIAS, "that, ReLU 1 per element, bias"),
    "ptflops": (ptflops, 2 * NORM + 2 * (RELU + POOL_IN) + BIAS, "that, ReLU and pooling twice"),
    "thop": (thop, 4 * NORM + POOL_IN + POOL_OUT, "BatchNorm 4 per element, pooling"),
}


def main() -> None:
    ours = slimbit.cost(slimbit.network("resnet20-B"), torch.zeros(1, 3, 32, 32)).total.macs
    print(f"{'slimbit ' + slimbit.__version__:30} {ours:>12,}")
    for package, (count, more, why) in COUNTERS.items():
        try:
            version = importlib.metadata.version(package)
            with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                theirs = count(slimbit.network("resnet20-B").eval(), torch.zeros(1, 3, 32, 32))
        except ImportError as error:
            print(f"{package:24} left out: {error}", file=sys.stderr)
            continue
        print(f"{package + ' ' + version:30} {theirs:>12,}  + {theirs - ours:>7,}  {why}")
        assert theirs - ours == more, (package, theirs - ours, more)


if __name__ == "__main__":
    main()
