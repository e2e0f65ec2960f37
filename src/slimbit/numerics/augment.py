"""Crops and flips of images: the random numbers of one pass over them, and the pixels that they move."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from slimbit.records.training import AugmentConfig


class Moves(NamedTuple):
    """What happens to each image of one pass.

    Attributes:
        order: Which image comes when, shape ``(images,)``.
        shift: Rows and columns that the crop begins at in the padded image, shape ``(2, images)``.
        flip: Whether the image is mirrored, shape ``(images,)``.
    """

    order: Tensor
    shift: Tensor
    flip: Tensor

    def to(self, device: torch.device) -> "Moves":
        """The same on a device."""
        return Moves(*(drawn.to(device) for drawn in self))


def largest_shift(augment: AugmentConfig, shape: tuple[int, ...]) -> int:
    """Pixels by which an image is moved at most, each way: an eighth of its shorter side unless the settings say more.

    Args:
        augment: Settings.
        shape: Its last two numbers are height and width.

    >>> largest_shift(AugmentConfig(), (3, 32, 32)), largest_shift(AugmentConfig(crop=2), (3, 32, 32))
    (4, 2)
    """
    return min(shape[-2:]) // 8 if augment.crop is None else augment.crop


def draw_moves(count: int, augment: AugmentConfig, *, largest: int, seed: int) -> Moves:
    """The random numbers of one pass over so many images; another seed, another order, other crops and flips.

    Args:
        count: Number of images.
        augment: Whether half of them are mirrored.
        largest: From `largest_shift`.
        seed: Of a generator of its own.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(count, generator=generator)
    shift = torch.randint(2 * largest + 1, (2, count), generator=generator)
    flip = torch.rand(count, generator=generator) < (0.5 if augment.flip else 0.0)
    return Moves(order, shift, flip)


def moved(images: Tensor, shift: Tensor, flip: Tensor, *, largest: int) -> Tensor:
    """Each image moved by its own whole number of pixels and mirrored or not, by one indexing operation.

    Args:
        images: Shape ``(images, channels, height, width)``, any type; zeros come in at the edges.
        shift: From `Moves`, of these images: ``largest`` leaves an image where it is.
        flip: Likewise.
        largest: From `largest_shift`.

    Returns:
        The same shape and type, with channels last in memory.

    >>> row = torch.tensor([1, 2, 3]).reshape(1, 1, 1, 3)
    >>> moved(row, torch.tensor([[1], [2]]), torch.tensor([False]), largest=1).flatten().tolist()
    [2, 3, 0]
    >>> moved(row, torch.tensor([[0], [0]]), torch.tensor([True]), largest=0).flatten().tolist()
    [3, 2, 1]
    """
    count, _, height, width = images.shape
    device = images.device
    padded = F.pad(images, (largest,) * 4) if largest else images
    columns = torch.arange(width, device=device).expand(count, width)
    columns = torch.where(flip[:, None], width - 1 - columns, columns) + shift[1][:, None]
    rows = torch.arange(height, device=device) + shift[0][:, None]
    # indices around the slice of channels: their dimensions come first, so the result is channels-last
    image = torch.arange(count, device=device)[:, None, None]
    return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
