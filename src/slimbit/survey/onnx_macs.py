"""Which operators of ONNX multiply, and how often: from the shapes of their operands to multiply-accumulates."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from onnx import NodeProto

from slimbit.records.errors import InputError
from slimbit.survey.onnx_graph import attribute, node_name, operand, operator

_MICROSOFT = "com.microsoft."


@dataclass(frozen=True)
class Product:
    """An operator that multiplies two operands.

    Attributes:
        left: Place of the first factor; of a convolution, its data.
        right: Place of the second factor; of a convolution, its weight.
        left_scale: Places of scale and zero point of an integer first factor; -1 = none. Empty = it is a float.
        right_scale: The same of the second factor.
        bias: Place of the bias; -1 = none.
        convolution: Whether it is a convolution.
        transposed: Whether it is a transposed one.
    """

    left: int
    right: int
    left_scale: tuple[int, ...] = ()
    right_scale: tuple[int, ...] = ()
    bias: int = -1
    convolution: bool = False
    transposed: bool = False


PRODUCTS = {
    "Conv": Product(0, 1, bias=2, convolution=True),
    "ConvTranspose": Product(0, 1, bias=2, convolution=True, transposed=True),
    "ConvInteger": Product(0, 1, (-1, 2), (-1, 3), convolution=True),
    "QLinearConv": Product(0, 3, (1, 2), (4, 5), bias=8, convolution=True),
    "DeformConv": Product(0, 1, bias=3, convolution=True),
    "Gemm": Product(0, 1, bias=2),
    "MatMul": Product(0, 1),
    "MatMulInteger": Product(0, 1, (-1, 2), (-1, 3)),
    "QLinearMatMul": Product(0, 3, (1, 2), (4, 5)),
    _MICROSOFT + "FusedConv": Product(0, 1, bias=2, convolution=True),
    _MICROSOFT + "NhwcFusedConv": Product(0, 1, bias=2, convolution=True),
    _MICROSOFT + "QLinearConv": Product(0, 3, (1, 2), (4, 5), bias=8, convolution=True),
    _MICROSOFT + "FusedGemm": Product(0, 1, bias=2),
    _MICROSOFT + "GemmFastGelu": Product(0, 1, bias=2),
    _MICROSOFT + "FusedMatMul": Product(0, 1),
    _MICROSOFT + "TransposeMatMul": Product(0, 1),
    _MICROSOFT + "FusedMatMulActivation": Product(0, 1),
    _MICROSOFT + "QGemm": Product(0, 3, (1, 2), (4, 5), bias=6),
    _MICROSOFT + "DynamicQuantizeMatMul": Product(0, 1, (), (2, 3), bias=4),
    _MICROSOFT + "MatMulIntegerToFloat": Product(0, 1, (2, 4), (3, 5), bias=6),
}
"""Operators whose constant factor is a layer."""
_RECURRENT = {"LSTM", "GRU", "RNN", _MICROSOFT + "DynamicQuantizeLSTM"}
_BLOCKED = _MICROSOFT + "nchwc.Conv"  # its weights lie in blocks that are padded
OTHERS = _RECURRENT | {"Einsum", _MICROSOFT + "MatMulNBits", _BLOCKED}
"""Operators whose multiplications are counted, but belong to no layer."""
ELEMENTWISE = frozenset(
    _MICROSOFT + name
    for name in (
        "BiasAdd", "BiasDropout", "BiasGelu", "BiasSoftmax", "BiasSplitGelu", "DequantizeLinear", "FastGelu", "Gelu",
        "GroupNorm", "NhwcMaxPool", "QLinearAdd", "QLinearAveragePool", "QLinearConcat", "QLinearGlobalAveragePool",
        "QLinearLeakyRelu", "QLinearMul", "QLinearReduceMean", "QLinearSigmoid", "QLinearSoftmax", "QLinearWhere",
        "QuantizeLinear", "QuickGelu", "SkipGroupNorm", "SkipLayerNormalization", "SimplifiedLayerNormalization",
        "SkipSimplifiedLayerNormalization", "nchwc.AveragePool", "nchwc.GlobalAveragePool", "nchwc.GlobalMaxPool",
        "nchwc.MaxPool", "nchwc.ReorderInput", "nchwc.ReorderOutput", "nchwc.Upsample",
    )
)  # fmt: skip
"""Foreign operators without products."""


def operands_of(node: NodeProto) -> Iterator[str]:
    """Values whose shapes say how often a node multiplies."""
    kind = operator(node)
    product = PRODUCTS.get(kind)
    if product is not None:
        yield from (operand(node, product.left), operand(node, product.right), str(node.output[0]))
    elif kind in _RECURRENT:
        yield from (operand(node, place) for place in range(3))
    elif kind == "Einsum":
        yield from node.input
    elif kind in OTHERS:
        yield from (operand(node, 0), *([operand(node, 1)] if kind == _BLOCKED else []), str(node.output[0]))


def macs_of(node: NodeProto, shapes: Mapping[str, tuple[int, ...]], why: str = "") -> int:
    """Multiply-accumulates of a node for the whole input.

    Args:
        node: One with `operands_of`.
        shapes: Of all values that have known ones.
        why: What to add where a shape is missing.

    Raises:
        InputError: A shape is missing, or a weight does not fit its input.
    """
    for value in operands_of(node):
        if value and value not in shapes:
            reason = f": {why}" if why else ""
            raise InputError(
                f"layer {node_name(node)!r} must have known shapes, got none for its value {value!r}{reason}"
            )
    kind = operator(node)
    product = PRODUCTS.get(kind)
    if product is not None and product.convolution:
        return _convolution(node, product, shapes)
    if product is not None:
        left = shapes[operand(node, product.left)]
        turned = len(left) > 1 and attribute(node, "transA", 0)
        return math.prod(shapes[node.output[0]]) * left[-2 if turned else -1]
    if kind in _RECURRENT:
        steps = math.prod(shapes[operand(node, 0)][:2])
        return steps * sum(math.prod(shapes[operand(node, place)]) for place in (1, 2))
    if kind == "Einsum":
        return _einsum(node, shapes)
    inner = math.prod(shapes[operand(node, 1)][1:]) if kind == _BLOCKED else int(attribute(node, "K", 0))
    return math.prod(shapes[node.output[0]]) * inner


def images_of(node: NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """How many images or sequences a convolution or recurrent layer works on; None for other operators."""
    product = PRODUCTS.get(operator(node))
    if operator(node) in _RECURRENT:
        return shapes[operand(node, 0)][0 if attribute(node, "layout", 0) else 1]
    return shapes[operand(node, product.left)][0] if product is not None and product.convolution else None


def _convolution(node: NodeProto, product: Product, shapes: Mapping[str, tuple[int, ...]]) -> int:
    inputs, weight = shapes[operand(node, product.left)], shapes[operand(node, product.right)]
    name, groups = node_name(node), attribute(node, "group", 1)
    if len(weight) != len(inputs) or len(weight) < 3:
        raise InputError(f"layer {name!r} must have a weight of {len(inputs)} dimensions, got shape {weight}")
    last = operator(node) == _MICROSOFT + "NhwcFusedConv" or attribute(node, "channels_last", 0)
    channels = inputs[-1 if last else 1]
    wanted = weight[0] if product.transposed else weight[1] * groups
    if groups < 1 or weight[0] % groups or channels != wanted:
        raise InputError(
            f"layer {name!r} must fit its {channels} input channels in {groups} groups, got a weight of shape {weight}"
        )
    # each output, or input of a transposed one, is a sum over, or goes into, the weights of one filter, or channel
    ends = inputs if product.transposed else shapes[node.output[0]]
    return math.prod(ends) * math.prod(weight[1:])


def _einsum(node: NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Every combination of its indices once, for each factor after the first."""
    terms = str(attribute(node, "equation", "")).replace(" ", "").partition("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, value in zip(terms, node.input, strict=True):
        before, dots, after = term.partition("...")
        shape = shapes[value]
        sizes.update(zip(before, shape, strict=False))
        sizes.update(zip(reversed(after), reversed(shape), strict=False))
        if dots:
            middle = shape[len(before) : len(shape) - len(after)]
            sizes["..."] = max(sizes.get("...", 1), math.prod(middle))
    return math.prod(sizes.values()) * (len(terms) - 1)
