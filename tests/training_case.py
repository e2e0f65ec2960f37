"""A training small enough to be repeated: some of the digits."""

import numpy as np
import torch

from slimbit.training.images import TrainImages
from slimbit.training.task import TrainTask
from slimbit.zoo.data import DataSet


def task_of(data: DataSet, count: int = 256, **more: object) -> TrainTask:
    images = TrainImages(
        pixels=data.train.images,
        labels=data.train.labels,
        mean=data.normalization.mean,
        std=data.normalization.std,
        full_scale=data.full_scale,
        chosen=np.arange(count),
    )
    return TrainTask(images=images, example_input=torch.zeros(1, 1, 8, 8), **more)
