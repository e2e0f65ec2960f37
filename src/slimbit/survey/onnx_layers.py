"""From the nodes of an ONNX graph to layers: which operand is a weight, and how often it is multiplied."""

import math
from collections import Counter
from collections.abc import Callable, Iterator

import torch
from onnx import GraphProto, NodeProto
from torch import Tensor

from slimbit.numerics.grid import filters_first
from slimbit.numerics.levels import LayerLevels
from slimbit.records.errors import InputError
from slimbit.records.network import LayerKind, OtherParameter
from slimbit.survey.collect import LayerCollector, WeightUse, module_name
from slimbit.survey.onnx_batch import Counted
from slimbit.survey.onnx_graph import FLOATS, attribute, inner_graphs, is_quantizer, node_name, operand, operator
from slimbit.survey.onnx_macs import ELEMENTWISE, OTHERS, PRODUCTS, Product
from slimbit.survey.onnx_sources import Source, arranged, trace
from slimbit.survey.onnx_weights import declared_bits, with_scale
from slimbit.survey.result import Survey

_NOT_PARAMETERS = {"BatchNormalization": (3, 4), "Clip": (1, 2), "Resize": (1, 2), "Pad": (2,), "Upsample": (1,)}
"""Inputs that are statistics or settings; any input but the first of a quantizer is one, too."""
_UNCOUNTED = frozenset(["Attention", "If", "Loop", "Scan", "SequenceMap"])


class NodeReader:
    """Goes through the nodes once and collects layers."""

    def __init__(self, counted: Counted) -> None:
        self._graph = counted.graph
        self._macs = counted.macs
        self._layers = LayerCollector()
        self._used: set[str] = set()
        self._uncounted: dict[str, list[NodeProto]] = {}
        self._notes: list[str] = list(counted.notes)
        self._activation_bits: dict[str, int] = {}

    def survey(self, name: str) -> Survey:
        """The survey of the graph; ``name`` names the network."""
        for place, node in enumerate(self._graph.nodes):
            kind = operator(node)
            if node.name in self._graph.contents.norms:
                continue  # scales channels, as the BatchNorm does that it stands for
            if kind in PRODUCTS:
                self._product(node, PRODUCTS[kind], self._macs[place])
            elif kind in OTHERS:
                self._layers.add_other(node_name(node), kind, self._macs[place], self._roots(node))
            elif kind == "Gather":
                self._embedding(node)
            elif kind in _UNCOUNTED or (node.domain and kind != node.op_type and kind not in ELEMENTWISE):
                self._uncounted.setdefault(kind, []).append(node)
        for kind, nodes in self._uncounted.items():
            inside = Counter(
                operator(node) for outer in nodes for graph in inner_graphs(outer) for node in _products_in(graph)
            )
            held = f" and holds {', '.join(f'{n} {inner}' for inner, n in inside.items())}" if inside else ""
            self._notes.append(
                f"{kind} is not counted ({len(nodes)} nodes, the first is {node_name(nodes[0])!r}){held}"
            )
        return self._layers.survey(
            name,
            self._other_parameters(),
            notes=self._notes,
            activation_bits=self._activation_bits,
            uncounted=tuple(self._uncounted),
            inputs=self._graph.inputs.values(),
        )

    def _product(self, node: NodeProto, product: Product, macs: int) -> None:
        sources = {place: self._weight(node, product, place) for place in (product.right, product.left)}
        if all(operand(node, place) in self._graph.roots for place in sources):
            return  # computed once, not per image
        if product.convolution:
            sources[product.left] = None
        place, source = next(((p, s) for p, s in sources.items() if s is not None), (product.right, None))
        if source is None:
            self._layers.add_other(node_name(node), operator(node), macs, self._roots(node))
        elif product.convolution:
            groups = attribute(node, "group", 1)
            kind = _convolution_kind(node_name(node), len(source.shape) - 2, transposed=product.transposed)
            arrange = _filters_first(transposed=product.transposed, groups=groups)
            self._add(node, source, kind, macs, arrange, data=operand(node, product.left), groups=groups)
        else:
            right = place == product.right
            filters_last = right != bool(attribute(node, "transB" if right else "transA", 0))
            arrange = _filters_last if filters_last else _inputs_last
            data = operand(node, product.left if right else product.right)
            self._add(node, source, "linear", macs, arrange, data=data)

    def _embedding(self, node: NodeProto) -> None:
        if operand(node, 1) in self._graph.roots or attribute(node, "axis", 0) != 0:
            return
        table = trace(self._graph, operand(node, 0))
        if table is not None and len(table.shape) > 1 and table.element in FLOATS:
            self._add(node, table, "embedding", 0, _filters_first(transposed=False, groups=1), data="")

    def _weight(self, node: NodeProto, product: Product, place: int) -> Source | None:
        """What a factor is made of, if stored tensors alone make it."""
        source = trace(self._graph, operand(node, place))
        places = product.left_scale if place == product.left else product.right_scale
        if source is None or not places:
            return source
        scale, zero_point = (operand(node, at) if at >= 0 else "" for at in places)
        if any(name and name not in self._graph.roots for name in (scale, zero_point)):
            return None
        if product.convolution:
            axis = 1 if product.transposed else 0
        else:
            last = place == product.right and not attribute(node, "transB", 0)
            axis = len(source.shape) - (1 if last else 2)
        return with_scale(self._graph, source, scale, zero_point, axis)

    def _add(
        self, node: NodeProto, source: Source, kind: LayerKind, macs: int, arrange: Callable[[Tensor], Tensor],
        *, data: str, groups: int = 1,
    ) -> None:  # fmt: skip
        name = _layer_name(node, source)
        if 0 in source.shape:
            raise InputError(f"layer {name!r} must have weights, got shape {source.shape}")
        product = PRODUCTS.get(operator(node))
        bias = trace(self._graph, operand(node, product.bias)) if product is not None and product.bias >= 0 else None
        self._used.update(root for used in (source, bias) if used is not None for root in used.roots)
        layer = self._layers.add(
            WeightUse(
                name=name,
                kind=kind,
                tensor=source.root,
                tensor_elements=max(math.prod(source.shape), math.prod(self._graph.constants[source.root].dims)),
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
        found = (root for value in node.input for root in self._graph.roots.get(value, ()))
        return tuple(dict.fromkeys(root for root in found if self._graph.types[root] in FLOATS))

    def _other_parameters(self) -> list[OtherParameter]:
        owners: dict[str, str] = {}
        settings: set[str] = set()
        for node in self._graph.nodes:
            kind = operator(node)
            quantizer = is_quantizer(node) or kind in {"QuantizeLinear", "DequantizeLinear"} or "Integer" in kind
            product = PRODUCTS.get(kind, Product(0, 1))
            scales = (*_NOT_PARAMETERS.get(kind, ()), *product.left_scale, *product.right_scale)
            for place, value in enumerate(node.input):
                if place in scales or ((quantizer or "QLinear" in kind or "QGemm" in kind) and place > 0):
                    settings.add(value)
                owners.setdefault(value, kind)
        return [
            OtherParameter(name, math.prod(self._graph.shapes[name]), owners.get(name, "unused"))
            for name in self._graph.initializers
            if self._graph.types[name] in FLOATS and name not in self._used | settings
        ]


def _products_in(graph: GraphProto) -> Iterator[NodeProto]:
    """Operators that multiply, in a graph and the graphs inside of it."""
    for node in graph.node:
        if operator(node) in PRODUCTS or operator(node) in OTHERS:
            yield node
        for inner in inner_graphs(node):
            yield from _products_in(inner)


def _layer_name(node: NodeProto, source: Source) -> str:
    if source.root.endswith(".weight"):
        return module_name(source.root)
    return node.name or source.root


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
