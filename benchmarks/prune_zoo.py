"""Pruning of networks that others wrote: what is cut, what stays whole, and whether the result computes the same.

    pip install pytorchcv monai && python benchmarks/prune_zoo.py [NAME ...] [--out FILE.csv]

For each network (those of `foreign_counts.py` that the installed packages have): its cost must equal that of torch's
own counter; half of the filters of every group are removed; the smaller network must cost what torch's counter says of
it, and its outputs on a random image must be those of the whole network with these filters masked, to 1e-5 of the
largest (in float64, so that the order of sums does not matter). A layer is whole if it keeps all of its filters, as the
last one always does. Weights are random, and BatchNorms are set to do something.
"""

import argparse
import copy
import csv
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from foreign_counts import independent, networks
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

import slimbit
from slimbit.apply.mask import mask

KEEP, CLOSE = 0.5, 1e-5
BEFORE = {
    "shufflenetv2_w1": 22, "mixnet_s": 105, "igcv3_w1": 98, "dicenet_w1": 121, "dpn68": 27, "sknet50": 65,
    "lednet_cityscapes": 34,
}  # fmt: skip
"""Whole layers before sizes, shuffles and parts were followed, where that was measured."""


@dataclass(frozen=True)
class Row:
    """What became of one network.

    Attributes:
        network: Its name.
        layers: Convolutions and linear layers.
        whole_before: Layers that kept all filters before, if known.
        whole: Layers that keep all filters now.
        macs: Of the whole network, in layers and beside them; equal to torch's counter.
        macs_pruned: Of the smaller one, equal as well.
        difference: Largest difference of its outputs from the masked network's, over their largest value.
        seconds: For finding the groups, the cut and the comparison that `slimbit.prune` makes.
    """

    network: str
    layers: int
    whole_before: int | None
    whole: int
    macs: int
    macs_pruned: int
    difference: float
    seconds: float


def main() -> None:
    """Prune every network that can be built, and stop at the first that is wrong."""
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", help="networks; default: all but those of timm")
    parser.add_argument("--out", type=Path, help="CSV file to write")
    given = parser.parse_args()
    rows = []
    for name, build, shape in networks():
        if name in given.names or (not given.names and not name.startswith("timm")):
            rows.append(row_of(name, lively(build()), torch.randn(1, *shape, generator=seeded())))
            print(rows[-1], flush=True)
            if given.out:
                write(given.out, rows)
    print(f"{len(rows)} networks, outputs equal, every multiply-accumulate accounted for (torch {torch.__version__})")
    sys.exit(0 if rows else "no package with networks is installed")


def row_of(name: str, model: nn.Module, image: Tensor) -> Row:
    """Prune one network and compare.

    Raises:
        AssertionError: A cost that is not the counter's, or other outputs than the masked network's.
    """
    macs = counted(name, model, image)
    start = time.perf_counter()
    pruned = slimbit.prune(model, image, keep=KEEP)
    seconds = time.perf_counter() - start
    assert pruned.keep is not None
    masked = mask(model, pruned.keep, image)
    difference = max(
        float((found - wanted).abs().max() / wanted.abs().max())
        for found, wanted in zip(outputs(pruned.model, image), outputs(masked, image), strict=True)
    )
    assert difference <= CLOSE, f"{name}: outputs differ from the masked network's by {difference:.2g} of the largest"
    sizes = list(zip(filters(model), filters(pruned.model), strict=True))
    return Row(
        network=name,
        layers=len(sizes),
        whole_before=BEFORE.get(name),
        whole=sum(before == after for before, after in sizes),
        macs=macs,
        macs_pruned=counted(name, pruned.model, image),
        difference=float(f"{difference:.1e}"),
        seconds=round(seconds, 1),
    )


def counted(name: str, model: nn.Module, image: Tensor) -> int:
    """MACs of one image, in layers and beside them, which must be what torch's counter says."""
    report = slimbit.cost(model, image)
    macs = report.total.macs + sum(work.macs for work in report.other_work)
    expected = independent(copy.deepcopy(model), image)
    assert macs == expected, f"{name}: {macs:,} MACs, torch's counter says {expected:,}"
    return macs


def filters(model: nn.Module) -> list[int]:
    """Number of filters of every layer."""
    layers = (module for module in model.modules() if isinstance(module, _ConvNd | nn.Linear))
    return [layer.out_channels if isinstance(layer, _ConvNd) else layer.out_features for layer in layers]


def outputs(model: nn.Module, image: Tensor) -> list[Tensor]:
    """All tensors that a network returns, in float64."""
    with torch.no_grad():
        found = copy.deepcopy(model).double()(image.double())
    return list(tensors(found))


def tensors(values: object) -> Iterator[Tensor]:
    """Every tensor in a nest of tuples, lists and dicts."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, dict | list | tuple):
        for value in values.values() if isinstance(values, dict) else values:
            yield from tensors(value)


def lively(model: nn.Module) -> nn.Module:
    """BatchNorms as after training: no scale is 1, no shift and no mean is 0."""
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            module.running_mean.uniform_(-0.3, 0.3, generator=seeded())
            module.running_var.uniform_(0.5, 2.0, generator=seeded())
            if module.affine:
                with torch.no_grad():
                    module.weight.uniform_(0.5, 1.5, generator=seeded())
                    module.bias.uniform_(-0.3, 0.7, generator=seeded())
    return model.eval()


def seeded() -> torch.Generator:
    """A generator that starts anew."""
    return torch.Generator().manual_seed(0)


def write(path: Path, rows: Iterable[Row]) -> None:
    """All rows as CSV."""
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        table.writeheader()
        table.writerows(map(asdict, rows))


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
