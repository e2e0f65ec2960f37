"""An epoch of `slimbit train` against a bare PyTorch loop, ResNet-20, batch 128, in one run.

    python benchmarks/train_resnet20.py [--precision bfloat16] [--compile] [--steps 30] [--rounds 6]

Both see the same random images, crop and flip them, and train the same network with the same optimizer; the trainer
also tracks signal and noise, looks at the loss, and changes the learning rate at every step. Epochs take turns, so
that other work on the machine disturbs both alike; the first of each is left out. Aim: at most 5 % more.
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
import torch.nn.functional as F

import slimbit

BATCH, AIM = 128, 1.05


def main() -> None:
    arguments = _arguments()
    count = BATCH * arguments.steps
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    labels = generator.integers(0, 10, count)
    bare = BareLoop(pixels, labels, arguments)
    theirs: list[float] = []

    def take_turns(progress) -> None:
        if progress.finished is None:
            return
        start = time.perf_counter()
        bare.epoch()
        theirs.append(time.perf_counter() - start)

    config = slimbit.TrainConfig(
        epochs=arguments.rounds + 1,
        precision=arguments.precision,
        compile=arguments.compile,
        batch_size=BATCH,
        validation_images=0,
        select="last",
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "images.npz"
        test = {"test_images": pixels[:BATCH], "test_labels": labels[:BATCH]}
        np.savez(file, train_images=pixels, train_labels=labels, **test)
        data = slimbit.open_data(f"npz:{file},mean=0.5,std=0.25")
        result = slimbit.train(
            slimbit.network("resnet20"), data, out=Path(folder) / "run", config=config, progress=take_turns
        )
    ours = [epoch.seconds for epoch in result.epochs]
    ratios = [a / b for a, b in zip(ours[1:], theirs[1:], strict=True)]
    ratio = statistics.median(ratios)
    print(
        f"{arguments.steps} steps of {BATCH}, {arguments.precision}, compile={arguments.compile}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    print(f"slimbit {statistics.median(ours[1:]):.2f} s, bare loop {statistics.median(theirs[1:]):.2f} s (medians)")
    print(f"ratio of neighbouring epochs: median {ratio:.3f}, {min(ratios):.3f} to {max(ratios):.3f}")
    assert ratio < AIM, f"aim of {AIM} missed: {ratio:.3f}"


class BareLoop:
    """What one would write without Slimbit."""

    def __init__(self, pixels, labels, arguments) -> None:
        self.pixels, self.labels = torch.from_numpy(pixels), torch.from_numpy(labels)
        self.autocast = arguments.precision == "bfloat16"
        model = slimbit.network("resnet20").to(memory_format=torch.channels_last).train()
        self.model = torch.compile(model) if arguments.compile else model
        self.optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, fused=True)

    def epoch(self) -> None:
        """One pass over the images."""
        for chosen in torch.randperm(len(self.pixels)).split(BATCH):
            with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
                outputs = self.model(self._batch(chosen))
            loss = F.cross_entropy(outputs.float(), self.labels[chosen])
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()

    def _batch(self, chosen: torch.Tensor) -> torch.Tensor:
        images = (self.pixels[chosen].float() / 255 - 0.5) / 0.25
        images = torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(3), images)
        padded = F.pad(images, (4, 4, 4, 4))
        places = torch.randint(0, 9, (len(images), 2)).tolist()
        crops = [image[:, y : y + 32, x : x + 32] for image, (y, x) in zip(padded, places, strict=True)]
        return torch.stack(crops).contiguous(memory_format=torch.channels_last)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=6)
    return parser.parse_args()


if __name__ == "__main__":
    main()
