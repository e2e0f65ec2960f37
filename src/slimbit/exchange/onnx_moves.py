"""Operations that only move entries, poolings and functions, as ONNX nodes; the same for integer and float files."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from slimbit.exchange.onnx_builder import GraphBuilder
from slimbit.numerics.operations import flat_padding
from slimbit.records.dataflow import Operation
from slimbit.records.errors import InputError


def onnx_pads(pairs: tuple[tuple[int, int], ...]) -> list[int]:
    """Padding as ONNX takes it: all beginnings, then all ends.

    >>> onnx_pads(((1, 2), (3, 4)))
    [1, 3, 2, 4]
    """
    return [low for low, _ in pairs] + [high for _, high in pairs]


def add_move(graph: GraphBuilder, move: Operation, source: str, output: str, *, zero: str = "") -> str:
    """A "move" of any element type.

    Args:
        graph: Where it goes.
        move: What moves.
        source: Name of what it reads.
        output: Name of what it makes.
        zero: Stored number that padding adds; "" = the type's own zero.
    """
    integers = np.int64
    match move["move"]:
        case "reshape":
            return graph.node("Reshape", [source, graph.store(f"{output}/shape", [-1, *move.shape], integers)], output)
        case "permute":
            return graph.node("Transpose", [source], output, perm=list(move["axes"]))
        case "slice":
            places = [
                graph.store(f"{output}/{key}", [move[key]], integers) for key in ("start", "stop", "axis", "step")
            ]
            return graph.node("Slice", [source, *places], output)
        case "pad":
            pads = graph.store(f"{output}/pads", onnx_pads(move["amounts"]), integers)
            return graph.node("Pad", [source, pads, *([zero] if zero else [])], output)
        case "nearest":
            scales = graph.store(f"{output}/scales", [1.0, 1.0, *move["factors"]], np.float32)
            return graph.node(
                "Resize", [source, "", scales], output, mode="nearest", nearest_mode="floor",
                coordinate_transformation_mode="asymmetric",
            )  # fmt: skip
        case "pixel_shuffle":
            return graph.node("DepthToSpace", [source], output, blocksize=move["factor"], mode="CRD")
        case other:
            raise AssertionError(other)


def add_maximum(graph: GraphBuilder, maximum: Operation, source: str, output: str) -> str:
    """A max pooling of floats or of 8-bit integers."""
    return graph.node(
        "MaxPool", [source], output, kernel_shape=list(maximum["kernel"]), strides=list(maximum["stride"]),
        pads=onnx_pads(maximum["padding"]), dilations=list(maximum["dilation"]), ceil_mode=int(maximum["ceil"]),
    )  # fmt: skip


def add_average(graph: GraphBuilder, average: Operation, source: str, output: str, shape: tuple[int, ...]) -> str:
    """An average pooling of floats; a global one by its own name, for which runtimes have faster code.

    Args:
        graph: Where it goes.
        average: What is averaged.
        source: Name of what it reads.
        output: Name of what it makes.
        shape: Of what it reads, for one image.
    """
    if average["kernel"] == tuple(shape[1:]) and not any(flat_padding(average["padding"])):
        return graph.node("GlobalAveragePool", [source], output)
    return graph.node(
        "AveragePool", [source], output, kernel_shape=list(average["kernel"]), strides=list(average["stride"]),
        pads=onnx_pads(average["padding"]), count_include_pad=1,
    )  # fmt: skip


def add_function(graph: GraphBuilder, function: Operation, source: str, output: str) -> str:
    """A function of each entry, from operators that every opset has.

    Raises:
        InputError: With settings that it has no operators for.
    """
    kind = function["function"]
    if kind == "clamp":
        return add_clamp(graph, function["low"], function["high"], source, output)
    arguments = function["arguments"]
    if kind in _PLAIN:
        return graph.node(_PLAIN[kind], [source], output)
    if kind in _WITH_ARGUMENTS:
        return _WITH_ARGUMENTS[kind](graph, source, output, arguments)
    raise InputError(f"{function.name!r} must be a function that ONNX files can hold, got {kind}")


def add_clamp(graph: GraphBuilder, low: float | None, high: float | None, source: str, output: str) -> str:
    """A clamp of floats."""
    if (low, high) == (0.0, None):
        return graph.node("Relu", [source], output)
    bounds = [
        "" if bound is None else graph.store(f"{output}/{name}", bound, np.float32)
        for name, bound in (("low", low), ("high", high))
    ]
    return graph.node("Clip", [source, *bounds], output)


_PLAIN = {
    "sigmoid": "Sigmoid", "tanh": "Tanh", "selu": "Selu", "softsign": "Softsign", "exp": "Exp", "abs": "Abs",
}  # fmt: skip
_Arguments = tuple[object, ...]


def _hardsigmoid(graph: GraphBuilder, source: str, output: str, _: _Arguments = ()) -> str:
    return graph.node("HardSigmoid", [source], output, alpha=1 / 6, beta=0.5)


def _times_itself(
    inner: Callable[[GraphBuilder, str, str], str],
) -> Callable[[GraphBuilder, str, str, _Arguments], str]:
    def add(graph: GraphBuilder, source: str, output: str, _: _Arguments) -> str:
        return graph.node("Mul", [source, inner(graph, source, f"{output}/gate")], output)

    return add


def _chain(*operators: str) -> Callable[[GraphBuilder, str, str], str]:
    def add(graph: GraphBuilder, source: str, output: str) -> str:
        names = [source, *(f"{output}/{operator}" for operator in operators[:-1]), output]
        for operator, (before, after) in zip(operators, pairwise(names), strict=True):
            graph.node(operator, [before], after)
        return output

    return add


def _gelu(graph: GraphBuilder, source: str, output: str, arguments: _Arguments) -> str:
    """``x (1 + erf(x / sqrt 2)) / 2``."""
    if arguments != ("none",):
        raise InputError(f"gelu at {output!r} must be the exact one to be exported, got approximate={arguments[0]!r}")
    half, root, one = (
        graph.store(f"gelu/{name}", value, np.float32)
        for name, value in (("half", 0.5), ("root", 0.5**0.5), ("one", 1.0))
    )
    scaled = graph.node("Mul", [source, root], f"{output}/scaled")
    error = graph.node("Erf", [scaled], f"{output}/erf")
    gate = graph.node("Mul", [graph.node("Add", [error, one], f"{output}/sum"), half], f"{output}/gate")
    return graph.node("Mul", [source, gate], output)


def _elu(graph: GraphBuilder, source: str, output: str, arguments: _Arguments) -> str:
    if arguments[1:] != (1, 1):
        raise InputError(f"elu at {output!r} must be plain to be exported, got {arguments}")
    return graph.node("Elu", [source], output, alpha=float(arguments[0]))  # type: ignore[arg-type] # a number


def _leaky(graph: GraphBuilder, source: str, output: str, arguments: _Arguments) -> str:
    return graph.node("LeakyRelu", [source], output, alpha=float(arguments[0]))  # type: ignore[arg-type] # a number


def _softplus(graph: GraphBuilder, source: str, output: str, arguments: _Arguments) -> str:
    if arguments[0] != 1:
        raise InputError(f"softplus at {output!r} must have beta 1 to be exported, got {arguments[0]}")
    return graph.node("Softplus", [source], output)


def _softmax(operator: str) -> Callable[[GraphBuilder, str, str, _Arguments], str]:
    def add(graph: GraphBuilder, source: str, output: str, arguments: _Arguments) -> str:
        return graph.node(operator, [source], output, axis=int(arguments[0]))  # type: ignore[call-overload] # a number

    return add


def _square(graph: GraphBuilder, source: str, output: str, _: _Arguments) -> str:
    return graph.node("Mul", [source, source], output)


_WITH_ARGUMENTS: dict[str, Callable[[GraphBuilder, str, str, _Arguments], str]] = {
    "hardsigmoid": _hardsigmoid,
    "silu": _times_itself(_chain("Sigmoid")),
    "hardswish": _times_itself(_hardsigmoid),
    "mish": _times_itself(_chain("Softplus", "Tanh")),
    "gelu": _gelu,
    "elu": _elu,
    "leaky_relu": _leaky,
    "softplus": _softplus,
    "square": _square,
    "softmax": _softmax("Softmax"),
    "log_softmax": _softmax("LogSoftmax"),
}
