"""ImageNet pictures in class folders: split once into calibration and scored images, decoded when they are used."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import slimbit

SIDE, RESIZED = 224, 256
CLASSES = 1000
PICTURES = {".jpeg", ".jpg", ".png"}

Labelled = tuple[Path, int]


@dataclass(frozen=True)
class Normalization:
    """Of RGB values from 0 to 1."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def listed(folder: Path) -> list[Labelled]:
    """Pictures with their classes.

    Folders that are numbers are the numbers of classes, of which some may be missing; 1,000 folders with other names
    (``n01440764`` ...) are numbered in alphabetical order.
    """
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    numbered = all(name.isdigit() for name in names)
    if not numbered and len(names) != CLASSES:
        raise SystemExit(f"{folder} must have {CLASSES} class folders or numbered ones, got {len(names)}")
    return [
        (path, int(name) if numbered else number)
        for number, name in enumerate(names)
        for path in sorted((folder / name).iterdir())
        if path.suffix.lower() in PICTURES
    ]


def split(root: Path, calibration: int, scored: int | None, seed: int) -> tuple[list[Labelled], list[Labelled]]:
    """Calibration and scored pictures: of ``train/`` and ``val/``, or of one folder, which is divided."""
    generator = np.random.default_rng(seed)
    if (root / "train").is_dir():
        learnt, held = listed(root / "train"), listed(root / "val")
        first = [learnt[k] for k in generator.permutation(len(learnt))[:calibration]]
        return first, [held[k] for k in generator.permutation(len(held))[:scored]]
    there = listed(root)
    order = [there[k] for k in generator.permutation(len(there))]
    return order[:calibration], order[calibration:][:scored]


def pixels(path: Path) -> Tensor:
    """The middle of a picture, shorter side resized to 256 where it is longer, values 0 to 1."""
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    short = min(picture.size)
    if short > RESIZED:
        picture = picture.resize(
            tuple(round(side * RESIZED / short) for side in picture.size), Image.Resampling.BILINEAR
        )
    left, top = ((side - SIDE) // 2 for side in picture.size)
    return torch.from_numpy(np.array(picture.crop((left, top, left + SIDE, top + SIDE)))).permute(2, 0, 1) / 255


def batches(pictures: list[Labelled], normalization: Normalization, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalized images and their classes."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (normalization.mean, normalization.std))
    for start in range(0, len(pictures), size):
        some = pictures[start : start + size]
        images = torch.stack([(pixels(path) - mean) / std for path, _ in some])
        yield images.contiguous(memory_format=torch.channels_last), torch.tensor([label for _, label in some])


@dataclass(frozen=True)
class TopOne:
    """Top-1 accuracy in percent, which knows of each image whether it was right."""

    pictures: list[Labelled]
    normalization: Normalization
    batch_size: int = 50
    name = "top-1"
    classes = CLASSES

    @property
    def images(self) -> int:
        """Number of scored images."""
        return len(self.pictures)

    def __call__(self, network: nn.Module) -> slimbit.Accuracy:
        """Score a network where its weights are."""
        device = next(network.parameters()).device
        right: list[bool] = []
        with torch.inference_mode():
            for images, labels in batches(self.pictures, self.normalization, self.batch_size):
                right += (network(images.to(device)).argmax(1).cpu() == labels).tolist()
        return slimbit.Accuracy.of(right)
