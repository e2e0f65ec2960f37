"""Train the network that comes with Slimbit: ResNet-8 (8/16/32 filters) on scikit-learn's 8x8 digits.

The recipe is chosen on a fifth of the training images (three seeds each), then run once more, with seed 0, on all of
them. The 500 test images are looked at once, at the end.

    python experiments/digits_resnet/train.py [OUT.safetensors]
"""

import itertools
import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

import slimbit

EPOCHS, BATCH, MOMENTUM, SEEDS = 40, 64, 0.9, (0, 1, 2)
VALIDATION_IMAGES = 260


@dataclass(frozen=True)
class Recipe:
    """What the validation images decide."""

    learning_rate: float
    weight_decay: float
    shift: int
    """Pixels by which a training image is moved at most, up, down and sideways."""


RECIPES = tuple(Recipe(*values) for values in itertools.product((0.05, 0.1, 0.2), (5e-4, 2e-3), (0, 1)))


def shifted(images: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Each image moved by its own whole number of pixels; 0 (white) comes in at the edge."""
    count, _, height, width = images.shape
    padded = F.pad(images, (most,) * 4)
    down, right = torch.randint(2 * most + 1, (2, count), generator=generator)
    rows = down[:, None] + torch.arange(height)
    columns = right[:, None] + torch.arange(width)
    return padded[torch.arange(count)[:, None, None], 0, rows[:, :, None], columns[:, None, :]][:, None]


def train(images: Tensor, labels: Tensor, recipe: Recipe, *, seed: int) -> nn.Module:
    """Plain SGD with momentum, the learning rate falling to 0 along a cosine."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        model = slimbit.network("digits_resnet")
    optimizer = torch.optim.SGD(
        model.parameters(), recipe.learning_rate, momentum=MOMENTUM, weight_decay=recipe.weight_decay
    )
    steps = EPOCHS * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(EPOCHS):
        order = torch.randperm(len(images), generator=generator)
        for chosen in order[: len(order) // BATCH * BATCH].split(BATCH):
            batch = shifted(images[chosen], recipe.shift, generator)
            loss = F.cross_entropy(model(batch), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    return 100.0 * (model(images).argmax(1) == labels).double().mean().item()


def split(labels: np.ndarray, held_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the kept and of the held-out images, each in rising order; the classes in proportion."""
    shuffled = np.random.default_rng(0).permutation(len(labels))
    place = np.empty(len(labels))
    for label in np.unique(labels):
        mine = shuffled[labels[shuffled] == label]
        place[mine] = (np.arange(len(mine)) + 0.5) / len(mine)
    order = shuffled[np.argsort(place[shuffled], kind="stable")]
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def choose(images: Tensor, labels: Tensor) -> Recipe:
    """The recipe with the best mean accuracy on the validation images; of equals the first."""
    kept, held = (torch.from_numpy(part) for part in split(labels.numpy(), VALIDATION_IMAGES))
    means = {}
    for recipe in RECIPES:
        models = [train(images[kept], labels[kept], recipe, seed=seed) for seed in SEEDS]
        found = [accuracy(model, images[held], labels[held]) for model in models]
        means[recipe] = statistics.mean(found)
        print(f"{recipe}: {means[recipe]:.2f} % ({', '.join(f'{value:.2f}' for value in found)})", flush=True)
    return max(means, key=lambda recipe: means[recipe])


def main() -> None:
    torch.set_num_threads(1)  # sums in one order: the same weights again on the same kind of machine
    started = time.perf_counter()
    data = slimbit.open_data("digits")
    images = torch.from_numpy(data.train.images / data.full_scale).float()
    labels = torch.from_numpy(data.train.labels)
    recipe = choose(images, labels)
    model = train(images, labels, recipe, seed=0)
    scored = float(data.evaluator()(model))
    print(f"chosen {recipe}; {scored:.1f} % of {len(data.test.images)} test images")
    print(f"{time.perf_counter() - started:.0f} s, torch {torch.__version__}")
    if len(sys.argv) > 1:
        card = {
            "network": "digits_resnet",
            "data": "digits",
            "normalize": "none",
            "classes": 10,
            "accuracy": scored,
            "description": f"SGD, {EPOCHS} epochs, batch {BATCH}, {asdict(recipe)}: experiments/digits_resnet/train.py",
            "license": "Apache-2.0",
        }
        tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
        save_file(tensors, Path(sys.argv[1]), metadata={"slimbit": json.dumps(card)})


if __name__ == "__main__":
    main()
