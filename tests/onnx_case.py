"""Small ONNX files for tests, and an independent count of what they multiply."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import NodeProto, TensorProto, helper, numpy_helper

QONNX = "qonnx.custom_op.general"
MICROSOFT = "com.microsoft"
F = np.float32


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).normal(size=shape).astype(F)


def node(kind: str, inputs: str, output: str, domain: str = "", **attributes: object) -> NodeProto:
    """A node of one output, named after it; "-" is an input that is not given."""
    names = ["" if name == "-" else name for name in inputs.split()]
    outputs = output.split()
    return helper.make_node(kind, names, outputs, name=f"/{outputs[0]}", domain=domain, **attributes)


def model(nodes: list[NodeProto], tensors: dict[str, Any], *, opset: int = 21, **inputs: tuple) -> onnx.ModelProto:
    """A model whose outputs are the last node's, without a shape; an input is its shape, and its type if not float."""
    graph = helper.make_graph(
        nodes,
        "net",
        [_input(name, *shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in nodes[-1].output],
        [v if isinstance(v, TensorProto) else numpy_helper.from_array(np.asarray(v), k) for k, v in tensors.items()],
    )  # fmt: skip
    imports = [helper.make_opsetid("", opset)]
    imports += [helper.make_opsetid(domain, 1) for domain in sorted({n.domain for n in nodes} - {""})]
    return helper.make_model(graph, opset_imports=imports, ir_version=9)


def _input(name: str, *shape: Any) -> onnx.ValueInfoProto:
    if shape and isinstance(shape[-1], type):
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(shape[-1])), shape[:-1])
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def saved(path: Path, *arguments: Any, **inputs: Any) -> Path:
    """`model` in a file."""
    onnx.save(model(*arguments, **inputs), path)
    return path


def runtime_macs(path: Path, **feeds: np.ndarray) -> int:
    """Multiply-accumulates of convolutions and products from the shapes that ONNX Runtime computes, all of them."""
    net = onnx.load(path)
    wanted = [n for n in net.graph.node if n.op_type in {"Conv", "ConvTranspose", "Gemm", "MatMul", "FusedConv"}]
    names = dict.fromkeys(name for n in wanted for name in (*n.input[:2], n.output[0]))
    del net.graph.output[:]
    for place, name in enumerate(names):
        net.graph.node.append(helper.make_node("Shape", [name], [f"s{place}"]))
        net.graph.output.append(helper.make_tensor_value_info(f"s{place}", TensorProto.INT64, None))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(net.SerializeToString(), options, providers=["CPUExecutionProvider"])
    shapes = dict(zip(names, session.run(None, feeds), strict=True))
    total = 0
    for n in wanted:
        left, right, out = (shapes[name] for name in (*n.input[:2], n.output[0]))
        if n.op_type == "ConvTranspose":
            total += math.prod(left) * math.prod(right[1:])
        elif "Conv" in n.op_type:
            total += math.prod(out) * math.prod(right[1:])
        else:
            turned = any(a.name == "transA" and a.i for a in n.attribute)
            total += math.prod(out) * left[-2 if turned else -1]
    return total
