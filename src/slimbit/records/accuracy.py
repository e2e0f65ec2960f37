"""A measured accuracy: the number, how many images it rests on, and which of them were right."""

import base64
import math
from collections.abc import Sequence
from statistics import NormalDist

from slimbit.records.errors import InputError

NORMAL_95 = NormalDist().inv_cdf(0.975)


class Accuracy(float):
    """A percentage that knows how many images it rests on, and which of them were right.

    It is a number, so everything that takes one takes it; ``evaluate`` may return it in place of a plain one.

    Attributes:
        images: Number of images it rests on.
        hits: Which were right, a bit per image in the order of the images, most significant bit first, base64; ""
            where that is not known. Two accuracies on the same images are compared pairwise.

    >>> Accuracy.of([True, False, True, True]), Accuracy.of([True, False]).right()
    (75.0, (True, False))
    """

    images: int
    hits: str

    def __new__(cls, percent: float, images: int, hits: str | None = None) -> "Accuracy":
        """The number with what it rests on.

        Raises:
            InputError: A number that is no percentage, no images, or hits of another number of images.
        """
        if not 0 <= percent <= 100 or images < 1:
            raise InputError(f"accuracy must be 0 to 100 percent of at least one image, got {percent} of {images}")
        if hits and len(hits) != 4 * math.ceil(math.ceil(images / 8) / 3):
            raise InputError(f"hits must hold a bit for each of {images} images, got {len(hits)} characters")
        made = super().__new__(cls, percent)
        made.images, made.hits = images, hits or ""
        return made

    def __getnewargs__(self) -> tuple[float, int, str]:  # type: ignore[override]  # pickle hands all to __new__
        return float(self), self.images, self.hits

    @classmethod
    def of(cls, right: Sequence[bool]) -> "Accuracy":
        """The accuracy of images of which each was right or not."""
        packed = bytearray(math.ceil(len(right) / 8))
        for place, one in enumerate(right):
            packed[place // 8] |= bool(one) << (7 - place % 8)
        percent = 100.0 * sum(map(bool, right)) / len(right)
        return cls(percent, len(right), base64.b64encode(packed).decode())

    @property
    def percent(self) -> float:
        """The plain number."""
        return float(self)

    def right(self) -> tuple[bool, ...]:
        """Which images were right; empty where that is not known."""
        packed = base64.b64decode(self.hits)
        return tuple(bool(packed[k // 8] >> (7 - k % 8) & 1) for k in range(self.images)) if self.hits else ()


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


def mcnemar(first: Accuracy, second: Accuracy) -> float:
    """Two-sided exact p value of McNemar's test: could two networks that are equally good differ so much?

    Only the images that one gets right and the other wrong count: of n such images, b are the first's, and the p
    value is ``2 P(X <= min(b, n - b))`` with ``X ~ Binomial(n, 1/2)``, at most 1 (McNemar 1947).

    Raises:
        InputError: Accuracies of different images, or without their hits.

    >>> round(mcnemar(Accuracy.of([True] * 6 + [False]), Accuracy.of([False] * 6 + [False])), 12)  # 2 / 2^6
    0.03125
    """
    if first.images != second.images or not first.hits or not second.hits:
        raise InputError("accuracies must be of the same images, with their hits, to be compared pairwise")
    pairs = list(zip(first.right(), second.right(), strict=True))
    only_first, only_second = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    n, least = only_first + only_second, min(only_first, only_second)
    if n == 0:
        return 1.0
    # in logarithms: 2^n of thousands of images is beyond floating point
    logs = [
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2) for k in range(least + 1)
    ]
    return min(1.0, 2 * math.fsum(map(math.exp, logs)))


def is_near_chance(percent: float, classes: int) -> bool:
    """Whether an accuracy is within a tenth of the way from guessing to perfect.

    >>> is_near_chance(17.0, 10), is_near_chance(25.0, 10), is_near_chance(52.0, 2)
    (True, False, True)
    """
    if classes < 2:
        return False
    chance = 100 / classes
    return (percent - chance) / (100 - chance) < 0.1
