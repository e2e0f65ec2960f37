"""A machine whose cost of a layer is its measured time: a table of what a runtime took, layer by layer."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from slimbit.measure.hardware_models import MODELS, HardwareModel, UnfitError
from slimbit.records.codec import canonical, record
from slimbit.records.cost import LayerCost

Arithmetic = Literal["int8", "float"]
LineOfText = Annotated[str, Field(min_length=1, max_length=200)]
Milliseconds = Annotated[float, Field(gt=0)]
INTEGER_BITS = 8


@record
class ProfiledFile:
    """One file that times were taken from: ``[[file]]``.

    Attributes:
        name: Of the file.
        arithmetic: "int8" where the file computes in integers.
        whole_ms: Median time of one pass, without profiling.
        profiled_ms: Sum of what its nodes took under the profiler, which takes time itself.
    """

    name: LineOfText
    arithmetic: Arithmetic
    whole_ms: Milliseconds
    profiled_ms: Milliseconds

    @property
    def profiled_over_whole(self) -> float:
        """How far the plain sum of the profile is off; `LayerTime` has what is left when that is divided out."""
        return self.profiled_ms / self.whole_ms


@record
class LayerTime:
    """What a layer of one size took, and what follows it until the next layer: ``[[layer]]``.

    Attributes:
        name: Of the layer.
        shape: Of its weights, filters first.
        positions: Number of positions of its output.
        int8_ms: Per image, in integers; None where no file had it.
        float_ms: Per image, in float32.
    """

    name: LineOfText
    shape: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=2, strict=False)]
    positions: Annotated[int, Field(ge=1)]
    int8_ms: Milliseconds | None = None
    float_ms: Milliseconds | None = None

    def milliseconds(self, arithmetic: Arithmetic) -> float | None:
        """Its time in one kind of arithmetic."""
        return self.int8_ms if arithmetic == "int8" else self.float_ms


@record
class LatencyTable:
    """Times of the layers of one network at one or several sizes, on one machine and in one setting.

    Attributes:
        name: How reports call it.
        runtime: Name and version.
        processor: On which it ran.
        threads: Of the runtime.
        batch: Images per pass.
        file: What was profiled.
        layer: The times. Those of a file sum to its ``whole_ms``, per image.
    """

    name: Annotated[str, Field(min_length=1, max_length=80)]
    runtime: LineOfText
    processor: LineOfText
    threads: Annotated[int, Field(ge=1)]
    batch: Annotated[int, Field(ge=1)]
    file: Annotated[tuple[ProfiledFile, ...], Field(min_length=1, max_length=256, strict=False)]
    layer: Annotated[tuple[LayerTime, ...], Field(min_length=1, max_length=16384, strict=False)]

    @field_validator("name")
    @classmethod
    def _its_own(cls, name: str) -> str:
        if name in MODELS or not name.isprintable():
            raise ValueError(f"name must be printable and not that of a built-in model, got {name!r}")
        return name

    @property
    def source(self) -> str:
        """Where the times come from, in one line."""
        images = "1 image" if self.batch == 1 else f"{self.batch} images"
        return f"{self.runtime}, {self.processor}, {self.threads} thread{'s'[: self.threads > 1]}, {images} per pass"

    def cost(self, layer: LayerCost) -> float:
        """Milliseconds per image of a layer: in integers where weights and inputs have at most 8 bits, else in floats.

        Sizes that were not profiled have no cost: the time of a layer may be above that of a larger one, since kernels
        work in multiples of channels. Filters that a plan drops count in full: the exported layer keeps its shape.

        Raises:
            UnfitError: A layer or a size that the table does not have.
        """
        arithmetic: Arithmetic = (
            "int8" if layer.has_levels and max(layer.weight_bits, layer.activation_bits) <= INTEGER_BITS else "float"
        )
        sizes = []
        for row in self.layer:
            found = row.milliseconds(arithmetic)
            if row.name == layer.name and found is not None:
                if (row.shape, row.positions) == (layer.shape, layer.positions):
                    return found
                sizes.append(f"{_size(row.shape)} at {row.positions}")
        raise UnfitError(
            f"layer {layer.name!r} must have a size that hardware model {self.name!r} was measured at in {arithmetic} "
            f"({', '.join(sizes[:8]) or 'none'} positions), got {_size(layer.shape)} at {layer.positions}"
        )

    def model(self) -> HardwareModel:
        """The machine that `slimbit.cost`, budgets and reports take."""
        return HardwareModel(
            self.name,
            "ms",
            self.cost,
            source=self.source,
            description="measured time per layer; narrower widths run as 8 bits",
            definition=canonical(self).decode(),
            depends_on_widths=False,
        )

    def to_toml(self) -> str:
        """The table as the text of a ``.toml`` file."""
        lines = [f"{key} = {_toml(getattr(self, key))}" for key in ("name", "runtime", "processor", "threads", "batch")]
        for kind, rows in (("file", self.file), ("layer", self.layer)):
            for row in rows:
                pairs = ((key, getattr(row, key)) for key in type(row).__dataclass_fields__)
                lines += ["", f"[[{kind}]]", *(f"{key} = {_toml(x)}" for key, x in pairs if x is not None)]
        return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    """A text, a number, or a tuple of numbers."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, str):
        escaped = (c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in value)
        return f'"{"".join(escaped)}"'
    return repr(value)


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
