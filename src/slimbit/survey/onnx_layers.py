"""From the nodes of an ONNX graph to layers: which operand is a weight, and how often it is multiplied."""

import math
from collections.abc import Callable

import torch
from onnx import NodeProto, TensorProto
from torch import Tensor

from slimbit.numerics.grid import filters_first
from slimbit.numerics.levels import LayerLevels
from slimbit.records.errors import InputError
from slimbit.records.network import LayerKind, OtherParameter
from slimbit.survey.collect import LayerCollector, WeightUse, module_name
from slimbit.survey.onnx_graph import OnnxGraph, attribute, is_quantizer, operand, operator
from slimbit.survey.onnx_weights import Source, arranged, declared_bits, trace, with_scale
from slimbit.survey.result import Survey

_CONVOLUTIONS = {"Conv": (0, 1), "ConvTranspose": (0, 1), "ConvInteger": (0, 1), "QLinearConv": (0, 3)}
_PRODUCTS = {"Gemm": (0, 1), "MatMul": (0, 1), "MatMulInteger": (0, 1), "QLinearMatMul": (0, 3)}
"""Places of the two factors."""
_SCALES = {
    ("ConvInteger", 1): (-1, 3), ("MatMulInteger", 0): (-1, 2), ("MatMulInteger", 1): (-1, 3),
    ("QLinearConv", 3): (4, 5), ("QLinearMatMul", 0): (1, 2), ("QLinearMatMul", 3): (4, 5),
}  # fmt: skip
"""Places of scale and zero point of an integer weight, by operator and its place; -1 = none."""
_BIASES = {"Conv": 2, "ConvTranspose": 2, "Gemm": 2, "QLinearConv": 8}
_NOT_PARAMETERS = {"BatchNormalization": (3, 4), "Clip": (1, 2), "Resize": (1, 2), "Pad": (2,), "Upsample": (1,)}
"""Inputs that are statistics or settings; any input but the first of a quantizer is one, too."""
_UNCOUNTED = frozenset(
    ["Attention", "Einsum", "GRU", "LSTM", "RNN", "If", "Loop", "Scan", "DeformConv", "GroupQueryAttention"]
)
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)


class NodeReader:
    """Goes through the nodes once and collects layers."""

    def __init__(self, graph: OnnxGraph) -> None:
        self._graph = graph
        self._layers = LayerCollector(graph.batch)
        self._used: set[str] = set()
        self._constant = _computed_from_stored(graph)
        self._uncounted: dict[str, list[str]] = {}
        self._notes: list[str] = []
        self._activation_bits: dict[str, int] = {}

    def survey(self, name: str) -> Survey:
        """The survey of the graph; ``name`` names the network."""
        for node in self._graph.nodes:
            kind = operator(node)
            if node.name in self._graph.contents.norms:
                continue  # scales channels, as the BatchNorm does that it stands for
            if kind in _CONVOLUTIONS:
                self._convolution(node, kind)
            elif kind in _PRODUCTS:
                self._product(node, kind)
            elif kind == "Gather":
                self._embedding(node)
            elif kind in _UNCOUNTED or (node.domain and kind != node.op_type):
                self._uncounted.setdefault(kind, []).append(_node_name(node))
        for kind, nodes in self._uncounted.items():
            self._notes.append(f"{kind} is not counted ({len(nodes)} nodes, the first is {nodes[0]!r})")
        return self._layers.survey(
            name, self._other_parameters(), notes=self._notes, activation_bits=self._activation_bits
        )

    def _convolution(self, node: NodeProto, kind: str) -> None:
        data, weight = (operand(node, place) for place in _CONVOLUTIONS[kind])
        name = _node_name(node)
        transposed = kind == "ConvTranspose"
        inputs, outputs = self._graph.shape(data, name), self._graph.shape(node.output[0], name)
        shape = self._graph.shape(weight, name)
        groups = attribute(node, "group", 1)
        _check_convolution(name, shape, inputs, groups=groups, transposed=transposed)
        # every output position, or input position of a transposed one, meets every weight once
        positions = inputs[0] * math.prod(inputs[2:]) if transposed else outputs[0] * math.prod(outputs[2:])
        macs = positions * math.prod(shape)
        source = self._weight(node, kind, _CONVOLUTIONS[kind][1])
        if source is None:
            self._layers.add_other(name, kind, macs, self._roots(node))
            return
        layer_kind = _convolution_kind(name, len(shape) - 2, transposed=transposed)
        arrange = _filters_first(transposed=transposed, groups=groups)
        self._add(node, source, layer_kind, macs, arrange, data=data, groups=groups)

    def _product(self, node: NodeProto, kind: str) -> None:
        name = _node_name(node)
        left, right = _PRODUCTS[kind]
        shape = self._graph.shape(operand(node, left), name)
        inner = shape[0] if attribute(node, "transA", 0) else shape[-1]
        macs = math.prod(self._graph.shape(node.output[0], name)) * inner
        sources = {place: self._weight(node, kind, place) for place in (right, left)}
        if all(sources.values()):
            return  # computed once, not per image
        weight = next((place for place, source in sources.items() if source is not None), None)
        if weight is None:
            self._layers.add_other(name, kind, macs, self._roots(node))
            return
        source = sources[weight]
        assert source is not None
        filters_last = (weight == right) != bool(attribute(node, "transB" if weight == right else "transA", 0))
        arrange = _inputs_last if not filters_last else _filters_last
        self._add(node, source, "linear", macs, arrange, data=operand(node, left + right - weight))

    def _embedding(self, node: NodeProto) -> None:
        table = trace(self._graph, operand(node, 0))
        constant = operand(node, 1) in self._graph.constants
        rows = attribute(node, "axis", 0) == 0 and table is not None and len(table.shape) > 1
        if table is not None and rows and table.element in _FLOATS and not constant:
            self._add(node, table, "embedding", 0, _filters_first(transposed=False, groups=1), data="")

    def _weight(self, node: NodeProto, kind: str, place: int) -> Source | None:
        source = trace(self._graph, operand(node, place))
        if source is None or (kind, place) not in _SCALES:
            return source
        scale, zero_point = (operand(node, at) if at >= 0 else "" for at in _SCALES[kind, place])
        if any(name and name not in self._graph.constants for name in (scale, zero_point)):
            return None
        axis = 0 if kind in _CONVOLUTIONS else len(source.shape) - 1 if place else len(source.shape) - 2
        return with_scale(self._graph, source, scale, zero_point, axis)

    def _add(
        self, node: NodeProto, source: Source, kind: LayerKind, macs: int, arrange: Callable[[Tensor], Tensor],
        *, data: str, groups: int = 1,
    ) -> None:  # fmt: skip
        name = _layer_name(node, source)
        if 0 in source.shape:
            raise InputError(f"layer {name!r} must have weights, got shape {source.shape}")
        bias = trace(self._graph, operand(node, _BIASES.get(operator(node), len(node.input))))
        self._used.update(used.root for used in (source, bias) if used is not None)
        layer = self._layers.add(
            WeightUse(
                name=name,
                kind=kind,
                tensor=source.root,
                tensor_elements=math.prod(source.shape),
                identity=f"{kind} {source.key} {arrange.__name__} {groups}",
                shape=tuple(arrange(torch.empty(source.shape, device="meta")).shape),
                macs=macs,
                read=lambda: arranged(source.read, arrange),
                groups=groups,
                transposed=kind.startswith("conv_transpose"),
                bias_parameters=math.prod(bias.shape) if bias is not None else 0,
            )
        )
        bits = declared_bits(self._graph, data)
        if bits:
            self._activation_bits[layer] = max(bits, self._activation_bits.get(layer, 0))
        if source.quantized and not isinstance(arranged(source.read, arrange), LayerLevels):
            note = f"layer {layer!r}: steps are not one per layer or per filter, so its weights count as floats"
            self._notes.extend([note] if note not in self._notes else [])

    def _roots(self, node: NodeProto) -> tuple[str, ...]:
        """Stored floats among the node's operands, or that an operand is computed from."""
        return tuple(dict.fromkeys(root for value in node.input for root in self._constant.get(value, ())))

    def _other_parameters(self) -> list[OtherParameter]:
        owners: dict[str, str] = {}
        settings: set[str] = set()
        for node in self._graph.nodes:
            kind = operator(node)
            quantizer = is_quantizer(node) or kind in {"QuantizeLinear", "DequantizeLinear"} or "Integer" in kind
            for place, value in enumerate(node.input):
                setting = (quantizer or kind.startswith("QLinear")) and place > 0
                if setting or place in _NOT_PARAMETERS.get(kind, ()):
                    settings.add(value)
                owners.setdefault(value, kind)
        return [
            OtherParameter(name, math.prod(self._graph.shapes[name]), owners.get(name, "unused"))
            for name in self._graph.initializers
            if self._graph.types[name] in _FLOATS and name not in self._used | settings
        ]


def _computed_from_stored(graph: OnnxGraph) -> dict[str, tuple[str, ...]]:
    """For every value that no input reaches, the stored floats it is computed from."""
    found: dict[str, tuple[str, ...]] = {
        name: (name,) if graph.types[name] in _FLOATS else () for name in graph.constants
    }
    for node in graph.nodes:
        if node.input and all(value in found for value in node.input if value):
            roots = tuple(dict.fromkeys(root for value in node.input for root in found.get(value, ())))
            found.update((output, roots) for output in node.output)
    return found


def _node_name(node: NodeProto) -> str:
    return str(node.name or node.output[0])


def _layer_name(node: NodeProto, source: Source) -> str:
    if source.root.endswith(".weight"):
        return module_name(source.root)
    return node.name or source.root


def _check_convolution(
    name: str, shape: tuple[int, ...], inputs: tuple[int, ...], *, groups: int, transposed: bool
) -> None:
    if len(shape) != len(inputs) or len(shape) < 3:
        raise InputError(f"layer {name!r} must have a weight of {len(inputs)} dimensions, got shape {shape}")
    expected = inputs[1] if transposed else inputs[1] // max(1, groups)
    if groups < 1 or shape[0] % groups or inputs[1] % groups or shape[0 if transposed else 1] != expected:
        raise InputError(
            f"layer {name!r} must fit its {inputs[1]} input channels in {groups} groups, got a weight of shape {shape}"
        )


def _convolution_kind(name: str, dimensions: int, *, transposed: bool) -> LayerKind:
    kinds: dict[tuple[bool, int], LayerKind] = {
        (False, 1): "conv1d", (False, 2): "conv2d", (False, 3): "conv3d",
        (True, 1): "conv_transpose1d", (True, 2): "conv_transpose2d", (True, 3): "conv_transpose3d",
    }  # fmt: skip
    if (transposed, dimensions) not in kinds:
        raise InputError(f"layer {name!r} must be a convolution in 1 to 3 dimensions, got {dimensions}")
    return kinds[transposed, dimensions]


def _filters_first(*, transposed: bool, groups: int) -> Callable[[Tensor], Tensor]:
    def convolution(weight: Tensor) -> Tensor:
        return filters_first(weight, transposed=transposed, groups=groups)

    return convolution


def _filters_last(weight: Tensor) -> Tensor:
    """``(..., inputs, filters)`` of ``x @ W``."""
    return weight.mT.reshape(-1, weight.shape[-2]) if weight.ndim > 1 else weight[None]


def _inputs_last(weight: Tensor) -> Tensor:
    """``(..., filters, inputs)`` of ``W @ x``, or of a transposed second factor."""
    return weight.reshape(-1, weight.shape[-1])
