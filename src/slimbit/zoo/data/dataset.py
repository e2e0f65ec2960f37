"""A data set in memory: pixels as stored, normalized batch by batch when they are used."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from slimbit.records.errors import InputError
from slimbit.records.origin import Normalization
from slimbit.records.training import AugmentConfig
from slimbit.zoo.data.splits import balanced_order

if TYPE_CHECKING:
    from slimbit.zoo.data.batches import CalibrationBatches
    from slimbit.zoo.data.evaluator import Evaluator

CALIBRATION_BATCH = 250
CALIBRATION_IMAGES = 500
EVALUATION_BATCH, EVALUATION_PIXELS = 100, 100 * 112 * 112
"""Images at once, and pixels: 100 images of 32x32, 25 of 224x224. Measured for ResNet-20 on 32x32 images:
docs/how-to/data.md."""
FEWEST_CLASSES = 2


class Images(Protocol):
    """Images in memory (a numpy array) or decoded on demand; shape ``(images, channels, height, width)``."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Images, channels, height, width."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """``uint8`` or ``float32``."""

    def __len__(self) -> int:
        """Number of images."""

    def __getitem__(self, index: NDArray[np.intp], /) -> NDArray[Any]:
        """The images at some indices, shape ``(len(index), channels, height, width)``."""


class Part(NamedTuple):
    """The training or the test part.

    Attributes:
        images: Shape ``(images, channels, height, width)``, ``uint8`` or ``float32``.
        labels: Class of each, shape ``(images,)``; None for images that are only for calibration.
    """

    images: Images
    labels: NDArray[np.int64] | None


@dataclass(frozen=True, kw_only=True, eq=False)
class DataSet:
    """Images to calibrate with and images to score on.

    Attributes:
        name: For people.
        train: Images that calibration takes its share of.
        test: Images and labels that accuracy is measured on.
        classes: Labels are 0 to ``classes - 1``.
        open_classes: Whether ``classes`` is no more than the labels at hand tell: a network may have more outputs.
        normalization: Mean and standard deviation per channel.
        full_scale: What ``uint8`` values are divided by before normalization; ``float32`` values are not.
        class_names: In the order of the labels, where they are known.
        held_out: Number of training images, the first in `balanced_order`, that the network was not trained on.

    Raises:
        InputError: Parts that do not fit each other, labels out of range.

    >>> images, labels = np.zeros((4, 1, 8, 8), np.uint8), np.array([0, 1, 0, 1])
    >>> data = DataSet(name="mine", train=Part(images, None), test=Part(images, labels), classes=2,
    ...                normalization=Normalization((0.5,), (0.25,)))
    >>> data.input_shape, len(data.calibration(4))
    ((1, 8, 8), 1)
    """

    name: str
    train: Part = field(repr=False)
    test: Part = field(repr=False)
    classes: int
    normalization: Normalization
    full_scale: float = 255.0
    class_names: tuple[str, ...] = field(default=(), repr=False)
    held_out: int = 0
    open_classes: bool = False

    def __post_init__(self) -> None:
        for word, part in self.parts().items():
            _check_images(part.images, f"{word} images of {self.name}")
            if part.labels is not None:
                _check_labels(part, self.classes, f"{word} labels of {self.name}")
        if self.test.labels is None:
            raise InputError(f"test images of {self.name} must have labels, got none")
        train, test = self.train.images.shape[1:], self.test.images.shape[1:]
        if train != test:
            raise InputError(f"training and test images of {self.name} must have one shape, got {train} and {test}")
        there = len(self.train.images) if self.train.labels is not None else 0
        if not 0 <= self.held_out <= there:
            raise InputError(
                f"held_out of {self.name} must be at most its {there} labelled training images, got {self.held_out}"
            )
        object.__setattr__(self, "normalization", self.normalization.fitted(self.input_shape[0]))

    def parts(self) -> Mapping[str, Part]:
        """Both parts under their words: "training" and "test"."""
        return {"training": self.train, "test": self.test}

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Channels, height, width."""
        return tuple(self.test.images.shape[1:])

    def calibration(
        self,
        images: int | None = None,
        *,
        batch_size: int = CALIBRATION_BATCH,
        seed: int = 0,
        augment: AugmentConfig | bool = False,
    ) -> "CalibrationBatches":
        """Unlabelled training images, chosen at random by ``seed``, as normalized float batches.

        Args:
            images: How many; None: `CALIBRATION_IMAGES`, or all where there are fewer.
            batch_size: Images per batch; the last may have fewer.
            seed: Another seed, another choice.
            augment: Whether they are cropped and flipped as in training, which BatchNorm statistics averaged anew need
                in order to be fair; True = as ``slimbit train`` does by default, or the settings of a training
                (``slimbit.TrainConfig().augment``).

        Returns:
            A sequence of float32 tensors ``(batch, channels, height, width)``; every pass gives the same.

        Raises:
            InputError: There are not so many.
        """
        from slimbit.zoo.data.batches import CalibrationBatches

        there = len(self.train.images)
        images = min(CALIBRATION_IMAGES, there) if images is None else images
        images = _counted(images, there, f"calibration images of {self.name}", "training images")
        order = np.random.default_rng(seed).permutation(len(self.train.images))
        settings = AugmentConfig() if augment is True else augment or None
        return CalibrationBatches(self, order[:images], _batch_size(batch_size), augment=settings, seed=seed)

    def evaluator(self, images: int | None = None, *, batch_size: int | None = None) -> "Evaluator":
        """A function from a model to its top-1 accuracy in percent on test images.

        Args:
            images: How many, the first of a fixed order in which the classes come in proportion; None: all.
            batch_size: Images per forward pass; accuracy does not depend on it. Default: 100 of up to 112 x 112
                pixels, fewer of larger ones.

        Raises:
            InputError: There are not so many.
        """
        order = balanced_order(self._test_labels)
        there = len(order)
        count = there if images is None else images
        count = _counted(count, there, f"evaluation images of {self.name}", "test images")
        return self._evaluator(self.test, order[:count], "test images", batch_size)

    def selection(
        self, images: int | None = None, *, batch_size: int | None = None
    ) -> "tuple[Evaluator, Evaluator | None]":
        """Accuracy to choose a model by, and accuracy on other images to quote for the one that was chosen.

        A model that was chosen among many on some images looks better on them than it is. It is chosen on training
        images that were held out of training, where the data set has such (``held_out``), and quoted on the test
        images; else the test images are divided in two, the classes in proportion.

        Args:
            images: Number of images to choose by; None: the images held out, or half of the test images; 0: all test
                images, and none are left to quote.
            batch_size: As in `evaluator`.

        Returns:
            The two evaluators; the second is None where no images are left for it.

        Raises:
            InputError: There are not so many.

        >>> from slimbit.zoo.data import open_data
        >>> choose, quote = open_data("digits").selection(100)
        >>> choose.description, quote.images
        ('top-1 of 100 of 500 test images of digits', 400)
        """
        if images == 0:
            return self.evaluator(batch_size=batch_size), None
        if self.held_out:
            assert self.train.labels is not None, "checked when it was made"
            count = self.held_out if images is None else images
            count = _counted(count, self.held_out, f"selection images of {self.name}", "held-out training images")
            order = balanced_order(self.train.labels)[:count]
            chosen = self._evaluator(self.train, order, "training images held out", batch_size)
            return chosen, self.evaluator(batch_size=batch_size)
        order = balanced_order(self._test_labels)
        there = len(order)
        count = there // 2 if images is None else images
        count = _counted(count, there - 1, f"selection images of {self.name}", "test images, one of them left,")
        # every beginning of the order holds the classes in proportion, and so does what is left
        first, rest = order[:count], order[count:]
        chosen = self._evaluator(self.test, first, "test images", batch_size)
        about = f"top-1 on the {len(rest):,} of {there:,} test images of {self.name} that did not choose it"
        return chosen, self._evaluator(self.test, rest, "test images", batch_size, about=about)

    @property
    def _test_labels(self) -> NDArray[np.int64]:
        assert self.test.labels is not None, "checked when it was made"
        return self.test.labels

    def _evaluator(
        self, part: Part, order: NDArray[np.intp], what: str, batch_size: int | None, *, about: str = ""
    ) -> "Evaluator":
        from slimbit.zoo.data.evaluator import Evaluator

        there = len(part.images)
        if batch_size is None:
            pixels = part.images.shape[2] * part.images.shape[3]
            batch_size = max(1, min(EVALUATION_BATCH, EVALUATION_PIXELS // pixels))
        of = f"all {there}" if len(order) == there else f"{len(order)} of {there}"
        return Evaluator(self, part, order, about or f"top-1 of {of} {what} of {self.name}", _batch_size(batch_size))


def _counted(asked: int, there: int, what: str, source: str) -> int:
    if not isinstance(asked, int) or isinstance(asked, bool) or asked < 1:
        raise InputError(f"{what} must be a whole number of 1 or more, got {asked!r}")
    if asked > there:
        raise InputError(f"{what} must be at most the {there} {source} that there are, got {asked}")
    return asked


def _batch_size(size: int) -> int:
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise InputError(f"batch size must be a whole number of 1 or more, got {size!r}")
    return size


def _check_images(images: Images, what: str) -> None:
    if len(images.shape) != 4 or 0 in images.shape:
        raise InputError(f"{what} must have shape (images, channels, height, width) without 0, got {images.shape}")
    if images.dtype not in (np.uint8, np.float32):
        raise InputError(f"{what} must be uint8 or float32, got {images.dtype}")


def _check_labels(part: Part, classes: int, what: str) -> None:
    labels = part.labels
    if labels is None or labels.shape != (len(part.images),):
        got = None if labels is None else labels.shape
        raise InputError(f"{what} must be one for each of {len(part.images)} images, got shape {got}")
    if labels.dtype.kind not in "iu":
        raise InputError(f"{what} must be whole numbers, got {labels.dtype}")
    if classes < FEWEST_CLASSES:
        raise InputError(f"{what} must have at least {FEWEST_CLASSES} classes, got {classes}")
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise InputError(f"{what} must be 0 to {classes - 1}, got {labels[wrong[0]]} at image {wrong[0]}")
