"""Train VGG7 at a quarter of its width on CIFAR-10, as a second family for the post-training experiments.

    python experiments/vgg7_training/train.py DATA_DIR OUT_DIR [--epochs 10]

DATA_DIR holds the CIFAR-10 batches. SGD with momentum, one-cycle learning rate, pad-4 crops and flips, bfloat16
autocast. 5,000 training images are held out to watch; the last epoch is taken whatever they say, and the 10,000 test
images are scored once, at the end. Continues from OUT_DIR/checkpoint.pt. Evidence: README.md beside this file.
"""

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import slimbit

NETWORK = "vgg7@0.25"
BATCH = 125
PEAK_RATE = 0.08
WEIGHT_DECAY = 5e-4
HELD_OUT = 5_000


def main() -> None:
    arguments = _arguments()
    torch.manual_seed(0)
    data = slimbit.open_data(f"cifar10:{arguments.data},normalize=cifar10")
    images, labels = _normalized(data), torch.as_tensor(data.train.labels)
    held_out, train = images[:HELD_OUT], images[HELD_OUT:]
    model = slimbit.network(NETWORK).to(memory_format=torch.channels_last)
    steps = arguments.epochs * (len(train) // BATCH)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=PEAK_RATE, momentum=0.9, nesterov=True, weight_decay=WEIGHT_DECAY
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps, pct_start=0.2)
    first = _resumed(arguments.out / "checkpoint.pt", model, optimizer, schedule)
    for epoch in range(first, arguments.epochs):
        start = time.perf_counter()
        loss = _epoch(model, optimizer, schedule, train, labels[HELD_OUT:], seed=epoch)
        accuracy = _accuracy(model, held_out, labels[:HELD_OUT])
        print(
            f"epoch {epoch} loss {loss:.4f} held-out {accuracy:.2f} % {time.perf_counter() - start:.0f} s", flush=True
        )
        _save(arguments.out / "checkpoint.pt", epoch + 1, model, optimizer, schedule)
    accuracy = float(data.evaluator()(model))
    print(f"test {accuracy:.2f} %")
    card = {"normalize": "cifar10", "network": NETWORK, "accuracy": accuracy}
    save_file(
        {key: value.contiguous() for key, value in model.state_dict().items()},
        arguments.out / "vgg7_quarter_cifar10.safetensors",
        metadata={"slimbit": json.dumps(card)},
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=10)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    return arguments


def _normalized(data) -> torch.Tensor:
    images = torch.as_tensor(data.train.images[:]).float() / data.full_scale
    mean, std = (
        torch.tensor(values).reshape(1, -1, 1, 1) for values in (data.normalization.mean, data.normalization.std)
    )
    return (images - mean) / std


def _epoch(model, optimizer, schedule, images, labels, *, seed: int) -> float:
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=generator)
    model.train()
    total = 0.0
    for batch in order[: len(order) // BATCH * BATCH].split(BATCH):
        with torch.autocast("cpu", torch.bfloat16):
            scores = model(_augmented(images[batch], generator))
        loss = F.cross_entropy(scores.float(), labels[batch], label_smoothing=0.05)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        total += float(loss.detach())
    return total / (len(order) // BATCH)


def _augmented(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One shift of up to 4 pixels for the batch's every 25 images, and a flip for every second one on average."""
    flip = torch.rand(len(images), generator=generator) < 0.5
    images = torch.where(flip[:, None, None, None], images.flip(3), images)
    padded = F.pad(images, (4, 4, 4, 4))
    parts = []
    for part in padded.split(25):
        top, left = torch.randint(0, 9, (2,), generator=generator).tolist()
        parts.append(part[:, :, top : top + 32, left : left + 32])
    return torch.cat(parts).contiguous(memory_format=torch.channels_last)


def _accuracy(model, images, labels) -> float:
    model.eval()
    with torch.inference_mode():
        right = sum(
            int((model(x).argmax(1) == y).sum()) for x, y in zip(images.split(500), labels.split(500), strict=True)
        )
    return 100 * right / len(images)


def _save(path: Path, epoch: int, model, optimizer, schedule) -> None:
    parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
    torch.save({"epoch": epoch, **parts}, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def _resumed(path: Path, model, optimizer, schedule) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    return int(state["epoch"])


if __name__ == "__main__":
    main()
