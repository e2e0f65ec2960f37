"""An `IntegerProgram` as a QONNX file for FPGA flows (FINN, hls4ml): ``Quant`` nodes with widths of any number of bits.

All values between layers are integers carried in floats (scale 1, zero point 0), so that float arithmetic is exact
and tools see integer types: weights are ``Quant`` of whole numbers with one width per layer, that of its largest
filter. The bias of a layer's sums, and what they are multiplied by before they are rounded, are a
``BatchNormalization`` each where values have channels: FPGA flows know how to bring these to channels last, which they
do not for a ``Mul`` or ``Add`` of one number per channel (hls4ml 1.3 stops at them), and with mean 0, variance 1 and
epsilon 0 it is exact.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from slimbit.apply.integers import EXACT, IntegerLayer, IntegerProgram, IntegerStage
from slimbit.exchange.contents import contents_of
from slimbit.exchange.onnx_builder import GraphBuilder
from slimbit.exchange.onnx_moves import add_average, add_clamp, add_function, add_maximum, add_move, onnx_pads
from slimbit.numerics.requantize import clamped_codes, codes_of
from slimbit.records.activations import ActivationQuantizer
from slimbit.records.dataflow import Operation
from slimbit.records.errors import InputError
from slimbit.survey.onnx_contents import CONTENTS

DOMAIN = "qonnx.custom_op.general"
QONNX_OPSET = 13


def qonnx_model(program: IntegerProgram, *, metadata: Mapping[str, str] | None = None) -> ModelProto:
    """The QONNX model of a compressed network.

    Args:
        program: Its integers.
        metadata: Text that the file carries.

    Returns:
        The model; inputs and outputs are real numbers, as those of the float network.

    Raises:
        InputError: A zero point that is not 0 (QONNX tools count such values as floats), or sums that are not exact in
            float32.
    """
    for quantizer in program.quantizers.values():
        if quantizer.zero_point:
            raise InputError(
                f"zero point of {quantizer.value!r} must be 0 in a QONNX file, got {quantizer.zero_point}: tools count "
                "other values as floats"
            )
    graph = GraphBuilder(program.flow, opset=QONNX_OPSET)
    writer = _Writer(graph, program)
    for name in program.flow.inputs:
        quantizer = program.quantizers[name]
        scaled = graph.node("Div", [name, graph.store(f"{name}/step", quantizer.step, np.float32)], f"{name}/scaled")
        writer.round(scaled, name, quantizer, *codes_of(quantizer))
    for stage in program.stages:
        writer.add(stage)
    keys = program.flow.output_keys
    names = keys or tuple(f"output{place}" if place else "output" for place in range(len(program.flow.outputs)))
    outputs = {writer.real(value): name for value, name in zip(program.flow.outputs, names, strict=True)}
    return graph.model(outputs=outputs, metadata={**(metadata or {}), CONTENTS: contents_of(program)})


def weight_width(layer: IntegerLayer) -> int:
    """Bits that hold the layer's largest integer and its negative.

    >>> import torch
    >>> zeros = torch.zeros(1)
    >>> weight_width(IntegerLayer(torch.tensor([[7, -7]]), zeros, zeros, zeros))
    4
    """
    return max(1, layer.largest.bit_length()) + 1


class _Writer:
    """Adds stages to a graph; the value ``name/codes`` holds integers."""

    def __init__(self, graph: GraphBuilder, program: IntegerProgram) -> None:
        self.graph, self.program = graph, program

    def round(self, source: str, value: str, quantizer: ActivationQuantizer, low: int, high: int) -> str:
        """A ``Quant`` of scale 1; a Clip before it where a clamp is narrower than its width."""
        if (low, high) != codes_of(quantizer):
            bounds = [
                self.graph.store(f"{value}/{key}", bound, np.float32) for key, bound in (("low", low), ("high", high))
            ]
            source = self.graph.node("Clip", [source, *bounds], f"{value}/clipped")
        return self._quant(source, f"{value}/codes", quantizer.bits, signed=quantizer.signed, narrow=False)

    def _quant(self, source: str, output: str, bits: int, *, signed: bool, narrow: bool) -> str:
        graph = self.graph
        settings = [
            graph.store("quant/scale", 1.0, np.float32),
            graph.store("quant/zero", 0.0, np.float32),
            graph.store(f"quant/bits{bits}", float(bits), np.float32),
        ]
        return graph.node(
            "Quant", [source, *settings], output, domain=DOMAIN, signed=int(signed), narrow=int(narrow),
            rounding_mode="ROUND",
        )  # fmt: skip

    def real(self, value: str) -> str:
        """Real numbers of a value."""
        quantizer = self.program.quantizers.get(value)
        if quantizer is None:
            return f"{value}/real"
        step = self.graph.store(f"{value}/output_step", quantizer.step, np.float32)
        return self.graph.node("Mul", [f"{value}/codes", step], f"{value}/real")

    def add(self, integer: IntegerStage) -> None:
        """One stage."""
        stage, head, graph = integer.stage, integer.stage.head, self.graph
        value = stage.value
        sources = [f"{name}/codes" for name in head.inputs]
        if integer.output is None and head.kind != "layer":
            self._add_tail(integer)
            return
        if stage.is_transparent:
            if head.kind == "concat":
                graph.node("Concat", sources, f"{value}/codes", axis=head["axis"])
            elif head.kind == "maximum":
                add_maximum(graph, head, sources[0], f"{value}/codes")
            else:
                add_move(graph, head, sources[0], f"{value}/codes")
            return
        if integer.layer is not None:
            self._add_layer(integer, integer.layer)
            return
        output = integer.output
        assert output is not None
        inputs = [x for x in integer.inputs if x is not None]
        self.round(self._combined(head, value, sources, inputs, output), value, output, *clamped_codes(stage, output))

    def _combined(
        self,
        head: Operation,
        value: str,
        sources: list[str],
        inputs: list[ActivationQuantizer],
        output: ActivationQuantizer,
    ) -> str:
        """The result in steps of the output, before it is rounded."""
        graph = self.graph

        def times(source: str, factor: float, name: str) -> str:
            return graph.node("Mul", [source, graph.store(f"{name}/factor", factor, np.float32)], name)

        ratios = [quantizer.step / output.step for quantizer in inputs]
        if head.kind == "add":
            parts = [times(s, r, f"{value}/term{k}") for k, (s, r) in enumerate(zip(sources, ratios, strict=True))]
            return graph.node("Add", parts, f"{value}/result")
        if head.kind == "multiply":
            return times(graph.node("Mul", sources, f"{value}/product"), ratios[0] * inputs[1].step, f"{value}/result")
        if head.kind == "average":
            shape = self.program.flow.shape(head.inputs[0])
            return times(add_average(graph, head, sources[0], f"{value}/mean", shape), ratios[0], f"{value}/result")
        real = times(sources[0], inputs[0].step, f"{value}/argument")
        found = real if head["function"] == "clamp" else add_function(graph, head, real, f"{value}/function")
        return times(found, 1 / output.step, f"{value}/result")

    def _add_tail(self, integer: IntegerStage) -> None:
        head, value = integer.stage.head, integer.stage.value
        source, output = self.real(head.inputs[0]), f"{value}/real"
        if head.kind == "move":
            add_move(self.graph, head, source, output)
        elif head["function"] == "clamp":
            add_clamp(self.graph, integer.stage.low, integer.stage.high, source, output)
        else:
            add_function(self.graph, head, source, output)

    def _add_layer(self, integer: IntegerStage, layer: IntegerLayer) -> None:
        graph, stage, head = self.graph, integer.stage, integer.stage.head
        source = integer.inputs[0]
        assert source is not None
        reach = max(map(abs, codes_of(source)))
        bound = int((layer.weights.abs().flatten(1).sum(dim=1) * reach + layer.bias.abs()).max())
        if bound >= EXACT:
            raise InputError(
                f"sums of layer {head.name!r} must stay below {EXACT} to be exact in floats, got up to {bound}"
            )
        value, codes = stage.value, f"{head.inputs[0]}/codes"
        weights = layer.weights.numpy().astype(np.float32)
        if head.kind == "norm":
            sums = self._per_channel(
                "Mul", head, codes, f"{head.name}.weight", weights.reshape(-1), f"{head.name}/sums"
            )
        else:
            sums = self._product(head, codes, weights, layer)
        if bool(layer.bias.any()):
            bias = layer.bias.numpy().astype(np.float32)
            sums = self._per_channel("Add", head, sums, f"{head.name}.bias", bias, f"{head.name}/sums/biased")
        result = (
            f"{value}/real" if integer.output is None and (stage.low, stage.high) == (None, None) else f"{value}/result"
        )
        self._per_channel("Mul", head, sums, f"{head.name}.factor", layer.multiplier.numpy(), result)
        if integer.output is not None:
            self.round(result, value, integer.output, *clamped_codes(stage, integer.output))
        elif result != f"{value}/real":
            add_clamp(graph, stage.low, stage.high, result, f"{value}/real")

    def _per_channel(
        self, operator: str, head: Operation, source: str, name: str, values: NDArray[Any], output: str
    ) -> str:
        """``Mul`` or ``Add`` of one number per filter; see the top of the file."""
        graph, count = self.graph, len(values)
        if head.kind == "layer" and head["form"] == "linear":
            return graph.node(operator, [source, graph.store(name, values)], output)
        zeros = graph.store(f"zeros{count}", np.zeros(count, np.float32))
        ones = graph.store(f"ones{count}", np.ones(count, np.float32))
        given = graph.store(name, values)
        scale, shift = (given, zeros) if operator == "Mul" else (ones, given)
        return graph.node("BatchNormalization", [source, scale, shift, zeros, ones], output, epsilon=0.0)

    def _product(self, head: Operation, codes: str, weights: NDArray[Any], layer: IntegerLayer) -> str:
        graph, name = self.graph, head.name
        bits = weight_width(layer)
        if head["form"] == "linear":
            stored = graph.store(f"{name}.weight", np.ascontiguousarray(weights.T))
            quantized = self._quant(stored, f"{name}.weight/quant", bits, signed=True, narrow=True)
            return graph.node("MatMul", [codes, quantized], f"{name}/sums")
        window = {
            "strides": list(head["stride"]), "pads": onnx_pads(head["padding"]), "dilations": list(head["dilation"]),
            "group": head["groups"], "kernel_shape": list(weights.shape[2:]),
        }  # fmt: skip
        if head["form"] == "conv_transpose":
            from slimbit.exchange.onnx_qdq import transposed_weights

            weights = transposed_weights(layer, head["groups"]).astype(np.float32)
            window["output_padding"] = list(head["output_padding"])
        stored = graph.store(f"{name}.weight", weights)
        quantized = self._quant(stored, f"{name}.weight/quant", bits, signed=True, narrow=True)
        operator = "ConvTranspose" if head["form"] == "conv_transpose" else "Conv"
        return graph.node(operator, [codes, quantized], f"{name}/sums", **window)
