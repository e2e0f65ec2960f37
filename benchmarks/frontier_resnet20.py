"""Time of a whole frontier over its evaluations alone, time of a point over one evaluation, and peak memory.

    python benchmarks/frontier_resnet20.py CIFAR10_DIR WEIGHTS [--points 16] [--images 10000]

One run of `slimbit.trace_frontier` on a CIFAR ResNet-20 with baselines, in a new folder, so that nothing is cached.
Ratios within one run: wall-clock seconds of a shared machine mean little by themselves. Results: benchmarks/RESULTS.md.
"""

import argparse
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

import slimbit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--points", type=int, default=16)
    parser.add_argument("--images", type=int, default=10_000)
    arguments = parser.parse_args()
    data = slimbit.open_data(f"cifar10:{arguments.data},normalize=imagenet")
    model = slimbit.network("resnet20-A", weights=arguments.weights)
    evaluate = data.evaluator(arguments.images)
    evaluate(model)  # warm
    before = _peak_mib()
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        frontier = slimbit.trace_frontier(
            model,
            torch.zeros(1, *data.input_shape),
            data.calibration(500),
            evaluate,
            out=Path(folder) / "run",
            points=arguments.points,
        )
        wall = time.perf_counter() - start
    done = [point for point in frontier.points if point.state == "done"]
    assert len(done) == arguments.points + 7, [point.error for point in frontier.points]
    evaluations = [point.seconds["evaluate"] for point in done]
    ours = [point.seconds["compress"] for point in done if not point.baseline]
    total = sum(evaluations) + frontier.info.evaluate_seconds
    print(f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}, one run")
    print(f"{len(done)} points and the float network, {arguments.images} images each: {wall:.0f} s")
    print(f"whole frontier / its evaluations    {wall / total:.2f}")
    print(f"a point / an evaluation (medians)   {statistics.median(ours) / statistics.median(evaluations):.2f}")
    print(f"peak memory                         {_peak_mib():.0f} MiB, {before:.0f} of them before the frontier")


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
