"""Nodes and stored tensors of an ONNX graph while it is being built."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from slimbit.records.dataflow import Dataflow
from slimbit.records.errors import InputError

IR_VERSION = 8
IR_WITH_INT4 = 10
FIRST_OPSET, INT4_OPSET, LAST_OPSET = 13, 21, 25
BATCH = "batch"


class GraphBuilder:
    """Collects a graph; names are checked for being used once, stored tensors for being equal where shared.

    Args:
        flow: Inputs and outputs of the network.
        opset: Version of the standard operators.
    """

    def __init__(self, flow: Dataflow, *, opset: int) -> None:
        if not FIRST_OPSET <= opset <= LAST_OPSET:
            raise InputError(f"opset must be from {FIRST_OPSET} to {LAST_OPSET}, got {opset}")
        self.flow, self.opset = flow, opset
        self.nodes: list[NodeProto] = []
        self._stored: dict[str, TensorProto] = {}
        self._imports: dict[str, int] = {"": opset}

    def node(self, operator: str, inputs: Sequence[str], output: str, *, domain: str = "", **attributes: Any) -> str:
        """Add a node with one output; returns the output's name."""
        if domain:
            self._imports[domain] = 1
        self.nodes.append(helper.make_node(operator, list(inputs), [output], name=output, domain=domain, **attributes))
        return output

    def store(self, name: str, values: ArrayLike, kind: Any = None) -> str:
        """Store a tensor as raw bytes; returns its name."""
        array: NDArray[Any] = np.ascontiguousarray(np.asarray(values, dtype=kind)).reshape(np.shape(values))
        return self._keep(numpy_helper.from_array(array, name))

    def store_int4(self, name: str, values: NDArray[Any]) -> str:
        """Store integers from -8 to 7 as four bits each, the first of a pair in the low half of its byte."""
        flat = np.append(values.reshape(-1), [0] * (values.size % 2)).astype(np.int64) & 15
        packed = (flat[::2] | (flat[1::2] << 4)).astype(np.uint8)
        tensor = TensorProto(name=name, data_type=TensorProto.INT4, dims=values.shape, raw_data=packed.tobytes())
        return self._keep(tensor)

    def _keep(self, tensor: TensorProto) -> str:
        known = self._stored.setdefault(tensor.name, tensor)
        assert known.SerializeToString() == tensor.SerializeToString(), tensor.name
        return str(tensor.name)

    def _name_output(self, inner: str, outer: str) -> None:
        """Give a value the name of an output: its node's where nothing else reads it, else by an ``Identity``."""
        made_by = next((node for node in self.nodes if node.output[0] == inner), None)
        if made_by is None or any(inner in node.input for node in self.nodes):
            self.node("Identity", [inner], outer)
        else:
            made_by.output[0] = made_by.name = outer

    def model(self, *, outputs: Mapping[str, str], metadata: Mapping[str, str]) -> ModelProto:
        """The finished model, checked.

        Args:
            outputs: Name in the file of each output of the network, and the name that it is to have.
            metadata: Text that the file carries.
        """
        for inner, outer in outputs.items():
            self._name_output(inner, outer)
        inputs = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [BATCH, *shape])
            for name, shape in self.flow.inputs.items()
        ]
        results = [
            helper.make_tensor_value_info(outer, TensorProto.FLOAT, [BATCH, *self.flow.shape(value)])
            for value, outer in zip(self.flow.outputs, outputs.values(), strict=True)
        ]
        read = {name for node in self.nodes for name in node.input}
        graph = helper.make_graph(
            self.nodes, self.flow.network or "network", inputs, results,
            [tensor for name, tensor in self._stored.items() if name in read],
        )  # fmt: skip
        small = any(tensor.data_type == TensorProto.INT4 for tensor in graph.initializer)
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid(domain, version) for domain, version in self._imports.items()],
            ir_version=IR_WITH_INT4 if small else IR_VERSION,
            producer_name="slimbit",
        )
        helper.set_model_props(model, dict(metadata))
        if [*self._imports] == [""]:
            onnx.checker.check_model(model)
        return model
