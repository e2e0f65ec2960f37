"""From a layer's description to its module and weight, and back."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from slimbit.apply.attention import OpenAttention
from slimbit.numerics.copies import mask_of
from slimbit.numerics.grid import filters_stored, layer_weight
from slimbit.numerics.moments import Window
from slimbit.records.errors import InputError
from slimbit.records.network import LayerSpec, NetworkSpec

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Bound:
    """A layer of a spec found in a network.

    Attributes:
        spec: Its description.
        module: The module that multiplies with the weight.
        parameter: The weight itself.
        window: Geometry for patches; None for weights that no hook can compensate (embeddings, recurrent layers, ...).
        owner: The module that holds the weight.
    """

    spec: LayerSpec
    module: nn.Module
    parameter: Tensor
    window: Window | None
    owner: nn.Module

    def weight(self) -> Tensor:
        """The weight, filters first, detached, at least float32."""
        weight = layer_weight(self.parameter.detach(), self.spec)
        return weight if weight.dtype == torch.float64 else weight.float()

    def store(self, weight: Tensor) -> None:
        """Write a weight, filters first, into the network."""
        stored = filters_stored(weight, transposed=self.spec.transposed, groups=self.spec.groups)
        with torch.no_grad():
            self.parameter.detach()[slice(*(self.spec.rows or (None,)))].copy_(stored)

    def mask(self) -> Tensor | None:
        """Which weights a pruning mask keeps, filters first; None where there is no mask."""
        mask = mask_of(self.owner, self.spec.weight_key.rpartition(".")[2])
        return None if mask is None else layer_weight(mask, self.spec)

    def batched(self, values: Tensor) -> Tensor:
        """An input or output of the module with its batch dimension: convolutions also take one image without."""
        lone = self.window is not None and self.window.kernel and values.ndim == len(self.window.kernel) + 1
        return values.unsqueeze(0) if lone else values

    def bias(self) -> Tensor | None:
        """The module's bias, where it is one number per filter."""
        bias = getattr(self.module, "bias", None)
        return bias if self.window is not None and isinstance(bias, Tensor) else None

    @property
    def channel_axis(self) -> int:
        """Axis of the filters in the module's output."""
        return 1 if self.window is not None and self.window.kernel else -1


def bind(model: nn.Module, spec: NetworkSpec) -> dict[str, Bound]:
    """Every layer of ``spec`` in ``model``, by name.

    Raises:
        InputError: A weight that the network does not have, or of another shape.
    """
    return {layer.name: _bind(model, layer) for layer in spec.layers}


def _bind(model: nn.Module, layer: LayerSpec) -> Bound:
    path, _, name = layer.weight_key.rpartition(".")
    try:
        module = model.get_submodule(path)
        parameter = getattr(module, name)
    except AttributeError:
        raise InputError(f"layer {layer.name!r} must be in the network, got no {layer.weight_key!r}") from None
    if not isinstance(parameter, Tensor) or not parameter.is_floating_point():
        kind = (
            str(parameter.dtype).removeprefix("torch.") if isinstance(parameter, Tensor) else type(parameter).__name__
        )
        raise InputError(f"weight of layer {layer.name!r} must be a float tensor, got {kind}")
    if name not in module._parameters and name not in module._buffers:
        raise InputError(f"weight of layer {layer.name!r} must be a plain parameter: remove its parametrization first")
    shape = tuple(layer_weight(parameter, layer).shape)
    if shape != layer.shape:
        raise InputError(f"weight of layer {layer.name!r} must be {layer.shape}, got {shape}")
    if isinstance(module, OpenAttention):
        return Bound(layer, module.get_submodule(layer.name.rpartition(".")[2]), parameter, Window(), module)
    return Bound(layer, module, parameter, window_of(module) if name == "weight" else None, module)


def first_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What a module was called on, by position or by name."""
    return args[0] if args else next(iter(kwargs.values()))


def window_of(module: nn.Module) -> Window | None:
    """Geometry of a convolution or linear module; None for anything else.

    >>> window_of(nn.Conv2d(4, 4, 3, padding=1, groups=2)).padding
    ((1, 1), (1, 1))
    """
    if isinstance(module, nn.Linear):
        return Window()
    if isinstance(module, _CONVOLUTIONS):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        return Window(
            module.kernel_size, module.stride, _padding(module), module.dilation, module.groups, padding_mode=mode
        )
    if isinstance(module, _TRANSPOSED):
        return Window(
            module.kernel_size,
            module.stride,
            _transposed_padding(module),
            module.dilation,
            module.groups,
            transposed=True,
        )
    return None


def _padding(module: "nn.Conv1d | nn.Conv2d | nn.Conv3d") -> tuple[tuple[int, int], ...]:
    if module.padding == "valid":
        return tuple((0, 0) for _ in module.kernel_size)
    if module.padding == "same":
        totals = [d * (k - 1) for k, d in zip(module.kernel_size, module.dilation, strict=True)]
        return tuple((total // 2, total - total // 2) for total in totals)
    return tuple((int(p), int(p)) for p in module.padding)


def _transposed_padding(
    module: "nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d",
) -> tuple[tuple[int, int], ...]:
    """Padding of the ordinary convolution over the spread input; a negative one crops."""
    assert not isinstance(module.padding, str)  # torch itself refuses it for transposed convolutions
    reach = [d * (k - 1) - p for k, d, p in zip(module.kernel_size, module.dilation, module.padding, strict=True)]
    return tuple((r, r + extra) for r, extra in zip(reach, module.output_padding, strict=True))


def weights_of(model: nn.Module, spec: NetworkSpec) -> dict[str, Tensor]:
    """Float weight of every layer by name, filters first; views where possible."""
    return {name: bound.weight() for name, bound in bind(model, spec).items()}
