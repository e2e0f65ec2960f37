"""How sure an accuracy is."""

import math
from statistics import NormalDist

NORMAL_95 = NormalDist().inv_cdf(0.975)


def wilson_interval(percent: float, images: int) -> tuple[float, float]:
    """95 % confidence interval of a share measured on independent images (Wilson 1927), in percent.

    ``(p + z^2/2n -+ z sqrt(p (1-p) / n + z^2/4n^2)) / (1 + z^2/n)`` with ``z = 1.96``; unlike the usual
    ``p -+ z sqrt(p (1-p) / n)`` it stays within 0 ... 100 and has a width at 100 %.

    Args:
        percent: Accuracy, 0 to 100.
        images: Number of images, at least 1.

    >>> [round(x, 2) for x in wilson_interval(91.7, 10_000)]
    [91.14, 92.22]
    """
    p, z2 = percent / 100, NORMAL_95**2
    centre = p + z2 / (2 * images)
    spread = NORMAL_95 * math.sqrt(max(0.0, p * (1 - p)) / images + z2 / (4 * images**2))
    scale = 100 / (1 + z2 / images)
    return max(0.0, (centre - spread) * scale), min(100.0, (centre + spread) * scale)


def is_near_chance(percent: float, classes: int) -> bool:
    """Whether an accuracy is within a tenth of the way from guessing to perfect.

    >>> is_near_chance(17.0, 10), is_near_chance(25.0, 10), is_near_chance(52.0, 2)
    (True, False, True)
    """
    if classes < 2:
        return False
    chance = 100 / classes
    return (percent - chance) / (100 - chance) < 0.1
