"""Time and memory of `slimbit.SignalTracker` beside a ResNet-20 training step, as ratios within one run.

    python benchmarks/signal_tracker.py [STEPS]

A step is forward, backward and optimizer on 128 images in bfloat16 autocast; every second one is followed by an update.
Three questions: an update over a step, both timed alone (asserted); pairs of neighbouring steps with and without, which
also shows what an update does to the caches of the next step; and the bytes held over the bytes of the weights.
Results with machine and versions: benchmarks/RESULTS.md.
"""

import gc
import os
import platform
import statistics
import sys
import time

import torch
import torch.nn.functional as F

import slimbit

IMAGES = 128
LARGEST_SHARE = 0.02


def main() -> None:
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = slimbit.network("resnet20").to(device).train()
    weights = sum(p.numel() * p.element_size() for p in model.parameters() if p.ndim > 1)
    before = _tensor_bytes()
    tracker = slimbit.SignalTracker(model, torch.zeros(1, 3, 32, 32))
    held = _tensor_bytes() - before
    with_update, without, updates = _measure(model, tracker, steps, device)
    step, update = statistics.median(without), statistics.median(updates)
    first, middle, third = statistics.quantiles([a / b - 1 for a, b in zip(with_update, without, strict=True)], n=4)
    print(f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"step     {1e3 * step:9.2f} ms, median of {len(without)}")
    print(f"update   {1e3 * update:9.3f} ms, median of {len(updates)}: {100 * update / step:.2f} % of a step")
    print(f"pairs    {100 * middle:+9.2f} %, quartiles {100 * first:+.2f} % and {100 * third:+.2f} %")
    print(f"held     {held / 2**20:9.2f} MiB = {held / weights:.3f} x the weights")
    assert update <= LARGEST_SHARE * step
    assert held <= 1.05 * weights


def _measure(
    model: torch.nn.Module, tracker: slimbit.SignalTracker, steps: int, device: torch.device
) -> tuple[list[float], list[float], list[float]]:
    """Seconds of steps with an update, of steps without, and of the updates."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    images, labels = torch.randn(IMAGES, 3, 32, 32, device=device), torch.randint(10, (IMAGES,), device=device)
    found: tuple[list[float], list[float], list[float]] = ([], [], [])
    for number in range(-10, steps):
        start = _now(device)
        with torch.autocast(device.type, torch.bfloat16):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        middle = _now(device)
        if number % 2:
            tracker.update()
        end = _now(device)
        if number >= 0:
            found[1 - number % 2].append(end - start)
            if number % 2:
                found[2].append(end - middle)
    assert tracker.end_epoch().iterations == steps // 2 + 5
    return found


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _tensor_bytes() -> int:
    """Bytes behind all tensors alive."""
    gc.collect()
    storages = [thing.untyped_storage() for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())


if __name__ == "__main__":
    main()
