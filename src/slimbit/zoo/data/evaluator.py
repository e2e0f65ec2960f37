"""Top-1 accuracy of any classifier on the test images of a data set."""

import copy
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from slimbit.records.accuracy import Accuracy
from slimbit.records.codec import canonical, sha256
from slimbit.records.errors import InputError
from slimbit.zoo.data.batches import CPU, normalized

if TYPE_CHECKING:
    from slimbit.zoo.data.dataset import DataSet, Part

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class Evaluator:
    """A function from a model to the percentage of images whose largest output is the right class.

    The model runs in evaluation mode, without gradients, on the device and in the floating type of its parameters;
    the training mode of each of its modules is put back. An image whose outputs hold a NaN counts as wrong.

    Attributes:
        images: Number of images that one call looks at.
        classes: Number of classes; guessing gives ``100 / classes`` percent.
        open_classes: Whether that is only what the labels tell: the network may have more outputs.
        description: What is measured, for reports.
        digest: SHA-256 of these images, their labels and their normalization, so that a run which is continued
            with other ones is noticed.

    >>> from slimbit.zoo import network
    >>> from slimbit.zoo.data import open_data
    >>> evaluate = open_data("digits").evaluator(50)
    >>> evaluate.description
    'top-1 of 50 of 500 test images of digits'
    >>> 0.0 <= evaluate(network("digits_resnet")) <= 100.0
    True
    """

    def __init__(
        self, data: "DataSet", part: "Part", order: NDArray[np.intp], description: str, batch_size: int
    ) -> None:
        assert part.labels is not None, "DataSet checks it"
        self._data, self._images, self._order, self._batch_size = data, part.images, order, batch_size
        self._labels = torch.from_numpy(part.labels[order].astype("int64"))
        self.images = len(order)
        self.classes, self.open_classes = data.classes, data.open_classes
        self.description = description

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything but the model that the accuracy depends on."""
        data, images = self._data, self._images
        norm = data.normalization
        about = [self.images, images.shape[1:], str(images.dtype), data.full_scale, norm.mean, norm.std]
        content = getattr(images, "content", None)  # of pictures their files: decoding all of them takes minutes

        def parts() -> Iterator[bytes]:
            for start in range(0, self.images, self._batch_size):
                chosen = self._order[start : start + self._batch_size]
                if content is None:
                    yield np.ascontiguousarray(images[chosen]).tobytes()
                else:
                    yield from (bytes.fromhex(sha256(content(int(number)))) for number in chosen)

        return sha256(canonical(about), self._labels.numpy().tobytes(), parts())

    def __call__(self, model: nn.Module) -> Accuracy:
        """Percent, 0 to 100, with which images were right.

        Raises:
            InputError: The outputs are not one number per class and image, or a label is beyond them.
        """
        modes = {module: module.training for module in model.modules()}
        device, dtype = _place(model)
        model.eval()
        try:
            with torch.inference_mode():
                right = self._right(model, device, dtype)
        finally:
            for module, mode in modes.items():
                module.training = mode
        return Accuracy.of(right.tolist())

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class of each image, in their order."""
        return self._labels.numpy()

    def batches(self) -> Iterator[Tensor]:
        """The images in their order, normalized, float32."""
        for start in range(0, self.images, self._batch_size):
            yield normalized(self._data, self._images, self._order[start : start + self._batch_size])

    def _right(self, model: nn.Module, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Which images are classified right, bool, in their order."""
        layout, found = torch.channels_last, []
        for start in range(0, self.images, self._batch_size):
            chosen = slice(start, start + self._batch_size)
            batch = normalized(self._data, self._images, self._order[chosen], device=device, memory_format=layout).to(
                dtype
            )
            try:
                outputs = model(batch)
            except RuntimeError:
                if layout is torch.contiguous_format:
                    raise
                # `x.view(len(x), -1)` inside a model works on contiguous values only.
                layout = torch.contiguous_format
                outputs = model(batch.contiguous())
            logits = self._checked(outputs, len(batch))
            right = (logits.argmax(1) == self._labels[chosen].to(logits.device)) & ~logits.isnan().any(1)
            found.append(right)
        return torch.cat(found).cpu()

    def outputs(self, model: nn.Module) -> int:
        """Number of classes: the outputs of the network, where nothing but labels is known of them.

        Args:
            model: Not changed; a copy of it gets one image.

        Raises:
            InputError: There are labels beyond the outputs.
        """
        if not self.open_classes:
            return self.classes
        device, dtype = _place(model)
        batch = normalized(self._data, self._images, self._order[:1], device=device).to(dtype)
        with torch.no_grad():
            return int(self._checked(copy.deepcopy(model).eval()(batch), 1).shape[1])

    def _checked(self, outputs: Any, images: int) -> Tensor:
        logits = getattr(outputs, "logits", outputs)  # Transformers models return a record
        logits = logits[0] if isinstance(logits, tuple | list) and logits else logits
        wanted = (images, self.classes)
        if self.open_classes and isinstance(logits, Tensor) and logits.ndim == 2 and len(logits) == images:
            outputs = logits.shape[1]
            if outputs < self.classes:
                raise InputError(
                    f"labels of {self._data.name} must be 0 to {outputs - 1} for a network of {outputs} outputs, "
                    f"got {self.classes - 1}"
                )
            return logits
        if not isinstance(logits, Tensor) or tuple(logits.shape) != wanted:
            got = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
            what = f"output of the network on {self._data.name}"
            raise InputError(f"{what} must have shape (images, classes) = {wanted}, got {got}")
        return logits


def _place(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Device and floating type of the parameters, else of the buffers, else float32 on the CPU."""
    for tensors in (model.parameters(), model.buffers()):
        for tensor in tensors:
            if tensor.dtype in FLOATS:
                return tensor.device, tensor.dtype
    return CPU, torch.float32
