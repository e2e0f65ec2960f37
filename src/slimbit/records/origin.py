"""Where a network and its data came from, so that others can build and feed it again."""

import re
from dataclasses import dataclass

from slimbit.records.codec import record, strict
from slimbit.records.errors import InputError


@dataclass(frozen=True)
@strict
class Normalization:
    """``input = (value - mean) / std`` per channel, with values from 0 to 1.

    Attributes:
        mean: One number per channel, or one for all.
        std: As many, above 0.
        name: "imagenet", "none", ...; "custom" where numbers were given.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    name: str = "custom"

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean:
            raise InputError(
                f"mean and std must have one number per channel each, got {len(self.mean)} and {len(self.std)}"
            )
        if not all(abs(value) < float("inf") for value in (*self.mean, *self.std)):
            raise InputError(f"mean and std must be finite, got {self.mean} and {self.std}")
        if min(self.std) <= 0:
            raise InputError(f"std must be above 0, got {min(self.std):g}")

    def fitted(self, channels: int) -> "Normalization":
        """The same with one number per channel.

        Raises:
            InputError: It has several numbers, but not as many as there are channels.

        >>> Normalization((0.5,), (0.25,)).fitted(3).mean
        (0.5, 0.5, 0.5)
        """
        if len(self.mean) == channels:
            return self
        if len(self.mean) > 1:
            counts = "1" if channels == 1 else f"1 or {channels}"
            raise InputError(
                f"channels of normalization {self.name} must be {counts} like the images', got {len(self.mean)}"
            )
        return Normalization(self.mean * channels, self.std * channels, self.name)


def runs_code(source: str) -> bool:
    """Whether building the network of that name imports code that is neither Slimbit's nor timm's.

    >>> runs_code("resnet20"), runs_code("timm:resnet18"), runs_code("mynet:build")
    (False, False, True)
    """
    return ":" in source and not source.startswith("timm:")


def is_findable(source: str) -> bool:
    """Whether another process can build a network by that name; classes of a script, or of torch itself, it cannot.

    >>> is_findable("resnet20"), is_findable("mynet:build"), is_findable("__main__:MyNet"), is_findable("")
    (True, True, False, False)
    """
    return bool(source) and not source.startswith(("__main__:", "torch."))


@record
class NetworkOrigin:
    """Where network and data came from.

    Attributes:
        source: How the network is built: a name of the zoo, ``timm:NAME``, ``package.module:callable``, or the path of
            a folder that ``slimbit prune`` wrote; "" where it is only known in Python.
        classes: Outputs of a zoo network; None = its default.
        input_shape: Shape of one input without the batch dimension; empty where it is no single tensor.
        weights: Path of its weights file, "" where there was none.
        data: Data spec, "" where there was none.
        normalization: What inputs need; None where unknown.
        weights_digest: SHA-256 of the float network's weights, "" where unknown.
    """

    source: str = ""
    classes: int | None = None
    input_shape: tuple[int, ...] = ()
    weights: str = ""
    data: str = ""
    normalization: Normalization | None = None
    weights_digest: str = ""


def without_folders(spec: str) -> str:
    """A data spec for others: which folder of this computer the data were in is nobody's business.

    >>> without_folders("cifar10:/home/me/data,normalize=imagenet"), without_folders("digits")
    ('cifar10:data,normalize=imagenet', 'digits')
    """
    return re.sub(r"^(\w+:).*[/\\]", r"\1", spec)
