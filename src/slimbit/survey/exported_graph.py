"""Reads the graph of an exported program: which operations multiply which parameters, and how often."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils.flop_counter import FlopCounterMode

from slimbit.numerics.grid import filters_first
from slimbit.records.errors import InputError
from slimbit.records.network import LayerKind, OtherParameter
from slimbit.survey.collect import LayerCollector, WeightUse, module_name
from slimbit.survey.result import Survey

_CONVOLUTIONS = frozenset(
    ["convolution", "_convolution", *(f"conv{t}{n}d" for t in ("", "_transpose") for n in (1, 2, 3))]
)
_RIGHT_AND_LEFT = {
    "mm": ("mat2", "self"),
    "bmm": ("mat2", "self"),
    "matmul": ("other", "self"),
    "addmm": ("mat2", "mat1"),
    "baddbmm": ("batch2", "batch1"),
}
"""Which arguments a matrix product multiplies; either may be the weight."""
_ATTENTION = frozenset(
    f"{prefix}scaled_dot_product_{kind}attention"
    for prefix, kind in (("", ""), ("_", "efficient_"), ("_", "flash_"), ("_", "cudnn_"))
)
_OTHER_PRODUCTS = frozenset(
    ["einsum", "tensordot", "inner", "chain_matmul", "linalg_multi_dot", "_scaled_mm",
     "lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"]
)  # fmt: skip
_MULTIPLYING = _CONVOLUTIONS | {"linear"} | _RIGHT_AND_LEFT.keys() | _ATTENTION | _OTHER_PRODUCTS


@dataclass(frozen=True)
class _Constant:
    """A value that depends on stored tensors only.

    Attributes:
        key: Expression that makes it; equal expressions are equal values.
        roots: Names of the tensors it is made of.
        read: Computes it.
    """

    key: str
    roots: tuple[str, ...]
    read: Callable[[], Any]


class GraphReader:
    """Walks the graph once and collects layers."""

    def __init__(self, program: ExportedProgram, *, batch: int | None = None) -> None:
        self._program = program
        self._stored: dict[str, Tensor] = {**program.constants, **program.state_dict}
        self._parameters = set(program.graph_signature.parameters)
        self._constants: dict[fx.Node, _Constant] = {}
        self._owners: dict[str, str] = {}
        self._used: set[str] = set()
        self._notes: list[str] = []
        self._batch_symbols: dict[Any, int] = {}
        self._inputs: list[tuple[int, ...]] = []
        self._bind_inputs()
        self._layers = LayerCollector(self._batch() if batch is None else batch)

    def survey(self, name: str) -> Survey:
        """The survey of the program; ``name`` names the network."""
        self._walk(self._program.graph)
        places = {_place(self._stored[key]) for key in self._used}  # tied parameters keep all their names
        others = [
            OtherParameter(key, self._stored[key].numel(), self._owners.get(key, "unused"))
            for key in self._program.graph_signature.parameters
            if key not in self._used and _place(self._stored[key]) not in places
        ]
        return self._layers.survey(name, others, notes=self._notes, inputs=self._inputs)

    def _bind_inputs(self) -> None:
        """Binds stored tensors to their graph inputs, and open first dimensions to 1."""
        specs = self._program.graph_signature.input_specs
        for node, spec in zip(self._program.graph.find_nodes(op="placeholder"), specs, strict=True):
            if spec.kind is not InputKind.USER_INPUT:
                self._bind(node, spec.target)
            elif isinstance(node.meta.get("val"), Tensor):
                first = node.meta["val"].shape[0] if node.meta["val"].ndim > 1 else 1
                if isinstance(first, torch.SymInt) and first.node.expr.is_Symbol:
                    self._batch_symbols[first.node.expr] = 1
                self._inputs.append(self._shape(node))

    def _batch(self) -> int:
        """The size that first dimensions of inputs, outputs and convolutions have in common, or else 1, with a note."""
        sizes = {shape[0] for shape in self._inputs if shape}
        largest = max(self._inputs, key=math.prod, default=())
        if sizes <= {1} or largest[:1] == (1,):
            return 1
        images = {self._images(node) for node in self._program.graph.nodes if _multiplies(node, _CONVOLUTIONS)}
        (output,) = self._program.graph.find_nodes(op="output")
        outputs = [self._shape(n) for n in output.all_input_nodes if isinstance(n.meta.get("val"), Tensor)]
        first = {shape[0] for shape in outputs if shape}
        for size in sizes:
            if first == {size} and not any(n % size for n in images):
                self._notes.append(
                    f"The first dimension of the inputs, {size}, is counted as the batch, because every output has it: "
                    "say how many images there are (batch) if it is not."
                )
                return size
        shown = ", ".join("x".join(map(str, shape)) for shape in self._inputs)
        self._notes.append(
            f"No dimension of the inputs ({shown}) was found to be the batch, so the counts are those of the whole "
            "input: say how many images it holds (batch)."
        )
        return 1

    def _images(self, node: fx.Node) -> int:
        bound = _bound(node)
        shape = self._shape(bound["input"])
        return shape[0] if len(shape) == len(self._shape(bound["weight"])) else 1

    def _bind(self, node: fx.Node, key: str | None) -> None:
        if key is not None and isinstance(self._stored.get(key), Tensor):
            self._constants[node] = _Constant(key, (key,), lambda: self._stored[key])

    def _walk(self, graph: fx.Graph) -> None:
        for node in graph.nodes:
            if node.op != "call_function":
                continue
            self._note_owners(node)
            if isinstance(node.target, torch._ops.HigherOrderOperator):
                self._enter(node)
            elif node.all_input_nodes and all(source in self._constants for source in node.all_input_nodes):
                self._constants[node] = self._expression(node)
            elif isinstance(node.target, torch._ops.OpOverload):
                self._operation(node, _operation_name(node))

    def _note_owners(self, node: fx.Node) -> None:
        modules = [kind for _, kind in (node.meta.get("nn_module_stack") or {}).values()]
        owner = str(modules[-1]).rpartition(".")[2] if modules else "parameter"
        for source in node.all_input_nodes:
            for root in self._constants[source].roots if source in self._constants else ():
                self._owners.setdefault(root, owner)

    def _enter(self, node: fx.Node) -> None:
        """Walks into a region that runs once (no_grad, autocast); a branch or loop is only noted."""
        bodies = [value for value in node.all_input_nodes if isinstance(_attribute(value), fx.GraphModule)]
        if len(bodies) != 1:
            self._notes.append(f"{node.name} ({node.target}) runs as often as values say; nothing in it is counted")
            return
        operands = node.args[node.args.index(bodies[0]) + 1 :]
        body: fx.GraphModule = _attribute(bodies[0])
        for inner, outer in zip(body.graph.find_nodes(op="placeholder"), operands, strict=True):
            if isinstance(outer, fx.Node) and outer in self._constants:
                self._constants[inner] = self._constants[outer]
        self._walk(body.graph)

    def _expression(self, node: fx.Node) -> _Constant:
        sources = node.all_input_nodes
        roots = tuple(dict.fromkeys(root for source in sources for root in self._constants[source].roots))
        spelled = fx.map_arg((node.args, node.kwargs), lambda source: self._constants[source].key)

        def read() -> Any:
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: self._constants[source].read())
            assert callable(node.target)
            return node.target(*args, **kwargs)

        return _Constant(f"{node.target}{spelled}", roots, read)

    def _operation(self, node: fx.Node, operation: str) -> None:
        bound = _bound(node)
        if operation in {"embedding", "embedding_bag"} and bound["weight"] in self._constants:
            self._add(node, "embedding", bound, "weight", 0)
        elif operation == "bilinear" and bound["weight"] in self._constants:
            positions = math.prod(self._shape(node)[:-1])  # the library has no formula for it
            self._add(node, "bilinear", bound, "weight", positions * math.prod(self._shape(bound["weight"])))
        elif operation in _MULTIPLYING:
            macs = self._macs(node)
            weight = self._weight_argument(operation, bound)
            if weight:
                kind = _kind(operation, bound, len(self._shape(bound[weight])))
                self._add(node, kind, bound, weight, macs)
            else:
                constants = [self._constants[n] for n in node.all_input_nodes if n in self._constants]
                roots = [root for constant in constants for root in constant.roots]
                self._layers.add_other(_module_path(node), operation, macs, tuple(dict.fromkeys(roots)))

    def _weight_argument(self, operation: str, bound: dict[str, Any]) -> str:
        """Name of the argument that is a weight ("" = none)."""
        if operation in _CONVOLUTIONS or operation == "linear":
            return "weight" if bound["weight"] in self._constants else ""
        # a buffer in a plain product (a mask, a table of frequencies) is not a weight
        sides = _RIGHT_AND_LEFT.get(operation, ())
        return next((side for side in sides if self._has_parameter(bound[side])), "")

    def _has_parameter(self, node: fx.Node) -> bool:
        return node in self._constants and not self._parameters.isdisjoint(self._constants[node].roots)

    def _add(self, node: fx.Node, kind: LayerKind, bound: dict[str, Any], argument: str, macs: int) -> None:
        source: fx.Node = bound[argument]
        constant = self._constants[source]
        transposed = kind.startswith("conv_transpose")
        groups = int(bound.get("groups", 1)) if kind.startswith("conv") else 1
        arrange = _arrangement(argument, transposed=transposed, groups=groups)
        shape = self._shape(source)
        # a lowered matmul repeats its weight for every image, without storing it more than once
        repeated = len(shape) == 3 and source.meta["val"].stride(0) == 0
        shape = shape[1:] if repeated else shape

        def read() -> Tensor:
            with torch.no_grad():
                weight: Tensor = constant.read().detach()
            return arrange(weight[0] if repeated else weight)

        if 0 in shape:
            raise InputError(f"layer {self._name(node, constant)!r} must have weights, got shape {shape}")
        bias = bound.get("self" if argument in {"mat1", "mat2", "batch1", "batch2"} else "bias")
        self._used.update(constant.roots)
        self._layers.add(
            WeightUse(
                name=self._name(node, constant),
                kind=kind,
                tensor=constant.roots[0],
                tensor_elements=self._stored[constant.roots[0]].numel(),
                identity=f"{kind} {constant.key} {argument == 'weight'} {groups}",
                shape=tuple(arrange(torch.empty(shape, device="meta")).shape),
                macs=macs,
                read=read,
                groups=groups,
                transposed=transposed,
                bias_parameters=self._bias(bias),
            )
        )

    def _bias(self, bias: Any) -> int:
        if not isinstance(bias, fx.Node) or not self._has_parameter(bias):
            return 0
        self._used.update(self._constants[bias].roots)
        return math.prod(self._shape(bias))

    def _name(self, node: fx.Node, constant: _Constant) -> str:
        path = _module_path(node)
        if len(constant.roots) > 1 or f"{path}.weight" in self._parameters:
            return path or node.name
        return module_name(constant.roots[0])

    def _macs(self, node: fx.Node) -> int:
        """MACs of an operation by the formulas of `torch.utils.flop_counter`, on shapes alone."""
        args, kwargs = fx.map_arg((node.args, node.kwargs), self._on_meta)
        assert callable(node.target)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            node.target(*args, **kwargs)
        return int(counter.get_total_flops()) // 2

    def _on_meta(self, node: fx.Node) -> Any:
        value = node.meta["val"]
        if isinstance(value, Tensor):
            return torch.empty(self._shape(node), dtype=value.dtype, device="meta")
        return self._size(value) if isinstance(value, torch.SymInt) else value

    def _shape(self, node: fx.Node) -> tuple[int, ...]:
        return tuple(self._size(size) for size in node.meta["val"].shape)

    def _size(self, size: int | torch.SymInt) -> int:
        if not isinstance(size, torch.SymInt):
            return size
        value = size.node.expr.subs(self._batch_symbols)
        if not value.is_Integer:
            raise InputError(
                f"every dimension but the batch must be fixed to count per image, got {size.node.expr}; "
                "export without dynamic_shapes for it"
            )
        return int(value)


def _place(tensor: Tensor) -> tuple[int, torch.Size]:
    return tensor.data_ptr(), tensor.shape


def _operation_name(node: fx.Node) -> str:
    target = node.target
    assert isinstance(target, torch._ops.OpOverload)
    return target._opname if target.namespace == "aten" else ""


def _bound(node: fx.Node) -> dict[str, Any]:
    """Arguments by the names in the operation's schema, defaults filled in."""
    assert isinstance(node.target, torch._ops.OpOverload)
    arguments = node.target._schema.arguments
    given = dict(zip((argument.name for argument in arguments), node.args, strict=False))
    return {argument.name: argument.default_value for argument in arguments} | given | dict(node.kwargs)


def _multiplies(node: fx.Node, operations: frozenset[str]) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and _operation_name(node) in operations


def _attribute(node: fx.Node) -> Any:
    if node.op != "get_attr":
        return None
    return getattr(node.graph.owning_module, str(node.target), None)


def _module_path(node: fx.Node) -> str:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack else ""


def _kind(operation: str, bound: dict[str, Any], dimensions: int) -> LayerKind:
    if operation not in _CONVOLUTIONS:
        return "linear"
    kinds: dict[tuple[bool, int], LayerKind] = {
        (False, 3): "conv1d", (False, 4): "conv2d", (False, 5): "conv3d",
        (True, 3): "conv_transpose1d", (True, 4): "conv_transpose2d", (True, 5): "conv_transpose3d",
    }  # fmt: skip
    return kinds["transpose" in operation or bool(bound.get("transposed")), dimensions]


def _arrangement(argument: str, *, transposed: bool, groups: int) -> Callable[[Tensor], Tensor]:
    """How to bring a weight that stands at ``argument`` into filters-first order."""
    if argument in {"mat1", "self", "batch1"}:  # weight @ inputs
        return lambda weight: weight.reshape(-1, weight.shape[-1])
    if argument in {"mat2", "other", "batch2"}:  # inputs @ weight
        return lambda weight: weight.mT.reshape(-1, weight.shape[-2]) if weight.ndim > 1 else weight[None]
    return lambda weight: filters_first(weight, transposed=transposed, groups=groups)
