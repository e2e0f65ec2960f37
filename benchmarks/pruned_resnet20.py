"""MACs of pruned ResNet-20s by torch's own counter, and their time on this CPU against the original's.

    python benchmarks/pruned_resnet20.py [RUNS]

Fails unless torch's counter finds exactly the MACs that `slimbit.prune` reports.
Times are taken in turn, original and pruned, so that a busy machine is busy for both; the ratio of medians is printed.
"""

import statistics
import sys
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

import slimbit

EXAMPLE = torch.zeros(1, 3, 32, 32)
BATCH = 128


def main(runs: int = 15) -> None:
    torch.set_num_threads(1)
    model = slimbit.network("resnet20").eval()
    prepared = slimbit.prepare(model, EXAMPLE, None)
    whole = counted(model)
    x = torch.randn(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for ratio in (0.75, 0.5, 0.25):
        small = slimbit.prune(prepared, keep=ratio)
        macs = small.cost.total.macs
        assert counted(small.model) == macs < whole, (counted(small.model), macs, whole)
        before, after = timed(model, small.model, x, runs=runs)
        print(
            f"keep {ratio:g}: {macs / 1e6:.2f}M of {whole / 1e6:.2f}M MACs ({whole / macs:.2f}x fewer), "
            f"{before / after:.2f}x faster (batch {BATCH}, one thread, {before * 1e3:.0f} and {after * 1e3:.0f} ms)"
        )


def counted(model: torch.nn.Module) -> int:
    """Multiply-accumulates by torch's counter, which counts two operations each."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(EXAMPLE)
    return counter.get_total_flops() // 2


def timed(original: torch.nn.Module, pruned: torch.nn.Module, x: torch.Tensor, *, runs: int) -> tuple[float, float]:
    """Median seconds of a forward pass of each, in turn after a warm-up."""
    seconds: tuple[list[float], list[float]] = ([], [])
    with torch.no_grad():
        for turn in range(runs + 2):
            for network, found in zip((original, pruned), seconds, strict=True):
                start = time.perf_counter()
                network(x)
                if turn >= 2:
                    found.append(time.perf_counter() - start)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
