"""An ONNX file opened for reading: checked, with its nodes and stored tensors by name."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import onnx
import torch
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, helper, numpy_helper
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data
from torch import Tensor

from slimbit.records.errors import InputError
from slimbit.survey.onnx_contents import Contents, read_contents

STANDARD_DOMAINS = ("", "ai.onnx")
_QUANTIZER_DOMAINS = ("qonnx.custom_op.general", "onnx.brevitas", "finn.custom_op.general")
QUANTIZERS = ("Quant", "IntQuant", "BipolarQuant", "Trunc", "FloatQuant")
"""Operators of QONNX; each keeps the shape of its first input."""
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
LARGEST_DENSE = 1 << 28
"""Elements of a sparse tensor that is made dense."""
MOST_NODES = 1_000_000
DEEPEST_FUNCTIONS = 64


@dataclass(frozen=True)
class OnnxGraph:
    """A graph with what a survey needs to know of it.

    Attributes:
        model: The file, functions inlined, data outside of it not loaded.
        folder: Where its data lies.
        constants: Stored tensors, initializers and Constant nodes alike, by name.
        initializers: Names of those that the file keeps as initializers.
        shapes: Shape of every value that has a known one.
        types: ONNX element type of every value that has a known one.
        contents: What the file itself says of its integers.
    """

    model: ModelProto
    folder: Path
    constants: Mapping[str, TensorProto]
    initializers: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    types: Mapping[str, int] = field(default_factory=dict)
    contents: Contents = field(default_factory=Contents)

    @property
    def nodes(self) -> tuple[NodeProto, ...]:
        """In the file's order, which is an order of execution."""
        return tuple(self.model.graph.node)

    @cached_property
    def producers(self) -> Mapping[str, NodeProto]:
        """Node that computes a value."""
        return {output: node for node in self.model.graph.node for output in node.output if output}

    @cached_property
    def roots(self) -> Mapping[str, tuple[str, ...]]:
        """For every value that no input reaches, the stored tensors from which it is computed."""
        found: dict[str, tuple[str, ...]] = {name: (name,) for name in self.constants}
        for node in self.model.graph.node:
            if node.input and _repeatable(node) and all(value in found for value in node.input if value):
                roots = tuple(dict.fromkeys(root for value in node.input for root in found.get(value, ())))
                found.update((output, roots) for output in node.output)
        return found

    @property
    def inputs(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of the inputs."""
        names = (value.name for value in self.model.graph.input if value.name not in self.initializers)
        return {name: self.shapes[name] for name in names if name in self.shapes}

    @property
    def outputs(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the outputs that have a known one."""
        return tuple(self.shapes[value.name] for value in self.model.graph.output if value.name in self.shapes)

    def stored(self, name: str) -> TensorProto:
        """A stored tensor with its data; what lies outside of the file is read now, and not kept."""
        stored = self.constants[name]
        if not uses_external_data(stored):
            return stored
        loaded = TensorProto()
        loaded.CopyFrom(stored)
        load_external_data_for_tensor(loaded, str(self.folder))
        return loaded

    def array(self, name: str) -> np.ndarray[Any, Any]:
        """The values of a stored tensor in the type that it has there."""
        array: np.ndarray[Any, Any] = numpy_helper.to_array(self.stored(name))
        return array

    def tensor(self, name: str) -> Tensor:
        """A stored tensor; integers of any width come as int32 or int64, narrow floats as float32."""
        return as_tensor(self.array(name))


def as_tensor(array: np.ndarray[Any, Any]) -> Tensor:
    """A torch tensor of the same values; integers of any width as int32 or int64, narrow floats as float32."""
    if array.dtype in (np.float64, np.int64):
        return torch.from_numpy(np.array(array))
    integer = array.dtype.name.startswith(("int", "uint", "bool"))
    return torch.from_numpy(np.array(array, np.int32 if integer else np.float32))


def open_graph(path: Path) -> OnnxGraph:
    """Reads an ONNX file, without the data that lies outside of it.

    Args:
        path: An existing file.

    Raises:
        InputError: There is no graph, or weights lie outside the file's folder or have the wrong size.
    """
    model = onnx.load(path, load_external_data=False)
    if not model.graph.node:
        raise InputError(f"{path} must be an ONNX model, got a file without a graph")
    for tensor in _stored_tensors(model.graph):
        if uses_external_data(tensor):
            _check_location(tensor, path)
        else:
            _check_size(tensor)
    if model.functions:
        from onnx.inliner import inline_local_functions

        _check_functions(model, path)
        model = inline_local_functions(model)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    constants |= {sparse.values.name: _dense(sparse) for sparse in model.graph.sparse_initializer}
    initializers = tuple(constants)
    for node in model.graph.node:
        if node.op_type == "Constant" and (stored := _constant(node)) is not None:
            constants[node.output[0]] = stored
    contents = read_contents(model.metadata_props)
    return OnnxGraph(model, path.parent, constants, initializers, contents=contents)


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
    known = node.domain in STANDARD_DOMAINS or is_quantizer(node)
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


def node_name(node: NodeProto) -> str:
    """What a node is called: by its name, or else by its first output."""
    return str(node.name or node.output[0])


def inner_graphs(node: NodeProto) -> Iterator[GraphProto]:
    """Graphs of a node that branches or loops."""
    for entry in node.attribute:
        if entry.type == AttributeProto.GRAPH:
            yield entry.g
        yield from entry.graphs


def _repeatable(node: NodeProto) -> bool:
    """Whether equal inputs give equal outputs."""
    random = node.op_type.startswith("Random") or node.op_type in {"Multinomial", "Bernoulli"}
    return not random and not any(True for _ in inner_graphs(node))


def _stored_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for entry in node.attribute:
            if entry.type == AttributeProto.TENSOR:
                yield entry.t
            yield from entry.tensors
        for inner in inner_graphs(node):
            yield from _stored_tensors(inner)


def _check_location(tensor: TensorProto, path: Path) -> None:
    """Found here, a file that lies elsewhere is refused before anything of it is read."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    for flavour in (PurePosixPath(location), PureWindowsPath(location)):
        if not location or flavour.is_absolute() or flavour.anchor or ".." in flavour.parts:
            raise InputError(f"weights of {path} must lie in its own folder, got {location!r} for {tensor.name!r}")
    file = path.parent / location
    linked = [part for part in (file, *file.parents) if part != path.parent and path.parent in part.parents]
    if any(part.is_symlink() for part in linked):
        raise InputError(f"weights of {path} must lie in its own folder, got a link for {tensor.name!r}")
    if not file.is_file():
        raise InputError(f"weights of {path} must lie beside it, got no file {location!r} for {tensor.name!r}")
    offset, length = (int(entries.get(key) or 0) for key in ("offset", "length"))
    if min(offset, length) < 0 or offset + length > file.stat().st_size:
        raise InputError(
            f"tensor {tensor.name!r} must lie within {location!r}, which has {file.stat().st_size} bytes, "
            f"got {length} bytes at {offset}"
        )


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


def _dense(sparse: SparseTensorProto) -> TensorProto:
    """A sparse initializer as the tensor that it stands for."""
    name, shape = sparse.values.name, tuple(sparse.dims)
    if math.prod(shape) > LARGEST_DENSE:
        raise InputError(f"sparse tensor {name!r} must have at most {LARGEST_DENSE} elements, got shape {shape}")
    values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    dense = np.zeros(shape, values.dtype)
    dense[np.unravel_index(indices, shape) if indices.ndim == 1 else tuple(indices.T)] = values
    return numpy_helper.from_array(dense, name)


def _constant(node: NodeProto) -> TensorProto | None:
    for entry in node.attribute:
        if entry.name == "value":
            tensor: TensorProto = entry.t
            return tensor
        if entry.name == "sparse_value":
            return _dense(entry.sparse_tensor)
        if entry.name in {"value_float", "value_floats"}:
            return numpy_helper.from_array(np.asarray(helper.get_attribute_value(entry), np.float32))
        if entry.name in {"value_int", "value_ints"}:
            return numpy_helper.from_array(np.asarray(helper.get_attribute_value(entry), np.int64))
    return None
