"""Gathers the uses of weights that a file's graph shows into the layers of a `NetworkSpec`."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from slimbit.numerics.levels import LayerLevels
from slimbit.records.errors import InputError
from slimbit.records.network import LayerKind, LayerSpec, NetworkSpec, OtherParameter, OtherWork
from slimbit.survey.files import reading
from slimbit.survey.result import Survey


@dataclass(frozen=True, kw_only=True)
class WeightUse:
    """One operation that multiplies a stored weight.

    Attributes:
        name: What the layer is called, if nothing else is called so.
        kind: As in `LayerSpec`.
        tensor: Name of the stored tensor.
        tensor_elements: Its size; a layer may use only a slice of it.
        identity: Equal for uses of the same weight in the same way: they are one layer.
        shape: Filters first.
        macs: Multiply-accumulates of this operation for the whole batch.
        read: Reads the weight, filters first.
        groups: Number of groups.
        transposed: Whether inputs come first in the file (transposed convolution).
        bias_parameters: Elements of the bias.
    """

    name: str
    kind: LayerKind
    tensor: str
    tensor_elements: int
    identity: str
    shape: tuple[int, ...]
    macs: int
    read: Callable[[], Tensor | LayerLevels]
    groups: int = 1
    transposed: bool = False
    bias_parameters: int = 0


class LayerCollector:
    """Layers in order of first use. Uses of one weight add up; two uses in different ways share memory."""

    def __init__(self, batch: int = 1) -> None:
        self.batch = batch
        self.other_work: list[OtherWork] = []
        self._layers: dict[str, LayerSpec] = {}
        self._readers: dict[str, Callable[[], Tensor | LayerLevels]] = {}
        self._counted: dict[str, int] = {}

    def add(self, use: WeightUse) -> str:
        """Adds one use and returns the name of its layer.

        Raises:
            InputError: The weight is empty, or the batch does not divide its positions.
        """
        positions = self._positions(use)
        known = self._layers.get(use.identity)
        if known is None:
            layer = self._new_layer(use, positions)
            self._readers[layer.name] = use.read
        else:
            layer = replace(
                known,
                positions=known.positions + positions,
                calls=known.calls + 1,
                bias_parameters=max(known.bias_parameters, use.bias_parameters),
            )
        self._layers[use.identity] = layer
        return layer.name

    def add_other(self, name: str, operation: str, macs: int, parameters: tuple[str, ...] = ()) -> None:
        """Adds multiply-accumulates of the whole batch that no layer explains."""
        if macs:
            self.other_work.append(OtherWork(name, operation, -(-macs // self.batch), 1, parameters))

    def survey(
        self,
        name: str,
        other_parameters: list[OtherParameter],
        *,
        notes: list[str],
        activation_bits: dict[str, int] | None = None,
        uncounted: tuple[str, ...] = (),
        inputs: Iterable[tuple[int, ...]] = (),
    ) -> Survey:
        """Everything gathered.

        Raises:
            InputError: There is nothing to count or to list.
        """
        layers = tuple(self._layers.values())
        if not layers and not self.other_work and not uncounted:
            raise InputError(f"{name} must hold weights of at least one layer, got none that a layer uses")
        spec = NetworkSpec(
            name, layers, tuple(other_parameters), tuple(self.other_work), tuple(notes), uncounted, tuple(inputs)
        )
        return Survey(spec, lambda layer: self._readers[layer.name](), activation_bits or {})

    def _positions(self, use: WeightUse) -> int:
        weights = math.prod(use.shape)
        if not weights:
            raise InputError(f"layer {use.name!r} must have weights, got shape {use.shape}")
        if use.kind == "embedding":
            return 0
        positions, rest = divmod(use.macs, weights * self.batch)
        if rest or not positions:
            raise InputError(
                f"layer {use.name!r} must have a whole number of output positions per image, "
                f"got {use.macs / weights:g} for a batch of {self.batch}"
            )
        return positions

    def _new_layer(self, use: WeightUse, positions: int) -> LayerSpec:
        counted = self._counted.get(use.tensor, 0) + math.prod(use.shape)
        shared = counted > use.tensor_elements and use.tensor in self._counted
        if not shared:
            self._counted[use.tensor] = counted
        return LayerSpec(
            name=self._free_name(use.name),
            kind=use.kind,
            weight_key=use.tensor,
            shape=use.shape,
            groups=use.groups,
            positions=positions,
            transposed=use.transposed,
            bias_parameters=use.bias_parameters,
            shared_with=self._first_with(use.tensor) if shared else "",
        )

    def _first_with(self, tensor: str) -> str:
        return next(layer.name for layer in self._layers.values() if layer.weight_key == tensor)

    def _free_name(self, name: str) -> str:
        taken = {layer.name for layer in self._layers.values()}
        count, free = 1, name
        while free in taken:
            count += 1
            free = f"{name}#{count}"
        return free


def with_clear_errors(survey: Survey, source: str | Path, kind: str) -> Survey:
    """The survey with a weight reader that turns what a library raises into an `InputError` (see `reading`)."""

    def weight(layer: LayerSpec) -> Tensor | LayerLevels:
        with reading(source, kind):
            return survey.weight(layer)

    return replace(survey, weight=weight)


def module_name(tensor: str) -> str:
    """The module that a parameter belongs to, where the name says so.

    >>> module_name("layer1.0.conv1.weight"), module_name("attn.in_proj_weight")
    ('layer1.0.conv1', 'attn.in_proj_weight')
    """
    return tensor.removesuffix(".weight") or tensor
