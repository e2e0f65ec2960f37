"""Orders and splits that are the same on every machine and in every run."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.intp]


def balanced_order(labels: NDArray[Any], *, seed: int = 0) -> Indices:
    """A shuffled order whose every beginning holds the classes in proportion.

    Within each class the images are shuffled; image number r of a class with n images stands at (r + 1/2) / n.

    Args:
        labels: Class of every image, shape ``(images,)``.
        seed: Of the shuffling.

    Returns:
        Indices of all images, shape ``(images,)``.

    >>> labels = np.array([0] * 4 + [1] * 2)
    >>> [int((labels[balanced_order(labels)[:n]] == 0).sum()) for n in (3, 6)]
    [2, 4]
    """
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    _, starts, counts = np.unique(labels[by_class], return_index=True, return_counts=True)
    rank = np.arange(len(labels)) - np.repeat(starts, counts)
    place = np.empty(len(labels))
    place[by_class] = (rank + 0.5) / np.repeat(counts, counts)
    order: Indices = shuffled[np.argsort(place[shuffled], kind="stable")]
    return order


def split(labels: NDArray[Any], *, test_images: int, seed: int = 0) -> tuple[Indices, Indices]:
    """Indices of a training and a test part, each in rising order; the classes in proportion.

    >>> train, test = split(np.repeat([0, 1], 5), test_images=4)
    >>> len(train), np.bincount(np.repeat([0, 1], 5)[test]).tolist()
    (6, [2, 2])
    """
    order = balanced_order(labels, seed=seed)
    return np.sort(order[test_images:]), np.sort(order[:test_images])
