"""Which runtimes execute which widths, and at what padded cost; a table of facts with their sources."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

from pydantic import Field

from slimbit.records.codec import ConfigTable, from_plain
from slimbit.records.errors import InputError, closest
from slimbit.records.files import parse_toml


class RuntimeSupport(ConfigTable):
    """What one runtime executes.

    Attributes:
        name: For ``--target``.
        title: For people.
        format: Files that it reads.
        weight_bits: Widths in which it multiplies.
        stored_weight_bits: Widths in which a file may store weights.
        activation_bits: Widths of what is multiplied with them.
        unsigned: Whether codes may be unsigned bytes.
        zero_points: Whether zero points other than 0 are allowed.
        channels: Channels of a layer are padded to a multiple of so many.
        largest_safe_weight: Largest magnitude of a weight beside an unsigned byte for which no processor saturates.
        speed_int8: Lowest and highest measured speed of 8-bit files over float ones.
        speed_weight_only: Speed of files with float activations and narrow weights over float ones.
        measured: On what.
        notes: What else to know.
        source: Where the row comes from.
    """

    name: str
    title: str
    format: Literal["onnx", "qonnx"]
    weight_bits: tuple[int, ...] = Field(min_length=1, strict=False)
    stored_weight_bits: tuple[int, ...] = Field(min_length=1, strict=False)
    activation_bits: tuple[int, ...] = Field(min_length=1, strict=False)
    unsigned: bool
    zero_points: bool
    channels: int = Field(ge=1)
    largest_safe_weight: int | None = Field(default=None, ge=1)
    speed_int8: tuple[float, float] | None = Field(default=None, strict=False)
    speed_weight_only: float | None = Field(default=None, gt=0)
    measured: str = ""
    notes: tuple[str, ...] = Field(default=(), strict=False)
    source: str

    @property
    def stores_int4(self) -> bool:
        """Whether weights beside integer activations may be stored in four bits."""
        return 4 in self.stored_weight_bits and self.unsigned


class _Table(ConfigTable):
    runtime: tuple[RuntimeSupport, ...] = Field(strict=False)


@dataclass(frozen=True, kw_only=True)
class ExecutedLayer:
    """A layer as a runtime would execute it.

    Attributes:
        name: Of the layer.
        macs: Per image.
        filters: Output channels.
        inputs: Input channels of one group.
        weight_bits: Width of its integers: one more than that of its mid-rise levels.
        activation_bits: Width of what it reads.
    """

    name: str
    macs: int
    filters: int
    inputs: int
    weight_bits: int
    activation_bits: int


@dataclass(frozen=True, kw_only=True)
class RuntimeFit:
    """What a runtime makes of a network.

    Attributes:
        runtime: Its row of the table.
        executes: Whether every layer has widths that it multiplies in, padded where needed.
        too_wide: Layers that it would have to do in floats.
        bit_operations: MACs times widths, as they are.
        padded_bit_operations: The same at the widths and numbers of channels that the runtime executes.
    """

    runtime: RuntimeSupport
    executes: bool
    too_wide: tuple[str, ...]
    bit_operations: int
    padded_bit_operations: int

    @property
    def padding(self) -> float:
        """How many times the executed bit-operations are those of the network; 1 where nothing is padded."""
        return self.padded_bit_operations / max(1, self.bit_operations)


@cache
def runtime_table() -> tuple[RuntimeSupport, ...]:
    """Every runtime that something is known of.

    >>> [runtime.name for runtime in runtime_table()]
    ['onnxruntime', 'openvino', 'tensorrt', 'finn', 'hls4ml']
    """
    text = files("slimbit.records").joinpath("runtimes.toml").read_text(encoding="utf-8")
    return from_plain(_Table, parse_toml(text, "runtimes.toml"), where="runtimes.toml").runtime


def runtime_named(name: str) -> RuntimeSupport:
    """A runtime by name.

    Raises:
        InputError: There is none of that name.
    """
    known = {runtime.name: runtime for runtime in runtime_table()}
    if name not in known:
        raise InputError(f"target must be one of {', '.join(known)}, got {name!r}{closest(name, list(known))}")
    return known[name]


def runtime_fits(layers: Iterable[ExecutedLayer]) -> tuple[RuntimeFit, ...]:
    """What every runtime makes of a network's layers.

    >>> layer = ExecutedLayer(name="conv", macs=1000, filters=6, inputs=4, weight_bits=4, activation_bits=8)
    >>> fit = runtime_fits([layer])[0]  # ONNX Runtime: 8 bits, channels to multiples of 4
    >>> fit.executes, fit.bit_operations, fit.padded_bit_operations
    (True, 32000, 85333)
    """
    rows = tuple(layers)
    return tuple(_fit(runtime, rows) for runtime in runtime_table())


def _fit(runtime: RuntimeSupport, layers: tuple[ExecutedLayer, ...]) -> RuntimeFit:
    too_wide, own, padded = [], 0, 0.0
    for layer in layers:
        own += layer.macs * layer.weight_bits * layer.activation_bits
        widths = [
            min((width for width in known if width >= needed), default=32)
            for known, needed in (
                (runtime.weight_bits, layer.weight_bits),
                (runtime.activation_bits, layer.activation_bits),
            )
        ]
        if 32 in widths:
            too_wide.append(layer.name)
        channels = 1.0
        for count in (layer.filters, layer.inputs if layer.inputs > 1 else runtime.channels):
            channels *= math.ceil(count / runtime.channels) * runtime.channels / count
        padded += layer.macs * channels * widths[0] * widths[1]
    return RuntimeFit(
        runtime=runtime,
        executes=not too_wide,
        too_wide=tuple(too_wide),
        bit_operations=own,
        padded_bit_operations=round(padded),
    )
