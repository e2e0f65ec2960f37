"""Calibration images of a data set, as they are or as training sees them."""

from collections.abc import Iterable

import torch
from torch import Tensor

from slimbit.records.training import AugmentConfig
from slimbit.training.images import TrainImages, augmented_images
from slimbit.zoo.data import DataSet
from slimbit.zoo.data.dataset import CALIBRATION_BATCH


def calibration_images(
    data: DataSet, images: int, *, seed: int, augment: AugmentConfig | None = None
) -> Iterable[Tensor]:
    """Unlabelled training images, as they are or as training sees them.

    Args:
        data: Where they come from.
        images: How many.
        seed: Another seed, another choice.
        augment: Crops and flips; None = as they are.
    """
    batches = data.calibration(images, seed=seed)
    if augment is None:
        return batches
    chosen = TrainImages(
        pixels=data.train.images,
        mean=data.normalization.mean,
        std=data.normalization.std,
        full_scale=data.full_scale,
        chosen=batches.indices,
    )
    return torch.split(augmented_images(chosen, augment, seed=seed), CALIBRATION_BATCH)
