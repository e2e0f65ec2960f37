"""A float network, pruned or not, as an ONNX file: what exported integers are compared with in size and speed."""

from collections.abc import Mapping

import numpy as np
import torch
from onnx import ModelProto
from torch import nn

from slimbit.apply.dataflow import scale_and_shift, tensor_at
from slimbit.exchange.onnx_builder import GraphBuilder
from slimbit.exchange.onnx_moves import add_average, add_function, add_maximum, add_move, onnx_pads
from slimbit.exchange.onnx_qdq import DEFAULT_OPSET
from slimbit.records.dataflow import Dataflow, Operation


def float_model(
    network: nn.Module, flow: Dataflow, *, opset: int = DEFAULT_OPSET, metadata: Mapping[str, str] | None = None
) -> ModelProto:
    """The ONNX model of a network in float32, operation by operation; BatchNorms stay nodes of their own.

    Args:
        network: In evaluation mode, or compressed with float activations: weights are stored as the floats they are.
        flow: What it computes.
        opset: Version of the operators.
        metadata: Text that the file carries.

    Returns:
        The model, with a dynamic batch and the network's own names for values and parameters.
    """
    graph = GraphBuilder(flow, opset=opset)
    names = {name: name for name in flow.inputs}
    for operation in flow:
        sources = [names[value] for value in operation.inputs]
        names[operation.name] = _add(graph, network, flow, operation, sources)
    keys = flow.output_keys or tuple(f"output{place}" if place else "output" for place in range(len(flow.outputs)))
    outputs = {names[value]: key for value, key in zip(flow.outputs, keys, strict=True)}
    return graph.model(outputs=outputs, metadata=metadata or {})


def _add(graph: GraphBuilder, network: nn.Module, flow: Dataflow, operation: Operation, sources: list[str]) -> str:  # noqa: PLR0911 - one per kind
    output = f"{operation.name}/value"
    match operation.kind:
        case "layer":
            return _add_layer(graph, network, operation, sources[0], output)
        case "norm":
            return _add_norm(graph, network, operation, sources[0], output)
        case "add":
            return graph.node("Add", sources, output)
        case "multiply":
            return graph.node("Mul", sources, output)
        case "concat":
            return graph.node("Concat", sources, output, axis=operation["axis"])
        case "average":
            return add_average(graph, operation, sources[0], output, flow.shape(operation.inputs[0]))
        case "maximum":
            return add_maximum(graph, operation, sources[0], output)
        case "function":
            return add_function(graph, operation, sources[0], output)
        case "move":
            return add_move(graph, operation, sources[0], output)


def _stored(graph: GraphBuilder, network: nn.Module, key: str, *, transposed: bool = False) -> str:
    tensor = tensor_at(network, key).detach().cpu().float()
    return graph.store(f"{key}/transposed" if transposed else key, (tensor.T if transposed else tensor).numpy())


def _add_layer(graph: GraphBuilder, network: nn.Module, layer: Operation, source: str, output: str) -> str:
    bias = [_stored(graph, network, layer["bias"])] if layer["bias"] else []
    if layer["form"] == "linear" and len(layer.shape) == 1:
        return graph.node("Gemm", [source, _stored(graph, network, layer["weight"]), *bias], output, transB=1)
    if layer["form"] == "linear":
        weight = _stored(graph, network, layer["weight"], transposed=True)
        product = graph.node("MatMul", [source, weight], f"{output}/product" if bias else output)
        return graph.node("Add", [product, *bias], output) if bias else product
    inputs = [source, _stored(graph, network, layer["weight"]), *bias]
    window = {
        "strides": list(layer["stride"]), "pads": onnx_pads(layer["padding"]), "dilations": list(layer["dilation"]),
        "group": layer["groups"],
    }  # fmt: skip
    if layer["form"] == "conv_transpose":
        return graph.node("ConvTranspose", inputs, output, output_padding=list(layer["output_padding"]), **window)
    return graph.node("Conv", inputs, output, **window)


def _add_norm(graph: GraphBuilder, network: nn.Module, norm: Operation, source: str, output: str) -> str:
    if "scale" in norm.settings:
        scale, shift = scale_and_shift(network, norm)
        rows = (1, -1, *[1] * (len(norm.shape) - 1)) if scale.numel() > 1 else ()
        names = [
            graph.store(f"{output}/{key}", values.float().numpy().reshape(rows))
            for key, values in (("scale", scale), ("shift", shift))
        ]
        return graph.node("Add", [graph.node("Mul", [source, names[0]], f"{output}/scaled"), names[1]], output)
    channels = norm.shape[0]
    plain = {"weight": torch.ones(channels), "bias": torch.zeros(channels)}
    inputs = [
        _stored(graph, network, norm[key])
        if norm[key]
        else graph.store(f"{output}/{key}", plain[key].numpy(), np.float32)
        for key in ("weight", "bias", "mean", "variance")
    ]
    return graph.node("BatchNormalization", [source, *inputs], output, epsilon=norm["eps"])
