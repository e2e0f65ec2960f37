"""Sums of the integer reference: convolutions, products and transposed convolutions, every sum of them exact."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto

from slimbit.exchange.reference_values import Array, attribute
from slimbit.records.errors import InputError


@dataclass(frozen=True)
class Window:
    """Geometry of a convolution; a product has no kernel."""

    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    pads: tuple[tuple[int, int], ...] = ()
    dilations: tuple[int, ...] = ()
    groups: int = 1

    @classmethod
    def of(cls, node: NodeProto, weights: Array) -> "Window":
        """The geometry that a Conv or Gemm names.

        Raises:
            InputError: A product whose weights are not transposed.
        """
        dims = weights.ndim - 2
        if node.op_type == "Gemm":
            if not attribute(node, "transB", 0) or attribute(node, "transA", 0):
                raise InputError(f"product {node.name!r} must have its weights transposed, got transB 0")
            return cls()
        pads = attribute(node, "pads", [0] * (2 * dims))
        return cls(
            weights.shape[2:],
            tuple(attribute(node, "strides", [1] * dims)),
            tuple(zip(pads[:dims], pads[dims:], strict=True)),
            tuple(attribute(node, "dilations", [1] * dims)),
            attribute(node, "group", 1),
        )

    def sizes(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Number of positions per dimension."""
        return tuple(
            (size + sum(pad) - dilation * (kernel - 1) - 1) // stride + 1
            for size, pad, dilation, kernel, stride in zip(
                shape, self.pads, self.dilations, self.kernel, self.strides, strict=True
            )
        )

    def parts(self, values: Array, sizes: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], Array]]:
        """For each place in the kernel: what all positions read there."""
        for place in itertools.product(*map(range, self.kernel)):
            cut = tuple(
                slice(k * dilation, k * dilation + stride * (size - 1) + 1, stride)
                for k, dilation, stride, size in zip(place, self.dilations, self.strides, sizes, strict=True)
            )
            yield place, values[(slice(None), slice(None), *cut)]


EXACT = {"float32": 1 << 24, "float64": 1 << 53}
"""Up to here every whole number is one of the type."""


def sums_of(values: Array, weights: Array, window: Window) -> Array:
    """``sums[n, f, p] = sum_{c, k} weights[f, c, k] * values[n, c, p + k]``; integers give integers."""
    integer, kind = np.issubdtype(weights.dtype, np.integer), "float64"
    if integer and weights.size:
        bound = int(np.abs(weights).reshape(len(weights), -1).sum(axis=1).max()) * int(np.abs(values).max(initial=0))
        kind = next(name for name, most in EXACT.items() if bound < most)  # holds every sum and part of one exactly
    wide, factors = values.astype(kind), weights.astype(kind)
    if not window.kernel:
        total: Array = wide @ factors.T
        return total.astype(np.int64) if integer else total
    wide = np.pad(wide, ((0, 0), (0, 0), *window.pads))
    sizes = window.sizes(values.shape[2:])
    filters = len(weights) // window.groups
    factors = factors.reshape(window.groups, filters, *factors.shape[1:])
    total = np.zeros((len(values), window.groups, filters, math.prod(sizes)), kind)
    for place, part in window.parts(wide, sizes):
        index: tuple[Any, ...] = (slice(None), slice(None), slice(None), *place)
        total += factors[index] @ part.reshape(len(values), window.groups, weights.shape[1], -1)
    total = total.reshape(len(values), len(weights), *sizes)
    return total.astype(np.int64) if integer else total


def spread_sums(values: Array, weights: Array, node: NodeProto) -> Array:
    """A transposed convolution: every input spreads over the positions that its kernel covers."""
    dims, groups = values.ndim - 2, attribute(node, "group", 1)
    strides, dilations = (attribute(node, key, [1] * dims) for key in ("strides", "dilations"))
    pads, extra = attribute(node, "pads", [0] * 2 * dims), attribute(node, "output_padding", [0] * dims)
    spans = [
        stride * (size - 1) + dilation * (kernel - 1) + 1 + more
        for stride, size, dilation, kernel, more in zip(
            strides, values.shape[2:], dilations, weights.shape[2:], extra, strict=True
        )
    ]
    inputs, filters = values.shape[1] // groups, weights.shape[1]
    total = np.zeros((len(values), filters * groups, *spans), np.float64)
    for place in itertools.product(*map(range, weights.shape[2:])):
        cut = tuple(
            slice(k * dilation, k * dilation + stride * (size - 1) + 1, stride)
            for k, dilation, stride, size in zip(place, dilations, strides, values.shape[2:], strict=True)
        )
        for group in range(groups):
            read = values[:, group * inputs : (group + 1) * inputs].astype(np.float64)
            index: tuple[Any, ...] = (slice(group * inputs, (group + 1) * inputs), slice(None), *place)
            factors = weights[index].astype(np.float64)
            rows = slice(group * filters, (group + 1) * filters)
            total[(slice(None), rows, *cut)] += np.einsum("nc...,cf->nf...", read, factors)
    kept = tuple(slice(pads[d], span - pads[dims + d]) for d, span in enumerate(spans))
    total = total[(slice(None), slice(None), *kept)]
    return total.astype(np.int64) if np.issubdtype(weights.dtype, np.integer) else total


def lost_by_saturation(codes: Array, weights: Array, window: Window, *, zero: int) -> Array:
    """What is missing from the sums where pairs of byte products are added in 16 bits, as AVX2 does.

    Neighbours are entries of a patch in the order positions, channels (images are stored channels last).
    Depthwise convolutions have kernels of their own, without pairs.
    """
    if window.groups > 1 and weights.shape[1] == 1:
        return np.zeros((), np.int64)
    raw, shape = codes.astype(np.int64), codes.shape
    if not window.kernel:
        return _pair_loss(raw[:, None, :], weights)[:, 0]
    raw = np.pad(raw, ((0, 0), (0, 0), *window.pads), constant_values=zero)
    sizes = window.sizes(shape[2:])
    filters, inputs = len(weights) // window.groups, weights.shape[1]
    lost = np.zeros((shape[0], len(weights), math.prod(sizes)), np.int64)
    for group in range(window.groups):
        rows, reads = (slice(group * n, (group + 1) * n) for n in (filters, inputs))
        patches = np.stack(
            [part[:, reads].reshape(shape[0], inputs, -1) for _, part in window.parts(raw, sizes)], axis=1
        )  # images, places, channels, positions
        rows_of = patches.transpose(0, 3, 1, 2).reshape(shape[0], -1, patches.shape[1] * inputs)
        flat = np.moveaxis(weights[rows], 1, -1).reshape(filters, -1)
        lost[:, rows] = _pair_loss(rows_of, flat).transpose(0, 2, 1)
    return lost.reshape(shape[0], len(weights), *sizes)


def _pair_loss(rows: Array, weights: Array) -> Array:
    """``sum over pairs of (saturated - exact)``; rows (images, positions, features), weights (filters, features)."""
    odd = rows.shape[-1] % 2
    rows, weights = (np.pad(x, ((0, 0),) * (x.ndim - 1) + ((0, odd),)) for x in (rows, weights))
    lost = np.zeros((*rows.shape[:2], len(weights)), np.int64)
    for k in range(0, rows.shape[-1], 2):
        pair = rows[..., k, None] * weights[:, k] + rows[..., k + 1, None] * weights[:, k + 1]
        lost += np.clip(pair, -(1 << 15), (1 << 15) - 1) - pair
    return lost
