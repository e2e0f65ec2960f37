"""Costs of networks that others wrote, beside torch's own counter: every multiply-accumulate must be accounted for.

    pip install pytorchcv timm monai && python benchmarks/foreign_counts.py      packages that are missing are left out

For each network: MACs in layers, MACs listed as other work, and their sum, which must equal half of what
`torch.utils.flop_counter` says of the same pass, for one image and for a batch of three.
"""

import contextlib
import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import slimbit
from slimbit.zoo.timm_models import timm_model, torchvision_or_placeholders

PYTORCHCV = (
    "shufflenet_g1_w1", "shufflenetv2_w1", "menet108_8x1_g3", "squeezenet_v1_1", "mobilenet_w1", "mobilenetv3_large_w1",
    "igcv3_w1", "mnasnet_a1", "darts", "nasnet_4a1056", "pnasnet5large", "efficientnet_b0", "mixnet_s", "dicenet_w1",
    "condensenet74_c4_g4", "dpn68", "sknet50", "senet16", "seresnet18", "octresnet50b_ad2",
    "resnext50_32x4d", "densenet121", "peleenet", "hrnet_w18_small_v1", "vovnet27s", "selecsls42b", "lednet_cityscapes",
)  # fmt: skip
TIMM = (
    "resnet18",
    "convnext_tiny",
    "vit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
    "mobilevit_xxs",
    "coat_tiny",
)


def main() -> None:
    """Count every network that can be built, and stop at the first that is wrong."""
    warnings.simplefilter("ignore")
    counted = 0
    for name, build, shape in networks():
        model = build().eval()
        report = slimbit.cost(model, torch.zeros(1, *shape))
        three = slimbit.cost(model, torch.zeros(1).expand(3, *shape))
        other = sum(work.macs for work in report.other_work)
        expected = independent(model, torch.zeros(1, *shape))
        notes = f"  {' '.join(report.notes)}" if report.notes else ""
        print(f"{name:36s} {report.total.macs:14,} + {other:12,} other, counter {expected:14,}{notes}", flush=True)
        assert report.total.macs + other == expected, name
        assert three.total.macs == report.total.macs, f"{name} in a batch of three"
        assert [work.macs for work in three.other_work] == [work.macs for work in report.other_work], name
        counted += 1
    print(f"{counted} networks, every multiply-accumulate accounted for (torch {torch.__version__})")
    sys.exit(0 if counted else "no package with networks is installed")


def networks() -> Iterator[tuple[str, Callable[[], nn.Module], tuple[int, ...]]]:
    """Name, builder and input shape of every network whose package is there."""
    with contextlib.suppress(ImportError):
        with torchvision_or_placeholders():  # it wants a layer that none of these networks has
            get_model = importlib.import_module("pytorchcv.model_provider").get_model
        for name in PYTORCHCV:
            size = 331 if "nasnet5" in name else 512 if "lednet" in name else 224
            yield name, lambda name=name: get_model(name), (3, size, size)
    with contextlib.suppress(ImportError):
        nets = importlib.import_module("monai.networks.nets")
        for norm in ("batch", "instance"):
            sizes = {"channels": (8, 16, 32), "strides": (2, 2), "num_res_units": 2, "norm": norm}
            yield f"monai UNet, {norm}", lambda s=sizes: nets.UNet(3, 1, 2, **s), (1, 32, 32, 32)
            yield f"monai SegResNet, {norm}", lambda n=norm: nets.SegResNet(3, 8, 1, 2, norm=n), (1, 32, 32, 32)
    if importlib.util.find_spec("timm") is not None:
        for name in TIMM:
            size = 256 if "mobilevit" in name else 224
            yield f"timm {name}", lambda name=name: timm_model(name), (3, size, size)


def independent(model: nn.Module, example: torch.Tensor) -> int:
    """MACs by torch's own counter, on shapes alone."""
    torch.backends.mha.set_fastpath_enabled(False)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.to("meta")(example.to("meta"))
    torch.backends.mha.set_fastpath_enabled(True)
    return int(counter.get_total_flops()) // 2


if __name__ == "__main__":
    main()
