"""Time and memory of `slimbit.cost` on ResNet-50 at 4 bits, as ratios within one run.

    python benchmarks/cost_resnet50.py            needs fvcore, torchinfo and psutil (extra `dev`)

Three questions, each answered beside its reference and with its result asserted:
all metrics of 25.5M weights over one plain pass (sum of squares of each tensor); extra memory over the largest
layer; and the time of two other counters that count MACs only, on the same network and input.
Results with machine and versions: benchmarks/RESULTS.md.
"""

import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable

import torch

import slimbit

MACS = 4_089_184_256  # convolutions + linear; torch.utils.flop_counter gives twice that
RUNS = 7


def main() -> None:
    if sys.argv[1:] == ["--memory"]:
        print(_extra_bytes())
        return
    model = slimbit.network("resnet50").eval()
    image = torch.zeros(1, 3, 224, 224)
    seconds = _interleaved(
        {
            "sum of squares": lambda: _sum_of_squares(model),
            "slimbit.cost, 4 bits, all metrics": lambda: _count_with_slimbit(model, image),
            "fvcore": lambda: _count_with_fvcore(model, image),
            "torchinfo": lambda: _count_with_torchinfo(model, image),
        }
    )
    base = seconds["sum of squares"]
    print(f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"median of {RUNS} interleaved runs")
    for name, median in seconds.items():
        print(f"{name:36} {1e3 * median:8.1f} ms  {median / base:6.1f} x")
    largest = max(p.numel() * p.element_size() for p in model.parameters())
    extra = int(
        subprocess.run([sys.executable, __file__, "--memory"], capture_output=True, text=True, check=True).stdout
    )
    print(f"extra peak memory: {extra / 2**20:.1f} MiB = {extra / largest:.2f} x the largest layer")


def _interleaved(tasks: dict[str, Callable[[], None]]) -> dict[str, float]:
    for task in tasks.values():
        task()
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(RUNS):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def _sum_of_squares(model: torch.nn.Module) -> None:
    with torch.no_grad():
        assert sum(float(p.square().sum()) for p in model.parameters() if p.ndim > 1) > 0


def _count_with_slimbit(model: torch.nn.Module, image: torch.Tensor) -> None:
    assert slimbit.cost(model, image, bits=4).total.macs == MACS


def _count_with_fvcore(model: torch.nn.Module, image: torch.Tensor) -> None:
    from fvcore.nn import FlopCountAnalysis

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        counts = FlopCountAnalysis(model, image).unsupported_ops_warnings(enabled=False).by_operator()
    assert counts["conv"] + counts["linear"] == MACS


def _count_with_torchinfo(model: torch.nn.Module, image: torch.Tensor) -> None:
    import torchinfo

    total = torchinfo.summary(model, input_data=image, verbose=0).total_mult_adds
    assert abs(total - MACS) < 0.002 * MACS  # torchinfo adds batch normalization and biases


def _extra_bytes() -> int:
    """Growth of the peak resident memory over the memory held before the call, everything imported and warmed up."""
    import psutil

    model = slimbit.network("resnet50").eval()
    image = torch.zeros(1).expand(1, 3, 224, 224)
    slimbit.cost(slimbit.network("resnet20"), torch.zeros(1).expand(1, 3, 32, 32), bits=4)
    with open("/proc/self/clear_refs", "w") as file:  # noqa: PTH123 - resets the peak (Linux)
        file.write("5")
    before = psutil.Process().memory_info().rss
    slimbit.cost(model, image, bits=4)
    peak = next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))  # noqa: PTH123, SIM115
    return peak - before


if __name__ == "__main__":
    main()
