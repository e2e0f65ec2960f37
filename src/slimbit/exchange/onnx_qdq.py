"""An `IntegerProgram` as an ONNX file for runtimes: QuantizeLinear and DequantizeLinear around every operation (QDQ).

Codes are unsigned bytes, those of signed values with the zero point 128. Weights are int8, or int4 where they fit and
the target takes it. A runtime fuses ``DequantizeLinear -> Conv -> QuantizeLinear`` into one integer operation; a ReLU
is the saturation of the QuantizeLinear, and a width below 8 bits is a Clip of the codes behind it: neither stands in
the way of fusing. What only moves entries works on codes.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from slimbit.apply.integers import EXACT, IntegerLayer, IntegerProgram, IntegerStage
from slimbit.exchange.contents import contents_of
from slimbit.exchange.onnx_builder import INT4_OPSET, GraphBuilder
from slimbit.exchange.onnx_moves import (
    add_average,
    add_clamp,
    add_function,
    add_maximum,
    add_move,
    onnx_pads,
)
from slimbit.numerics.requantize import clamped_codes
from slimbit.records.activations import ActivationQuantizer
from slimbit.records.dataflow import Operation
from slimbit.records.errors import InputError
from slimbit.survey.onnx_contents import CONTENTS

LARGEST_INT8, LARGEST_INT4 = 127, 7
DEFAULT_OPSET = 17


def qdq_model(
    program: IntegerProgram,
    *,
    int4: bool = False,
    symmetric: bool = False,
    opset: int | None = None,
    metadata: Mapping[str, str] | None = None,
) -> ModelProto:
    """The ONNX model of a compressed network.

    Args:
        program: Its integers.
        int4: Whether weights of at most seven are stored in four bits, and cast to int8 when the file is loaded.
        symmetric: Whether the file keeps to what TensorRT reads: activations are signed bytes with the zero point 0,
            biases floats, clamps stand before QuantizeLinear, and nothing but DequantizeLinear reads codes.
        opset: Version of the operators; default 17, or 21 with ``int4``.
        metadata: Text that the file carries.

    Returns:
        The model, with a dynamic batch and the network's own names for values and layers.

    Raises:
        InputError: A weight beyond 127, a transposed convolution whose sums are not exact in float32, an opset that
            has no int4.
    """
    opset = opset or (INT4_OPSET if int4 else DEFAULT_OPSET)
    if int4 and opset < INT4_OPSET:
        raise InputError(f"opset must be {INT4_OPSET} or later for int4 weights, got {opset}")
    graph = GraphBuilder(program.flow, opset=opset)
    if symmetric:
        _check_symmetric(program)
    writer = _Writer(graph, program, int4=int4, symmetric=symmetric)
    for name in program.flow.inputs:
        quantizer = program.quantizers[name]
        graph.node("QuantizeLinear", [name, *writer.scale_and_zero(quantizer)], codes_name(name))
        writer.narrow(codes_name(name), quantizer, *_code_range(quantizer))
    for stage in program.stages:
        writer.add(stage)
    outputs = {writer.real(value): _output_name(program, place) for place, value in enumerate(program.flow.outputs)}
    if len(outputs) < len(program.flow.outputs):
        raise InputError(f"outputs of {program.flow.network} must be different values, got one twice")
    return graph.model(outputs=outputs, metadata={**(metadata or {}), CONTENTS: contents_of(program)})


def codes_name(value: str) -> str:
    """Name of a value's codes in the file."""
    return f"{value}/codes"


def offset_of(quantizer: ActivationQuantizer) -> int:
    """The byte that stands for zero.

    >>> offset_of(ActivationQuantizer(value="x", bits=8, step=1.0, signed=True))
    128
    """
    return quantizer.zero_point + (128 if quantizer.signed else 0)


def _code_range(quantizer: ActivationQuantizer) -> tuple[int, int]:
    return quantizer.low - quantizer.zero_point, quantizer.high - quantizer.zero_point


def _output_name(program: IntegerProgram, place: int) -> str:
    keys = program.flow.output_keys
    if keys is not None:
        return keys[place]
    return "output" if len(program.flow.outputs) == 1 else f"output{place}"


def _check_symmetric(program: IntegerProgram) -> None:
    """Raise `InputError` unless every code is a signed byte around zero."""
    for quantizer in program.quantizers.values():
        if not quantizer.signed or quantizer.zero_point or quantizer.bits != 8:
            kind = "signed" if quantizer.signed else "unsigned"
            raise InputError(
                f"activations must be signed codes of 8 bits around zero for tensorrt, got {kind} ones of "
                f"{quantizer.bits} bits at {quantizer.value!r}: quantize with activation codes signed "
                "(--activation-codes signed)"
            )


class _Writer:
    """Adds stages to a graph; the names of values that narrow clamps were put behind change on the way."""

    def __init__(self, graph: GraphBuilder, program: IntegerProgram, *, int4: bool, symmetric: bool) -> None:
        self.graph, self.program, self.int4, self.symmetric = graph, program, int4, symmetric
        self._codes: dict[str, str] = {}
        self._reals: dict[str, str] = {}

    def scale_and_zero(self, quantizer: ActivationQuantizer) -> list[str]:
        """Stored step and zero point of a quantizer."""
        zero = (
            self.graph.store(f"{quantizer.value}/zero", 0, np.int8)
            if self.symmetric
            else self.graph.store(f"{quantizer.value}/zero", offset_of(quantizer), np.uint8)
        )
        return [self.graph.store(f"{quantizer.value}/step", quantizer.step, np.float32), zero]

    def codes(self, value: str) -> str:
        """Name of a value's codes."""
        return self._codes.get(value, codes_name(value))

    def real(self, value: str) -> str:
        """Name of a value's real numbers."""
        quantizer = self.program.quantizers.get(value)
        if quantizer is None:
            return f"{value}/real"
        if value not in self._reals:
            source = [self.codes(value), *self.scale_and_zero(quantizer)]
            self._reals[value] = self.graph.node("DequantizeLinear", source, f"{value}/real")
        return self._reals[value]

    def narrow(self, name: str, quantizer: ActivationQuantizer, low: int, high: int) -> str:
        """Clamp codes where bytes alone would let more through; returns the name of the clamped ones."""
        offset = offset_of(quantizer)
        first, last = low + offset, high + offset
        if (first, last) == (0, 255) or self.symmetric:
            return name
        bounds = [self.graph.store(f"byte/{byte}", byte, np.uint8) for byte in (first, last)]
        value = name.removesuffix("/codes")
        self._codes[value] = self.graph.node("Clip", [name, *bounds], f"{name}/clipped")
        return self._codes[value]

    def add(self, integer: IntegerStage) -> None:
        """One stage."""
        stage, head, graph = integer.stage, integer.stage.head, self.graph
        value, source = stage.value, head.inputs[0]
        if integer.output is None and head.kind != "layer":
            self._add_tail(integer)
            return
        if stage.is_transparent:
            self._add_transparent(head, value)
            return
        if integer.layer is not None:
            self._add_layer(integer, integer.layer)
            return
        assert integer.output is not None
        inputs, result = [self.real(name) for name in head.inputs], f"{value}/result"
        match head.kind:
            case "add":
                graph.node("Add", inputs, result)
            case "multiply":
                graph.node("Mul", inputs, result)
            case "average":
                add_average(graph, head, inputs[0], result, self.program.flow.shape(source))
            case "function" if head["function"] == "clamp":
                result = inputs[0]  # the codes are clamped
            case _:
                add_function(graph, head, inputs[0], result)
        self._quantize(integer, result)

    def _quantize(self, integer: IntegerStage, result: str, *, step: str = "") -> None:
        output = integer.output
        assert output is not None
        own_step, zero = self.scale_and_zero(output)
        if self.symmetric:
            result = self._clamped(integer, result, output)
        name = self.graph.node("QuantizeLinear", [result, step or own_step, zero], codes_name(integer.stage.value))
        self.narrow(name, output, *clamped_codes(integer.stage, output))

    def _clamped(self, integer: IntegerStage, result: str, output: ActivationQuantizer) -> str:
        """Real numbers clamped as the codes would be, where the bytes alone let more through."""
        low, high = clamped_codes(integer.stage, output)
        value, ends = integer.stage.value, (low, high)
        if ends == (output.low, output.high):
            return result
        if ends == (0, output.high):
            return self.graph.node("Relu", [result], f"{value}/relu")
        bounds = [self.graph.store(f"{value}/bound{end}", end * output.step, np.float32) for end in ends]
        return self.graph.node("Clip", [result, *bounds], f"{value}/clipped")

    def _add_tail(self, integer: IntegerStage) -> None:
        """Behind the logits: floats."""
        head, value = integer.stage.head, integer.stage.value
        source, output = self.real(head.inputs[0]), f"{value}/real"
        if head.kind == "move":
            add_move(self.graph, head, source, output)
        elif head["function"] == "clamp":
            add_clamp(self.graph, integer.stage.low, integer.stage.high, source, output)
        else:
            clamped = (integer.stage.low, integer.stage.high) != (None, None)
            inner = add_function(self.graph, head, source, f"{value}/function" if clamped else output)
            if clamped:
                add_clamp(self.graph, integer.stage.low, integer.stage.high, inner, output)

    def _add_transparent(self, head: Operation, value: str) -> None:
        sources, output = [self.codes(name) for name in head.inputs], codes_name(value)
        if self.symmetric:  # real numbers in between, and the same codes behind
            sources, output = [self.real(name) for name in head.inputs], f"{value}/moved"
        if head.kind == "concat":
            self.graph.node("Concat", sources, output, axis=head["axis"])
        elif head.kind == "maximum":
            add_maximum(self.graph, head, sources[0], output)
        else:
            _, zero = self.scale_and_zero(self.program.quantizers[value])
            add_move(self.graph, head, sources[0], output, zero="" if self.symmetric or head["move"] != "pad" else zero)
        if self.symmetric:
            step_and_zero = self.scale_and_zero(self.program.quantizers[value])
            self.graph.node("QuantizeLinear", [output, *step_and_zero], codes_name(value))

    def _add_layer(self, integer: IntegerStage, layer: IntegerLayer) -> None:
        head = integer.stage.head
        if layer.largest > LARGEST_INT8:
            raise InputError(
                f"integers of layer {head.name!r} must be at most {LARGEST_INT8} to fit int8, got {layer.largest}: "
                "mid-rise levels of 8 bits become 9-bit integers; choose the mid-tread grid, or 7 bits"
            )
        if head.kind == "layer" and head["form"] == "conv_transpose":
            self._add_exact_floats(integer, layer)
        elif integer.output is None and not _is_product(head) and not self.symmetric:
            self._add_integer_convolution(integer, layer)
        else:
            self._add_fused(integer, layer)

    def _add_fused(self, integer: IntegerStage, layer: IntegerLayer) -> None:
        """``DequantizeLinear`` of input, weight and bias, the operation, and ``QuantizeLinear``."""
        graph, head, value = self.graph, integer.stage.head, integer.stage.value
        source = integer.inputs[0]
        assert source is not None
        name = head.name
        steps = graph.store(f"{name}.weight_step", layer.steps.numpy())
        zeros = graph.store(f"{name}.weight_zero", np.zeros(len(layer.steps), np.int8))
        weight = graph.node(
            "DequantizeLinear", [self._weights(head, layer), steps, zeros], f"{name}.weight/real", axis=0
        )
        parts = [weight, *self._bias(head, layer, source)]
        result = f"{value}/real" if integer.output is None else f"{value}/result"
        shape = self.program.flow.shape(head.inputs[0])
        flat = _is_product(head) and len(shape) > 1
        lone = head.kind == "norm" and len(shape) == 1
        values = self.real(head.inputs[0])
        if flat or lone:
            wanted = [-1, shape[-1]] if flat else [-1, shape[0], 1]
            values = graph.node("Reshape", [values, graph.store(f"{name}/rows", wanted, np.int64)], f"{name}/flat")
        inner = f"{value}/flat_result" if flat or lone else result
        if _is_product(head):
            graph.node("Gemm", [values, *parts], inner, transB=1)
        else:
            graph.node("Conv", [values, *parts], inner, **_window(head, shape))
        if not (flat or lone):
            if integer.output is not None:
                self._quantize(integer, inner)
            return
        back = graph.store(f"{name}/back", [-1, *head.shape], np.int64)
        if integer.output is None or self.symmetric:
            graph.node("Reshape", [inner, back], result)
            if integer.output is not None:
                self._quantize(integer, result)
            return
        self._quantize(integer, inner)
        # codes of the rows, brought back into the shape of the value
        rows = self._codes.pop(value, codes_name(value))
        self._codes[value] = graph.node("Reshape", [rows, back], f"{value}/codes/shaped")

    def _weights(self, head: Operation, layer: IntegerLayer) -> str:
        """Stored integers, in the order of ONNX."""
        weights = layer.weights.numpy()
        if head.kind == "norm":
            dims = max(1, len(head.shape) - 1)
            weights = weights.reshape(len(weights), 1, *[1] * dims)
        name = f"{head.name}.weight"
        if self.int4 and layer.largest <= LARGEST_INT4:
            packed = self.graph.store_int4(name, weights)
            return self.graph.node("Cast", [packed], f"{name}/int8", to=TensorProto.INT8)
        return self.graph.store(name, weights.astype(np.int8))

    def _bias(self, head: Operation, layer: IntegerLayer, source: ActivationQuantizer) -> list[str]:
        """Nodes that make the bias real; none where it is zero."""
        if not bool(layer.bias.any()):
            return []
        graph, name = self.graph, head.name
        if self.symmetric:
            real = layer.bias.numpy() * (np.float32(source.step) * layer.steps.numpy()).astype(np.float64)
            return [graph.store(f"{name}.bias", real.astype(np.float32))]
        stored = graph.store(f"{name}.bias", layer.bias.numpy().astype(np.int32))
        # runtimes fuse only what has exactly this step
        steps = graph.store(f"{name}.bias_step", np.float32(source.step) * layer.steps.numpy())
        zeros = graph.store(f"{name}.bias_zero", np.zeros(len(layer.steps), np.int32))
        return [graph.node("DequantizeLinear", [stored, steps, zeros], f"{name}.bias/real", axis=0)]

    def _add_integer_convolution(self, integer: IntegerStage, layer: IntegerLayer) -> None:
        """Logits of a convolution: a runtime fuses no convolution without a QuantizeLinear behind it."""
        graph, head, value = self.graph, integer.stage.head, integer.stage.value
        quantizer = integer.inputs[0]
        assert quantizer is not None
        shape = self.program.flow.shape(head.inputs[0])
        _, zero = self.scale_and_zero(quantizer)
        window = _window(head, shape)
        inputs = [self.codes(head.inputs[0]), self._weights(head, layer), zero]
        sums = graph.node("ConvInteger", inputs, f"{head.name}/sums", **window)
        rows = (1, -1, *[1] * (len(shape) - 1))
        if bool(layer.bias.any()):
            bias = graph.store(f"{head.name}.bias", layer.bias.numpy().astype(np.int32).reshape(rows))
            sums = graph.node("Add", [sums, bias], f"{head.name}/sums/biased")
        real = graph.node("Cast", [sums], f"{head.name}/sums/real", to=TensorProto.FLOAT)
        factor = graph.store(f"{head.name}.factor", layer.multiplier.numpy().reshape(rows))
        self._finish_floats(integer, graph.node("Mul", [real, factor], f"{value}/scaled"))

    def _finish_floats(self, integer: IntegerStage, scaled: str) -> None:
        stage = integer.stage
        if (stage.low, stage.high) == (None, None):
            self.graph.node("Identity", [scaled], f"{stage.value}/real")
        else:
            add_clamp(self.graph, stage.low, stage.high, scaled, f"{stage.value}/real")

    def _add_exact_floats(self, integer: IntegerStage, layer: IntegerLayer) -> None:
        """A transposed convolution, which runtimes do in float32: on integers, whose sums are exact in it."""
        graph, head, value = self.graph, integer.stage.head, integer.stage.value
        source = integer.inputs[0]
        assert source is not None
        reach = max(map(abs, _code_range(source)))
        bound = int((layer.weights.abs().flatten(1).sum(dim=1) * reach + layer.bias.abs()).max())
        if bound >= EXACT:
            raise InputError(
                f"sums of the transposed convolution {head.name!r} must stay below {EXACT}, got up to {bound}"
            )
        one = graph.store("one", 1.0, np.float32)
        _, zero = self.scale_and_zero(source)
        values = graph.node("DequantizeLinear", [self.codes(head.inputs[0]), one, zero], f"{head.name}/integers")
        stored = transposed_weights(layer, head["groups"])
        weights = graph.store(f"{head.name}.weight", stored.astype(np.int8))
        none = graph.store("int8/zero", 0, np.int8)
        weights = graph.node("DequantizeLinear", [weights, one, none], f"{head.name}.weight/real")
        sums = graph.node(
            "ConvTranspose", [values, weights], f"{head.name}/sums", strides=list(head["stride"]),
            pads=onnx_pads(head["padding"]), output_padding=list(head["output_padding"]),
            dilations=list(head["dilation"]), group=head["groups"],
        )  # fmt: skip
        rows = (1, -1, *[1] * len(head["stride"]))
        if bool(layer.bias.any()):
            bias = graph.store(f"{head.name}.bias", layer.bias.numpy().astype(np.float32).reshape(rows))
            sums = graph.node("Add", [sums, bias], f"{head.name}/sums/biased")
        factor = graph.store(f"{head.name}.factor", layer.multiplier.numpy().reshape(rows))
        scaled = graph.node("Mul", [sums, factor], f"{value}/scaled")
        if integer.output is None:
            self._finish_floats(integer, scaled)
        else:
            self._quantize(integer, scaled, step=one)


def _is_product(head: Operation) -> bool:
    return head.kind == "layer" and bool(head["form"] == "linear")


def _window(head: Operation, shape: tuple[int, ...]) -> dict[str, Any]:
    """Attributes of a convolution; a lone norm is a depthwise one of a single position."""
    if head.kind == "norm":
        return {"group": shape[0], "kernel_shape": [1] * max(1, len(shape) - 1)}
    return {
        "strides": list(head["stride"]),
        "pads": onnx_pads(head["padding"]),
        "dilations": list(head["dilation"]),
        "group": head["groups"],
    }


def transposed_weights(layer: IntegerLayer, groups: int) -> NDArray[Any]:
    """Inputs first, as ConvTranspose stores them."""
    weights = layer.weights.numpy()
    filters, inputs = weights.shape[:2]
    grouped = weights.reshape(groups, filters // groups, inputs, *weights.shape[2:])
    return np.ascontiguousarray(grouped.swapaxes(1, 2)).reshape(groups * inputs, filters // groups, *weights.shape[2:])
