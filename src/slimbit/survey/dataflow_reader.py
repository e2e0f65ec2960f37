"""Walks an exported graph once and writes down its operations, each by its rule in `slimbit.survey.dataflow_rules`."""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from slimbit.records.dataflow import Dataflow, Operation, OperationKind
from slimbit.records.errors import InputError
from slimbit.survey.channel_operation import arguments

BATCH = 3
"""Images in the example; a dimension of that size in front is the batch."""

Rule = Callable[["FlowReader", fx.Node, dict[str, Any]], None]
_RULES: dict[str, Rule] = {}


def handles(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operations by torch's name, without namespace and the underscore of in-place forms."""

    def register(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(names, rule))
        return rule

    return register


class FlowReader:
    """Walks an exported graph once; values and constants by node.

    Attributes:
        modules: Of the network, by path.
        values: Value name of each node, several where it makes several.
        constants: Tensors that depend on stored ones only.
        keys: State-dict key of nodes that are a stored tensor as it is.
    """

    def __init__(self, program: ExportedProgram, network: nn.Module) -> None:
        self.modules = dict(network.named_modules())
        self.values: dict[fx.Node, Any] = {}
        self.constants: dict[fx.Node, Tensor] = {}
        self.keys: dict[fx.Node, str] = {}
        self._program = program
        self._inputs: dict[str, tuple[int, ...]] = {}
        self._operations: dict[str, Operation] = {}

    def read(self, network: str) -> Dataflow:
        """The dataflow; ``network`` names the network."""
        stored = {**self._program.constants, **self._program.state_dict}
        specs = self._program.graph_signature.input_specs
        for node, spec in zip(self._program.graph.find_nodes(op="placeholder"), specs, strict=True):
            if spec.kind is InputKind.USER_INPUT:
                self.values[node] = node.name
                self._inputs[node.name] = self._shape(node)
            elif isinstance(stored.get(spec.target or ""), Tensor):
                self.constants[node], self.keys[node] = stored[str(spec.target)].detach(), str(spec.target)
        for node in self._program.graph.nodes:
            if node.op == "call_function":
                self._visit(node)
        outputs = self._program.graph.output_node().args[0]
        assert isinstance(outputs, tuple)
        kept = [node for node in outputs if isinstance(node, fx.Node)]
        for node in kept:
            if not isinstance(self.values.get(node), str):
                raise InputError(f"outputs of {network} must depend on its input, got {node.name}")
        keys, single = self._form(network)
        return Dataflow(
            network=network,
            inputs=self._inputs,
            operations=tuple(self._operations.values()),
            outputs=tuple(self.values[node] for node in kept),
            output_keys=keys,
            single_output=single,
        )

    def _form(self, network: str) -> tuple[tuple[str, ...] | None, bool]:
        """Keys of the outputs where they are a dict, and whether they are one tensor."""
        spec = self._program.call_spec.out_spec
        assert spec is not None
        if spec.is_leaf():
            return None, True
        if not all(child.is_leaf() for child in spec.children()):
            raise InputError(f"outputs of {network} must be a tensor, a tuple or a dict of tensors, got {spec}")
        if spec.type is dict:
            return tuple(map(str, spec.context)), False
        if spec.type in (tuple, list):
            return None, False
        raise InputError(f"outputs of {network} must be a tensor, a tuple or a dict, got {spec.type.__name__}")

    def _visit(self, node: fx.Node) -> None:
        if node.target is operator.getitem:
            source, place = node.args
            assert isinstance(source, fx.Node)
            if source in self.values:
                self.values[node] = self.values[source][place]
            return
        sources = node.all_input_nodes
        if isinstance(node.target, torch._ops.OpOverload) and all(source in self.constants for source in sources):
            self.constants[node] = self._computed(node)
            return
        rule = _RULES.get(operation_name(node))
        if rule is None:
            if not node.users:
                return  # an assertion
            raise self.refusal(node)
        rule(self, node, arguments(node.target, node.args, node.kwargs))

    def _computed(self, node: fx.Node) -> Tensor:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: self.constants[source])
        assert callable(node.target)
        with torch.no_grad():
            value: Tensor = node.target(*args, **kwargs)
        return value

    def refusal(self, node: fx.Node, why: str = "has no integer form") -> InputError:
        """The sentence for an operation that cannot be read."""
        opname = operation_name(node)
        where = f" of module {path!r}" if (path := module_path(node)) else ""
        return InputError(
            f"activations must be found between operations that integers can do, got {opname}{where}, which {why}; "
            "without activation bits its weights can be quantized"
        )

    def value(self, node: Any, reader: fx.Node) -> str:
        """Name of the one value that an argument is."""
        name = self.values.get(node) if isinstance(node, fx.Node) else None
        if not isinstance(name, str):
            raise self.refusal(reader, "combines values with constants in a way that has no integer form")
        return name

    def add(
        self,
        node: fx.Node,
        kind: OperationKind,
        inputs: list[str],
        *,
        part: str = "",
        module: str = "",
        **settings: Any,
    ) -> str:
        """Add an operation; its value is the node's unless ``part`` names one of several."""
        shape = self._shape(node) if not part else settings.pop("shape")
        name = self._name(node, part)
        self._operations[name] = Operation(
            name=name, kind=kind, inputs=tuple(inputs), shape=shape, module=module, settings=settings
        )
        if not part:
            self.values[node] = name
        return name

    def _name(self, node: fx.Node, part: str) -> str:
        path = module_path(node)
        leaf = not part and path and not any(True for _ in self.modules[path].children())
        name = path if leaf else ".".join(filter(None, (path, operation_name(node).strip("_"), part)))
        count = sum(1 for known in (*self._operations, *self._inputs) if known == name or known.startswith(f"{name}#"))
        return f"{name}#{count + 1}" if count else name

    def _shape(self, node: fx.Node) -> tuple[int, ...]:
        value = node.meta["val"]
        value = value[0] if isinstance(value, tuple | list) else value
        if not isinstance(value, Tensor) or value.ndim < 2 or value.shape[0] != BATCH:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise InputError(
                f"values between operations must have the batch as their first dimension, got {got} at {node.name}"
                f" for a batch of {BATCH}"
            )
        return tuple(map(int, value.shape[1:]))


def operation_name(node: fx.Node) -> str:
    """Torch's name of an operation, without namespace and the underscore of in-place forms."""
    name = node.target._opname if isinstance(node.target, torch._ops.OpOverload) else str(node.target)
    return name if name.endswith("__") else name.removesuffix("_")


def module_path(node: fx.Node) -> str:
    """Path of the innermost module in which an operation runs."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]).split("@")[0] if stack else ""
