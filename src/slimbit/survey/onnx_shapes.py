"""Shapes of the values of an ONNX graph: as the file says, as ONNX infers them, and as one run shows the rest.

Everything works on a skeleton of the file, in which large stored tensors are inputs of known shape: it is small
whatever the weights take, also where they lie outside of a file that is too large for itself.
"""

import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from slimbit.records.errors import InputError
from slimbit.survey.files import one_line
from slimbit.survey.onnx_graph import OnnxGraph, is_quantizer

SMALL = 1024
"""Elements of a stored tensor that may be a setting, like a shape, and stays in the skeleton."""
MOST_SECONDS = 8.0
"""Time for a run that learns shapes; a file may say that it loops for ever, and there are two runs."""
_LEFT_OUT = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT8, TensorProto.UINT8,
             TensorProto.INT16, TensorProto.UINT16, TensorProto.INT32, TensorProto.INT64)  # fmt: skip

Sizes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class OpenInput:
    """An input as the file describes it.

    Attributes:
        dims: Size of each dimension, or its name where it is open ("" = none); None = nothing is said.
    """

    name: str
    dims: tuple[int | str, ...] | None

    def __str__(self) -> str:
        return "none" if self.dims is None else "x".join(str(dim or "?") for dim in self.dims)


def open_inputs(graph: OnnxGraph) -> list[OpenInput]:
    """The inputs of a graph that are tensors and have no stored value."""
    found = []
    for value in graph.model.graph.input:
        if value.name in graph.constants or not value.type.HasField("tensor_type"):
            continue
        kind = value.type.tensor_type
        dims = tuple(dim.dim_value if dim.dim_value > 0 else str(dim.dim_param) for dim in kind.shape.dim)
        found.append(OpenInput(value.name, dims if kind.HasField("shape") else None))
    return found


def input_sizes(
    graph: OnnxGraph, given: Mapping[str, Sequence[int]] | Sequence[int] | None
) -> dict[str, tuple[int, ...]]:
    """A size for every dimension of every input.

    An open first dimension is 1; a name that stands for several dimensions is one size.

    Args:
        graph: The file.
        given: Shape of the first input, or of inputs by name, with or without their first dimension.

    Raises:
        InputError: A shape does not fit its input, or a dimension stays open.
    """
    inputs = open_inputs(graph)
    shapes = given if isinstance(given, Mapping) else {inputs[0].name: given} if inputs and given else {}
    known = [entry.name for entry in inputs]
    for name in shapes:
        if name not in known:
            raise InputError(f"input must be one of {', '.join(known) or 'none'}, got {name!r}")
    named: dict[str, int] = {}
    sizes = {}
    for entry in sorted(inputs, key=lambda entry: entry.name not in shapes):  # names are learned from what is given
        wanted = _wanted(entry, shapes[entry.name]) if entry.name in shapes else None
        sizes[entry.name] = _fixed(entry, wanted, named)
    return {entry.name: sizes[entry.name] for entry in inputs}


def _wanted(entry: OpenInput, given: Sequence[int]) -> list[int]:
    """The shape asked for, with 0 for a first dimension that was left out."""
    sizes = [int(size) for size in given]
    if not sizes or min(sizes) < 1:
        raise InputError(f"input_shape must hold positive sizes, got {tuple(sizes)}")
    if entry.dims is None or len(sizes) == len(entry.dims):
        return sizes
    if len(sizes) != len(entry.dims) - 1:
        raise InputError(
            f"input_shape must fit the {len(entry.dims)} dimensions of input {entry.name!r}, got {tuple(sizes)}"
        )
    return [0, *sizes]


def _fixed(entry: OpenInput, wanted: list[int] | None, named: dict[str, int]) -> tuple[int, ...]:
    dims = entry.dims if entry.dims is not None else ("",) * len(wanted or ())
    sizes = []
    for axis, dim in enumerate(dims):
        stated = dim if isinstance(dim, int) else named.get(dim, 0)
        sizes.append((wanted[axis] if wanted else 0) or stated or (1 if axis == 0 else 0))
    if not all(sizes) or (entry.dims is None and wanted is None):
        raise InputError(
            f"input {entry.name!r} must have known dimensions, got {entry}; "
            "pass them as --input (input_shape), e.g. 3x224x224"
        )
    for dim, size in zip(dims, sizes, strict=True):
        if isinstance(dim, str) and dim.strip("?-1"):  # some writers call every open dimension "?"
            named.setdefault(dim, size)
    return tuple(sizes)


class Shapes:
    """Infers the shapes of a graph's values for one size of its inputs after another."""

    def __init__(self, graph: OnnxGraph) -> None:
        self._graph = graph
        self._skeleton = _skeleton(graph)
        onnx.checker.check_model(self._checkable())

    def infer(self, sizes: Sizes, needed: Iterable[str]) -> tuple[dict[str, tuple[int, ...]], dict[str, int], str]:
        """Shapes and element types of all values that have known ones, for inputs of these sizes.

        Args:
            sizes: Shapes of the inputs.
            needed: Values whose shapes are worth a run, where nothing else says them.

        Returns:
            Shapes and types, and why a run did not show what is missing ("" = it did, or none was needed).
        """
        shapes = {name: tuple(tensor.dims) for name, tensor in self._graph.constants.items()}
        types = {name: tensor.data_type for name, tensor in self._graph.constants.items()}
        types |= {value.name: value.type.tensor_type.elem_type for value in self._skeleton.graph.input}
        inferred = _inferred(self._sized(sizes))
        stated = self._stated(sizes)
        for value in (*inferred.input, *inferred.value_info, *inferred.output):
            _learn(value, shapes, types)
        if stated:  # what the file says helps to infer what follows
            sized = self._sized(sizes)
            sized.graph.value_info.extend(value for value in stated if value.name not in shapes)
            inferred = _inferred(sized)
            for value in (*stated, *inferred.value_info, *inferred.output):
                _learn(value, shapes, types)
        missing = [name for name in dict.fromkeys(needed) if name and name not in shapes]
        if not missing:
            return shapes, types, ""
        found, why = _run(self._sized(sizes), sizes, missing)
        shapes |= found
        return shapes, types, why

    def _checkable(self) -> ModelProto:
        model = ModelProto()
        model.CopyFrom(self._skeleton)
        del model.graph.output[:]  # their shapes may be missing, which costs nothing here
        del model.graph.value_info[:]
        return model

    def _sized(self, sizes: Sizes) -> ModelProto:
        """The skeleton with inputs of these sizes, and no other shapes."""
        model = ModelProto()
        model.CopyFrom(self._skeleton)
        del model.graph.value_info[:]
        for output in model.graph.output:
            if output.type.HasField("tensor_type"):
                output.type.tensor_type.ClearField("shape")
        for value in model.graph.input:
            if value.name in sizes:
                _set_shape(value, sizes[value.name])
        return model

    def _stated(self, sizes: Sizes) -> list[ValueInfoProto]:
        """Shapes that the file states, in numbers, if the inputs have the sizes that it states for them."""
        for entry in open_inputs(self._graph):
            stated = entry.dims or ()
            if any(isinstance(dim, int) and dim != size for dim, size in zip(stated, sizes[entry.name], strict=False)):
                return []
        names = {
            dim: size
            for entry in open_inputs(self._graph)
            for dim, size in zip(entry.dims or (), sizes[entry.name], strict=False)
            if isinstance(dim, str) and dim.strip("?-1")
        }
        values = []
        for value in (*self._graph.model.graph.value_info, *self._graph.model.graph.output):
            dims = value.type.tensor_type.shape.dim
            known = [dim.dim_value or names.get(dim.dim_param, 0) for dim in dims]
            if value.type.tensor_type.HasField("shape") and all(size > 0 for size in known):
                values.append(helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, known))
        return values


def _skeleton(graph: OnnxGraph) -> ModelProto:
    model, source = ModelProto(), graph.model
    model.ir_version, model.graph.name = max(source.ir_version, 4), source.graph.name
    model.opset_import.extend(source.opset_import)
    domains = {entry.domain or "ai.onnx" for entry in source.opset_import}
    kept, inputs = [], {value.name: value for value in source.graph.input if value.name not in graph.constants}
    for name, tensor in graph.constants.items():
        if math.prod(tensor.dims) > SMALL and tensor.data_type in _LEFT_OUT:
            inputs[name] = helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims))
        elif name in graph.initializers:
            kept.append(graph.stored(name))
    model.graph.initializer.extend(kept)
    for node in source.graph.node:
        if node.op_type == "Constant" and node.output[0] in inputs:
            continue
        model.graph.node.append(_known(node))
        if (node.domain or "ai.onnx") not in domains:
            domains.add(node.domain)
            model.opset_import.append(helper.make_opsetid(node.domain, 1))
    model.graph.input.extend(inputs.values())
    model.graph.output.extend(source.graph.output)
    return model


def _known(node: NodeProto) -> NodeProto:
    """The node, or for operators of QONNX, which the checker and inference do not know, one that passes values on."""
    if is_quantizer(node):
        return helper.make_node("Identity", list(node.input[:1]), list(node.output[:1]), name=node.name)
    return node


def _inferred(model: ModelProto) -> onnx.GraphProto:
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except Exception:  # noqa: BLE001 - a run may show what inference cannot
        return model.graph


def _learn(value: ValueInfoProto, shapes: dict[str, tuple[int, ...]], types: dict[str, int]) -> None:
    kind = value.type.tensor_type
    if kind.elem_type:
        types.setdefault(value.name, kind.elem_type)
    if kind.HasField("shape") and all(dim.HasField("dim_value") and dim.dim_value >= 0 for dim in kind.shape.dim):
        shapes.setdefault(value.name, tuple(dim.dim_value for dim in kind.shape.dim))


def _set_shape(value: ValueInfoProto, sizes: Sequence[int]) -> None:
    shape = value.type.tensor_type.shape
    del shape.dim[:]
    shape.SetInParent()
    for size in sizes:
        shape.dim.add().dim_value = size


def _run(model: ModelProto, sizes: Sizes, missing: Sequence[str]) -> tuple[dict[str, tuple[int, ...]], str]:
    """Shapes of values in one run of ONNX Runtime on zeros, or why there are none."""
    if find_spec("onnxruntime") is None:
        return {}, "install onnxruntime (slimbit[onnx]), which learns shapes by one run"
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    del model.graph.output[:]
    produced = {name for node in model.graph.node for name in node.output} | {v.name for v in model.graph.input}
    asked = [name for name in missing if name in produced]
    for place, name in enumerate(asked):
        model.graph.node.append(helper.make_node("Shape", [name], [f"shape of {name}"], name=f"shape {place}"))
        model.graph.output.append(helper.make_tensor_value_info(f"shape of {name}", TensorProto.INT64, None))
    model.ir_version = min(model.ir_version, 10)  # newer ones add nothing that a run needs
    options, limits = onnxruntime.SessionOptions(), onnxruntime.RunOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = limits.log_severity_level = 4
    watch = threading.Timer(MOST_SECONDS, setattr, (limits, "terminate", True))
    watch.daemon = True
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        watch.start()
        found = session.run([f"shape of {name}" for name in asked], _zeros(model, sizes), limits)
    except Exception as error:  # noqa: BLE001 - the runtime raises types of its own
        if limits.terminate:
            return {}, f"ONNX Runtime does not end within {MOST_SECONDS:g} s"
        return {}, f"ONNX Runtime cannot run it: {one_line(error)}"
    finally:
        watch.cancel()
    return {name: tuple(map(int, shape)) for name, shape in zip(asked, found, strict=True)}, ""


def _zeros(model: ModelProto, sizes: Sizes) -> dict[str, np.ndarray[Any, Any]]:
    feeds = {}
    for value in model.graph.input:
        kind = value.type.tensor_type
        shape = sizes.get(value.name) or tuple(dim.dim_value for dim in kind.shape.dim)
        feeds[value.name] = np.zeros(shape, helper.tensor_dtype_to_np_dtype(kind.elem_type))
    return feeds
