"""An ONNX file opened for reading: checked, with the shape of every value and its stored tensors by name."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import onnx
import torch
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    TensorShapeProto,
    ValueInfoProto,
    helper,
    numpy_helper,
)
from onnx.external_data_helper import load_external_data_for_model
from torch import Tensor

from slimbit.records.errors import InputError
from slimbit.survey.onnx_contents import Contents, read_contents

_STANDARD_DOMAINS = ("", "ai.onnx")
_QUANTIZER_DOMAINS = ("qonnx.custom_op.general", "onnx.brevitas", "finn.custom_op.general")
QUANTIZERS = ("Quant", "IntQuant", "BipolarQuant", "Trunc", "FloatQuant")
"""Operators of QONNX; each keeps the shape of its first input."""
MOST_NODES = 1_000_000
DEEPEST_FUNCTIONS = 64


@dataclass(frozen=True)
class OnnxGraph:
    """A graph with what a survey needs to know of it.

    Attributes:
        nodes: In the file's order, which is an order of execution.
        constants: Stored tensors, initializers and Constant nodes alike, by name.
        initializers: Names of those that the file keeps as initializers.
        shapes: Shape of every value that has a known one.
        types: ONNX element type of every value that has a known one.
        producers: Node that computes a value.
        batch: First dimension of the first input.
        contents: What the file itself says of its integers.
    """

    nodes: tuple[NodeProto, ...]
    constants: Mapping[str, TensorProto]
    initializers: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]
    types: Mapping[str, int]
    producers: Mapping[str, NodeProto]
    batch: int
    contents: Contents = field(default_factory=Contents)

    def shape(self, value: str, layer: str) -> tuple[int, ...]:
        """Shape of a value that ``layer`` works on.

        Raises:
            InputError: It could not be inferred.
        """
        if value not in self.shapes:
            raise InputError(f"layer {layer!r} must have known shapes, got none for its value {value!r}")
        return self.shapes[value]

    def tensor(self, name: str) -> Tensor:
        """A stored tensor; integers of any width come as int32 or int64, narrow floats as float32."""
        array: np.ndarray[Any, Any] = numpy_helper.to_array(self.constants[name])
        if array.dtype in (np.float64, np.int64):
            return torch.from_numpy(array.copy())
        integer = array.dtype.name.startswith(("int", "uint", "bool"))
        return torch.from_numpy(array.astype(np.int32 if integer else np.float32))


def open_graph(path: Path, input_shape: Sequence[int] | None) -> OnnxGraph:
    """Reads, checks and shapes an ONNX file.

    Args:
        path: An existing file.
        input_shape: Shape of the first input, with or without its batch dimension.

    Raises:
        InputError: Weights lie outside the file's folder, or an input has an unknown dimension.
    """
    model = onnx.load(path, load_external_data=False)
    if not model.graph.node:
        raise InputError(f"{path} must be an ONNX model, got a file without a graph")
    _refuse_outside_data(model, path)
    load_external_data_for_model(model, str(path.parent))
    if model.functions:
        from onnx.inliner import inline_local_functions

        _check_functions(model, path)
        model = inline_local_functions(model)
    shaped = _without_quantizers(model)
    onnx.checker.check_model(shaped)
    _forget_shapes(shaped.graph)
    batch = _fix_inputs(shaped.graph, input_shape)
    shaped = onnx.shape_inference.infer_shapes(shaped, data_prop=True)
    return replace(_graph(model.graph, shaped.graph, batch), contents=read_contents(model.metadata_props))


def _check_functions(model: ModelProto, path: Path) -> None:
    """Functions that call one another twice each grow to 2^n nodes; counted before they are put in one another."""
    functions = {(f.domain, f.name, f.overload): f for f in model.functions}
    sizes: dict[tuple[str, str, str], int] = {}
    entered: set[tuple[str, str, str]] = set()

    def size_of(key: tuple[str, str, str], depth: int) -> int:
        if key not in sizes:
            if key in entered or depth > DEEPEST_FUNCTIONS:
                raise InputError(f"functions of {path} must be nested at most {DEEPEST_FUNCTIONS} deep, got more")
            entered.add(key)
            sizes[key] = count(functions[key].node, depth + 1)
        return sizes[key]

    def count(nodes: Iterable[NodeProto], depth: int) -> int:
        total = 0
        for node in nodes:
            key = node.domain, node.op_type, node.overload
            total += size_of(key, depth) if key in functions else 1
            total += sum(count(graph.node, depth) for entry in node.attribute for graph in (entry.g, *entry.graphs))
        if total > MOST_NODES:
            raise InputError(f"{path} must have at most {MOST_NODES:,} nodes with its functions put in place, got more")
        return total

    count(model.graph.node, 0)


def operator(node: NodeProto) -> str:
    """Operator type; with its domain where that is neither the standard's nor QONNX's."""
    known = node.domain in _STANDARD_DOMAINS or is_quantizer(node)
    return str(node.op_type) if known else f"{node.domain}.{node.op_type}"


def is_quantizer(node: NodeProto) -> bool:
    """Whether it is one of the QONNX operators."""
    return node.domain in _QUANTIZER_DOMAINS and node.op_type in QUANTIZERS


def attribute(node: NodeProto, name: str, default: Any) -> Any:
    """Value of an attribute, text decoded, or ``default``."""
    for entry in node.attribute:
        if entry.name == name:
            value = helper.get_attribute_value(entry)
            return value.decode() if isinstance(value, bytes) else value
    return default


def operand(node: NodeProto, index: int) -> str:
    """Name of an input ("" = not given)."""
    return str(node.input[index]) if index < len(node.input) else ""


def _refuse_outside_data(model: ModelProto, path: Path) -> None:
    for tensor in _stored_tensors(model.graph):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        for flavour in (PurePosixPath(location), PureWindowsPath(location)):
            if not location or flavour.is_absolute() or flavour.anchor or ".." in flavour.parts:
                raise InputError(f"weights of {path} must lie in its own folder, got {location!r} for {tensor.name!r}")


def _stored_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for entry in node.attribute:
            if entry.type == AttributeProto.TENSOR:
                yield entry.t
            yield from entry.tensors
            for inner in (*entry.graphs, *([entry.g] if entry.type == AttributeProto.GRAPH else [])):
                yield from _stored_tensors(inner)


def _without_quantizers(model: ModelProto) -> ModelProto:
    """A copy in which QONNX operators, unknown to the checker and to shape inference, pass values through."""
    copy = ModelProto()
    copy.CopyFrom(model)
    for node in copy.graph.node:
        if is_quantizer(node):
            node.CopyFrom(helper.make_node("Identity", list(node.input[:1]), list(node.output[:1]), name=node.name))
    return copy


def _forget_shapes(graph: GraphProto) -> None:
    """Shapes noted for another batch or image size would contradict the ones inferred here."""
    del graph.value_info[:]
    for output in graph.output:
        if output.type.HasField("tensor_type"):
            output.type.tensor_type.ClearField("shape")


def _fix_inputs(graph: GraphProto, input_shape: Sequence[int] | None) -> int:
    """Gives every dimension of every input a number and returns the batch size."""
    stored = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in stored]
    named: dict[str, int] = {}
    batch = 1
    for place, value in enumerate(inputs):
        if not value.type.HasField("tensor_type"):
            continue
        wanted = _wanted(value, input_shape) if place == 0 and input_shape else None
        _fix_input(value, wanted, named)
        dims = value.type.tensor_type.shape.dim
        if place == 0 and len(dims) > 1:
            batch = dims[0].dim_value
    return batch


def _fix_input(value: ValueInfoProto, wanted: list[int] | None, named: dict[str, int]) -> None:
    kind = value.type.tensor_type
    if wanted and not kind.HasField("shape"):
        kind.shape.dim.extend(TensorShapeProto.Dimension() for _ in wanted)
    sizes = []
    for axis, dim in enumerate(kind.shape.dim):
        stated = dim.dim_value if dim.dim_value > 0 else named.get(dim.dim_param, 0)
        sizes.append((wanted[axis] if wanted else 0) or stated or (1 if axis == 0 else 0))
    if not kind.HasField("shape") or not all(sizes):
        given = "x".join(str(dim.dim_value or dim.dim_param or "?") for dim in kind.shape.dim)
        raise InputError(
            f"input {value.name!r} must have known dimensions, got {given or 'none'}; "
            "pass them as --input (input_shape), e.g. 3x224x224"
        )
    for dim, size in zip(kind.shape.dim, sizes, strict=True):
        if dim.dim_param:
            named[dim.dim_param] = size
        dim.dim_value = size


def _wanted(value: ValueInfoProto, input_shape: Sequence[int]) -> list[int]:
    """The shape asked for, with 0 for a batch dimension that was left out."""
    rank = len(value.type.tensor_type.shape.dim)
    sizes = [int(size) for size in input_shape]
    if min(sizes) < 1:
        raise InputError(f"input_shape must hold positive sizes, got {tuple(sizes)}")
    if rank and len(sizes) == rank - 1:
        return [0, *sizes]
    if rank and len(sizes) != rank:
        raise InputError(f"input_shape must fit the {rank} dimensions of input {value.name!r}, got {tuple(sizes)}")
    return sizes


def _graph(graph: GraphProto, shaped: GraphProto, batch: int) -> OnnxGraph:
    constants = {tensor.name: tensor for tensor in graph.initializer}
    initializers = tuple(constants)
    for node in graph.node:
        if node.op_type == "Constant" and (tensor := _constant(node)) is not None:
            constants[node.output[0]] = tensor
    for tensor in constants.values():
        _check_size(tensor)
    shapes = {name: tuple(tensor.dims) for name, tensor in constants.items()}
    types = {name: tensor.data_type for name, tensor in constants.items()}
    for value in (*shaped.value_info, *shaped.input, *shaped.output):
        kind = value.type.tensor_type
        types.setdefault(value.name, kind.elem_type)
        if kind.HasField("shape") and all(dim.HasField("dim_value") and dim.dim_value >= 0 for dim in kind.shape.dim):
            shapes.setdefault(value.name, tuple(dim.dim_value for dim in kind.shape.dim))
    producers = {output: node for node in graph.node for output in node.output if output}
    return OnnxGraph(tuple(graph.node), constants, initializers, shapes, types, producers, batch)


def _constant(node: NodeProto) -> TensorProto | None:
    for entry in node.attribute:
        if entry.name == "value":
            tensor: TensorProto = entry.t
            return tensor
        if entry.name in {"value_float", "value_floats"}:
            return numpy_helper.from_array(np.asarray(helper.get_attribute_value(entry), np.float32))
        if entry.name in {"value_int", "value_ints"}:
            return numpy_helper.from_array(np.asarray(helper.get_attribute_value(entry), np.int64))
    return None


def _check_size(tensor: TensorProto) -> None:
    """Found here, a weight of the wrong size is an error before anything is counted."""
    if tensor.HasField("raw_data") and tensor.data_type not in _PACKED:
        expected = math.prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        if len(tensor.raw_data) != expected:
            raise InputError(
                f"tensor {tensor.name!r} must hold {expected} bytes for its shape {tuple(tensor.dims)}, "
                f"got {len(tensor.raw_data)}"
            )


_PACKED = {getattr(TensorProto, name, None) for name in ("INT4", "UINT4", "INT2", "UINT2", "FLOAT4E2M1", "STRING")}
