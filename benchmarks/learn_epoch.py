"""An epoch of learning a frontier against an epoch of plain training, ResNet-20, batch 128, in one run.

    python benchmarks/learn_epoch.py [--precision bfloat16] [--compile] [--steps 20] [--epochs 4] [--distill]

Both by the same trainer, on the same random images; processor time between the ends of epochs, the first ones left out.
Plain training tracks signal and noise of the weights, learning looks at what the levels cost. Aim: 1.35 times.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch

import slimbit

BATCH, AIM = 128, 1.35


def main() -> None:
    given = _arguments()
    torch.set_num_threads(1)
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (BATCH * given.steps, 3, 32, 32), dtype=np.uint8)
    labels = generator.integers(0, 10, len(pixels))
    same = {"batch_size": BATCH, "validation_images": 0, "precision": given.precision, "compile": given.compile}
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "images.npz"
        test = {"test_images": pixels[:BATCH], "test_labels": labels[:BATCH]}
        np.savez(file, train_images=pixels, train_labels=labels, **test)
        data = slimbit.open_data(f"npz:{file},mean=0.5,std=0.25")
        plain = _plain(data, slimbit.TrainConfig(epochs=given.epochs, select="last", **same), Path(place) / "plain")
        train = slimbit.TrainConfig(**same)
        learn = slimbit.LearnConfig(epochs=given.epochs, points=1, distill=given.distill, train=train)
        learned = _learned(data, learn, Path(place) / "run")
    ratio = statistics.median(learned) / statistics.median(plain)
    print(f"torch {torch.__version__}, {given.precision}, compile={given.compile}, distill={given.distill}, 1 thread")
    print(f"{given.steps} steps of {BATCH}: plain {statistics.median(plain):.1f} s, learning {ratio:.2f} times that")
    print(f"aim of {AIM} {'reached' if ratio <= AIM else 'missed'}")


def _plain(data, config, out: Path) -> list[float]:
    ends: list[float] = []

    def listen(now) -> None:
        if now.finished is not None:
            ends.append(time.process_time())

    slimbit.train(slimbit.network("resnet20"), data, out=out, config=config, progress=listen)
    return list(np.diff(ends))


def _learned(data, learn, out: Path) -> list[float]:
    ends: list[float] = []

    def listen(now) -> None:
        if now.message.startswith("learning: epoch"):
            ends.append(time.process_time())

    config = slimbit.RunConfig(points=3, baselines=False, learn=learn)
    images = torch.zeros(1, 3, 32, 32)
    model, calibration = slimbit.network("resnet20"), data.calibration(64)
    slimbit.trace_frontier(
        model, images, calibration, lambda _: 50.0, out=out, config=config, data=data, progress=listen
    )
    return list(np.diff(ends))[:-1]  # the last one took a point


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--distill", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
