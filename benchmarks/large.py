"""Time of one point over one forward pass of its calibration images, and peak memory, at 224 x 224.

    python benchmarks/large.py [NETWORK] [--images 200] [--threads 1] [--batch-size N] [--memory GIB]

A network of the zoo (default: resnet50) with random weights and random images, steps of half a deviation: what is
measured does not depend on what was learnt. Parts of a point: the pass itself with its moments, and the column loops of
compensation and coordinate descent with their Cholesky factors. Ratios within one run, by processor time, which other
work on the machine disturbs less than a clock. Results: benchmarks/RESULTS.md.
"""

import argparse
import os
import resource
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

import slimbit
from slimbit.apply import calibration as calibration_module
from slimbit.apply import layerwise
from slimbit.apply.compress import compress
from slimbit.apply.layers import weights_of
from slimbit.plan.inputs import PlanInputs
from slimbit.plan.steps import step_by_deviation

GIB = 1 << 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", nargs="?", default="resnet50")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--memory", type=float, help="GiB for activations; default: half of what is free")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model = slimbit.network(arguments.network).eval()
    images = torch.randn(arguments.images, 3, 224, 224)
    spec = slimbit.prepare(model, images[:1], None).spec
    plan = step_by_deviation(PlanInputs(spec=spec, weights=weights_of(model, spec)), 0.5)
    before = _peak_gib()
    memory = None if arguments.memory is None else int(arguments.memory * GIB)
    start = time.process_time()
    found = calibration_module.calibrate(model, spec, images, batch_size=arguments.batch_size, memory_bytes=memory)
    calibrating = time.process_time() - start
    for note in found.notes:
        print(note)
    forward = min(_seconds(lambda: _pass(model, found.batches)) for _ in range(2))
    parts: dict[str, float] = defaultdict(float)
    layerwise.quantize_layer = _timed(layerwise.quantize_layer, parts, "column loops")
    calibration_module.Calibration.patch_sums = _timed(calibration_module.Calibration.patch_sums, parts, "moments")
    point = _seconds(lambda: compress(model, plan, spec, found))
    loops = parts["column loops"]
    print(f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}, {arguments.network}")
    print(f"{sum(map(len, found.batches))} images in batches of {len(found.batches[0])}, processor seconds")
    print(f"forward pass                     {forward:8.1f}")
    print(f"calibration                      {calibrating:8.1f}  {calibrating / forward:.2f} forward passes")
    print(f"point                            {point:8.1f}  {point / forward:.2f}")
    print(f"  column loops and factors       {loops:8.1f}  {loops / forward:.2f}")
    print(f"  second moments                 {parts['moments']:8.1f}  {parts['moments'] / forward:.2f}")
    print(f"point without column loops       {point - loops:8.1f}  {(point - loops) / forward:.2f}")
    print(f"peak memory                      {_peak_gib():8.2f} GiB, {before:.2f} of them before")


def _pass(model: torch.nn.Module, batches: Any) -> None:
    with torch.no_grad():
        for batch in batches:
            model(batch)


def _seconds(task: Callable[[], Any]) -> float:
    start = time.process_time()
    task()
    return time.process_time() - start


def _timed(function: Callable[..., Any], parts: dict[str, float], name: str) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            parts[name] += time.process_time() - start

    return timed


def _peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)


if __name__ == "__main__":
    main()
