"""The 8x8 handwritten digits that scikit-learn embeds: no download."""

import numpy as np

from slimbit.records.errors import MissingExtraError
from slimbit.zoo.data.dataset import DataSet, Part
from slimbit.zoo.data.normalization import resolve
from slimbit.zoo.data.request import Request
from slimbit.zoo.data.splits import split

TEST_IMAGES = 500
"""Of 1,797; the classes in proportion, the order by seed 0."""
FULL_SCALE = 16.0
"""Values count the dark ones of 4x4 pixels."""


def open_digits(request: Request) -> DataSet:
    """1,297 training and 500 test images of shape ``(1, 8, 8)``, values 0 to 16 scaled to 0..1."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "demo", "data spec digits") from error
    digits = load_digits()
    images, labels = digits.images.astype(np.uint8)[:, None], digits.target.astype(np.int64)
    train, test = split(labels, test_images=TEST_IMAGES)
    return DataSet(
        name="digits",
        train=Part(images[train], labels[train]),
        test=Part(images[test], labels[test]),
        classes=10,
        normalization=resolve(request, 1, default="none"),
        full_scale=FULL_SCALE,
    )
