"""How much of what one network gives another one keeps."""

import math

from torch import Tensor


def fidelity_of(found: Tensor, wanted: Tensor) -> float:
    """Share of the variance of ``wanted`` over the images that ``found`` keeps; anything not finite counts as none.

    What an output is on average says nothing about an image, so each output varies around its own mean.

    >>> import torch
    >>> fidelity_of(torch.tensor([[1.0, 9.0], [2.0, 9.0]]), torch.tensor([[1.0, 9.0], [3.0, 9.0]]))  # 1 - 1 / 2
    0.5
    """
    error = float((found - wanted).square().sum())
    mean = wanted.mean(0) if len(wanted) > 1 else wanted.mean()
    whole = float((wanted - mean).square().sum())
    if not math.isfinite(error):
        return -math.inf
    return 1 - error / whole if whole > 0 else float(error == 0)
