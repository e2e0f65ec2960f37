"""Time of one point over one forward pass of its calibration images, and peak memory, at 224 x 224.

    python benchmarks/large.py [NETWORK] [--images 200] [--threads 1]

A network of the zoo (default: resnet50) with random weights and random images, 4 bits: what is measured does not depend
on what was learnt. Parts of a point, by Python's profiler: the second moments of what layers read, and the column loops
of compensation and coordinate descent with their Cholesky factors. Ratios within one run, by processor time, which
other work on the machine disturbs less than a clock. Results: benchmarks/RESULTS.md.
"""

import argparse
import cProfile
import os
import pstats
import resource
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

import slimbit

PARTS = {"column loops and factors": "quantize_layer", "second moments": "patch_sums"}
"""Functions of Slimbit that the profile is read for."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", nargs="?", default="resnet50")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model = slimbit.network(arguments.network).eval()
    images = torch.randn(arguments.images, 3, 224, 224)
    before = _peak_gib()
    prepared = slimbit.prepare(model, images[:1], images)
    calibrating = _seconds(lambda: prepared.calibration)
    forward = min(_seconds(lambda: _pass(model, images)) for _ in range(2))
    profile = cProfile.Profile(time.process_time)
    point = _seconds(lambda: profile.runcall(slimbit.quantize, prepared, bits=4))
    parts = {what: _within(profile, function) for what, function in PARTS.items()}
    loops = parts["column loops and factors"]
    print(f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}, {arguments.network}")
    print(f"{arguments.images} images, processor seconds, and how many forward passes that is")
    for what, seconds in {
        "forward pass": forward,
        "calibration": calibrating,
        "point": point,
        **{f"  {what}": seconds for what, seconds in parts.items()},
        "point without column loops": point - loops,
    }.items():
        print(f"{what:32} {seconds:8.1f}  {seconds / forward:.2f}")
    print(f"{'peak memory':32} {_peak_gib():8.2f} GiB, {before:.2f} of them before")


def _pass(model: torch.nn.Module, images: torch.Tensor) -> None:
    with torch.no_grad():
        for batch in images.split(25):
            model(batch)


def _seconds(task: Callable[[], Any]) -> float:
    start = time.process_time()
    task()
    return time.process_time() - start


def _within(profile: cProfile.Profile, function: str) -> float:
    """Seconds in a function and in what it calls."""
    found = [entry[3] for (_, _, name), entry in pstats.Stats(profile).stats.items() if name == function]
    assert len(found) == 1, f"one function {function} must be in the profile, got {len(found)}"
    return found[0]


def _peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)


if __name__ == "__main__":
    main()
