"""What each operation of an exported graph is in a `Dataflow`; one rule per family of operations.

Settings by kind (pairs are low and high, per dimension):

======== ==================================================================================================
layer    form "conv", "conv_transpose" or "linear"; weight, bias (state-dict keys, "" = none); stride,
         padding, dilation, output_padding, groups
norm     weight, bias, mean, variance (keys), eps; or scale, shift (numbers, one or one per channel)
concat   axis
average  kernel, stride, padding; averages include the padding
maximum  kernel, stride, padding, dilation, ceil
function function, arguments (numbers); "clamp" has low and high, either may be None
move     move "reshape", "permute" (axes), "slice" (axis, start, stop, step), "pad" (amounts), "nearest" (factors),
         "pixel_shuffle" (factor)
======== ==================================================================================================

To add an operation, write a rule and decorate it with torch's names of it.
"""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

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


def _rank(node: fx.Node) -> int:
    rank: int = node.meta["val"].ndim
    return rank


@handles("conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _convolution(reader: FlowReader, node: fx.Node, given: dict[str, Any]) -> None:
    weight, dims = given["weight"], _rank(node) - 2
    key = _weight_key(reader, node, weight)
    transposed = "transpose" in operation_name(node) or bool(given.get("transposed"))
    source, path = given["input"], module_path(node)
    module = reader.modules.get(path)
    padding = _padding(given["padding"], given["dilation"], tuple(weight.meta["val"].shape[2:]), dims)
    own = isinstance(module, _ConvNd) and key == f"{path}.weight".lstrip(".") and module.padding_mode == "zeros"
    reader.add(
        node, "layer", [reader.value(source, node)], module=path if own else "",
        form="conv_transpose" if transposed else "conv", weight=key, bias=_bias_key(reader, node, given["bias"]),
        stride=_each(given["stride"], dims), padding=padding, dilation=_each(given["dilation"], dims),
        output_padding=_each(given.get("output_padding", 0), dims), groups=int(given["groups"]),
    )  # fmt: skip


@handles("linear")
def _linear(reader: FlowReader, node: fx.Node, given: dict[str, Any]) -> None:
    key, path = _weight_key(reader, node, given["weight"]), module_path(node)
    own = type(reader.modules.get(path)) is nn.Linear and key == f"{path}.weight".lstrip(".")
    reader.add(
        node, "layer", [reader.value(given["input"], node)], module=path if own else "",
        form="linear", weight=key, bias=_bias_key(reader, node, given["bias"]), stride=(), padding=(), dilation=(),
        output_padding=(), groups=1,
    )  # fmt: skip


def _weight_key(reader: FlowReader, node: fx.Node, weight: Any) -> str:
    if weight not in reader.keys:
        raise reader.refusal(node, "multiplies something that is no stored weight")
    return reader.keys[weight]


def _bias_key(reader: FlowReader, node: fx.Node, bias: Any) -> str:
    if bias is None:
        return ""
    if bias not in reader.keys:
        raise reader.refusal(node, "adds a bias that is no stored parameter")
    return reader.keys[bias]


def _each(value: Any, dims: int) -> tuple[int, ...]:
    given = [value] if isinstance(value, int) else list(value)
    return tuple(int(v) for v in (given * dims if len(given) == 1 else given))


def _padding(padding: Any, dilation: Any, kernel: tuple[int, ...], dims: int) -> tuple[tuple[int, int], ...]:
    if padding == "valid":
        return ((0, 0),) * dims
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(_each(dilation, dims), kernel, strict=True)]
        return tuple((total // 2, total - total // 2) for total in totals)
    return tuple((p, p) for p in _each(padding, dims))


@handles("batch_norm", "_native_batch_norm_legit_no_training", "_batch_norm_no_update", "cudnn_batch_norm")
def _batch_norm(reader: FlowReader, node: fx.Node, given: dict[str, Any]) -> None:
    keys = {}
    for name, argument in (
        ("weight", "weight"),
        ("bias", "bias"),
        ("mean", "running_mean"),
        ("variance", "running_var"),
    ):
        tensor = given[argument]
        if tensor is not None and tensor not in reader.keys:
            raise reader.refusal(node, "normalizes with something that is no stored parameter")
        keys[name] = "" if tensor is None else reader.keys[tensor]
    if given.get("training") or not keys["mean"]:
        raise reader.refusal(node, "takes its statistics from the batch")
    path = module_path(node)
    own = isinstance(reader.modules.get(path), _BatchNorm)
    value = [reader.value(given["input"], node)]
    name = reader.add(node, "norm", value, module=path if own else "", eps=float(given["eps"]), **keys)
    if isinstance(node.meta["val"], tuple | list):
        reader.values[node] = (name,)


@handles("add", "sub", "mul", "div")
def _arithmetic(reader: FlowReader, node: fx.Node, given: dict[str, Any]) -> None:
    opname = operation_name(node)
    left, right = given["self"], given["other"]
    if all(isinstance(x, fx.Node) and x in reader.values for x in (left, right)):
        if opname in ("sub", "div") or given.get("alpha", 1) != 1:
            raise reader.refusal(node)
        shapes = [x.meta["val"].shape for x in (left, right)]
        if opname == "add" and shapes[0] != shapes[1]:
            raise reader.refusal(node, "adds values of different shapes")
        reader.add(node, "add" if opname == "add" else "multiply", [reader.value(x, node) for x in (left, right)])
        return
    swapped = not (isinstance(left, fx.Node) and left in reader.values)
    value, constant = (right, left) if swapped else (left, right)
    numbers = _per_channel(reader, node, constant, value)
    alpha = float(given.get("alpha", 1))
    scale, shift = [1.0] * len(numbers), [0.0] * len(numbers)
    if opname == "mul":
        scale = numbers
    elif opname == "div" and not swapped:
        scale = [1.0 / x for x in numbers]
    elif opname == "add":
        scale = [alpha if swapped else 1.0] * len(numbers)
        shift = numbers if swapped else [alpha * x for x in numbers]
    elif opname == "sub":
        scale = [-alpha if swapped else 1.0] * len(numbers)
        shift = numbers if swapped else [-alpha * x for x in numbers]
    else:
        raise reader.refusal(node)
    reader.add(node, "norm", [reader.value(value, node)], scale=tuple(scale), shift=tuple(shift))


def _per_channel(reader: FlowReader, node: fx.Node, constant: Any, value: fx.Node) -> list[float]:
    """A constant as one number, or one per channel of the value."""
    if isinstance(constant, int | float):
        return [float(constant)]
    tensor = reader.constants.get(constant)
    if tensor is None:
        raise reader.refusal(node)
    shape = [1] * (_rank(value) - tensor.ndim) + list(tensor.shape)
    if tensor.numel() > 1 and (tensor.numel() != shape[1] or shape[1] != value.meta["val"].shape[1]):
        raise reader.refusal(node, "combines a value with a constant that is not one number per channel")
    return [float(x) for x in tensor.reshape(-1).double()]


@handles("cat")
def _concat(reader: FlowReader, node: fx.Node, given: dict[str, Any]) -> None:
    axis = given["dim"] % _rank(node)
    if axis == 0:
        raise reader.refusal(node, "joins batches")
    reader.add(node, "concat", [reader.value(x, node) for x in given["tensors"]], axis=axis)


@handles("relu", "relu6", "hardtanh", "clamp", "clamp_min", "clamp_max", "threshold")
def _clamp(reader: FlowReader, node: fx.Node, given: dict[str, Any]) -> None:
    opname = operation_name(node)
    low, high = given.get("min"), given.get("max")
    if opname in ("relu", "relu6"):
        low, high = 0.0, 6.0 if opname == "relu6" else None
    elif opname == "hardtanh":
        low, high = given["min_val"], given["max_val"]
    elif opname == "threshold":
        low = given["threshold"]
    if opname == "threshold" and given["threshold"] != given["value"]:
        raise reader.refusal(node)
    if not all(x is None or isinstance(x, int | float) for x in (low, high)):
        raise reader.refusal(node, "clamps by values")
    bounds = tuple(None if x is None else float(x) for x in (low, high))
    reader.add(node, "function", [reader.value(given["self"], node)], function="clamp", low=bounds[0], high=bounds[1])


_FUNCTIONS = {
    "sigmoid": (), "hardsigmoid": (), "silu": (), "hardswish": (), "tanh": (), "mish": (), "gelu": ("approximate",),
    "leaky_relu": ("negative_slope",), "elu": ("alpha", "scale", "input_scale"), "softplus": ("beta", "threshold"),
    "selu": (), "softsign": (), "exp": (), "abs": (), "square": (),
}  # fmt: skip
"""Functions of one entry, and their arguments."""


@handles(*_FUNCTIONS)
def _function(reader: FlowReader, node: fx.Node, given: dict[str, Any]) -> None:
    opname = operation_name(node)
    found = tuple(given[name] for name in _FUNCTIONS[opname])
    reader.add(node, "function", [reader.value(given["self"], node)], function=opname, arguments=found)


@handles("softmax", "log_softmax", "_softmax", "_log_softmax")
def _softmax(reader: FlowReader, node: fx.Node, given: dict[str, Any]) -> None:
    """No integer form; behind the last layer it is computed in floats."""
    axis = given["dim"] % _rank(node)
    if axis == 0:
        raise reader.refusal(node, "mixes images")
    kind = operation_name(node).strip("_")
    reader.add(node, "function", [reader.value(given["self"], node)], function=kind, arguments=(axis,))


@handles("avg_pool1d", "avg_pool2d", "avg_pool3d")
def _average(reader: FlowReader, node: fx.Node, given: dict[str, Any]) -> None:
    dims = _rank(node) - 2
    kernel = _each(given["kernel_size"], dims)
    padding = _each(given["padding"], dims)
    odd = given.get("divisor_override") is not None or (any(padding) and not given["count_include_pad"])
    if given["ceil_mode"] or odd:
        raise reader.refusal(node, "averages over windows of several sizes")
    stride = _each(given["stride"] or kernel, dims)
    pairs = tuple((p, p) for p in padding)
    reader.add(node, "average", [reader.value(given["self"], node)], kernel=kernel, stride=stride, padding=pairs)


@handles("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
         "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d")  # fmt: skip
def _adaptive(reader: FlowReader, node: fx.Node, given: dict[str, Any]) -> None:
    source = reader.value(given["self"], node)
    sizes = given["self"].meta["val"].shape[2:]
    wanted = [size if out is None else out for out, size in zip(given["output_size"], sizes, strict=True)]
    if any(size % out for out, size in zip(wanted, sizes, strict=True)):
        raise reader.refusal(node, f"pools {tuple(sizes)} to {tuple(wanted)} in windows of several sizes")
    kernel = tuple(size // out for out, size in zip(wanted, sizes, strict=True))
    none = ((0, 0),) * len(kernel)
    if "max" in str(node.target):
        name = reader.add(
            node,
            "maximum",
            [source],
            kernel=kernel,
            stride=kernel,
            padding=none,
            dilation=(1,) * len(kernel),
            ceil=False,
        )
        reader.values[node] = (name,)
    else:
        reader.add(node, "average", [source], kernel=kernel, stride=kernel, padding=none)


@handles("mean")
def _mean(reader: FlowReader, node: fx.Node, given: dict[str, Any]) -> None:
    value = given["self"].meta["val"]
    dims = sorted(d % value.ndim for d in (given.get("dim") or range(value.ndim)))
    if value.ndim < 3 or dims != list(range(2, value.ndim)):
        raise reader.refusal(node, "averages over more than positions")
    kernel, none = tuple(map(int, value.shape[2:])), ((0, 0),) * len(dims)
    source = [reader.value(given["self"], node)]
    if given["keepdim"]:
        reader.add(node, "average", source, kernel=kernel, stride=kernel, padding=none)
        return
    shape = (int(value.shape[1]), *[1] * len(dims))
    pooled = reader.add(node, "average", source, part="pooled", shape=shape, kernel=kernel, stride=kernel, padding=none)
    reader.add(node, "move", [pooled], move="reshape")


@handles("max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices", "max_pool3d_with_indices")
def _maximum(reader: FlowReader, node: fx.Node, given: dict[str, Any]) -> None:
    value = node.meta["val"]
    dims = (value[0] if isinstance(value, tuple | list) else value).ndim - 2
    kernel = _each(given["kernel_size"], dims)
    name = reader.add(
        node, "maximum", [reader.value(given["self"], node)], kernel=kernel,
        stride=_each(given["stride"] or kernel, dims), padding=tuple((p, p) for p in _each(given["padding"], dims)),
        dilation=_each(given["dilation"], dims), ceil=bool(given["ceil_mode"]),
    )  # fmt: skip
    if isinstance(value, tuple | list):
        reader.values[node] = (name,)


@handles("view", "reshape", "flatten", "_unsafe_view", "squeeze", "unsqueeze", "unflatten")
def _reshape(reader: FlowReader, node: fx.Node, given: dict[str, Any]) -> None:
    reader.add(node, "move", [reader.value(given["self"], node)], move="reshape")


@handles("permute", "transpose")
def _permute(reader: FlowReader, node: fx.Node, given: dict[str, Any]) -> None:
    axes = list(range(_rank(node)))
    if "dims" in given:
        axes = [d % len(axes) for d in given["dims"]]
    else:
        a, b = given["dim0"], given["dim1"]
        axes[a], axes[b] = axes[b], axes[a]
    if axes[0] != 0:
        raise reader.refusal(node, "moves the batch to another dimension")
    reader.add(node, "move", [reader.value(given["self"], node)], move="permute", axes=tuple(axes))


@handles("slice", "narrow")
def _slice(reader: FlowReader, node: fx.Node, given: dict[str, Any]) -> None:
    source = reader.value(given["self"], node)
    axis, size = given["dim"] % _rank(node), int(given["self"].meta["val"].shape[given["dim"]])
    if "length" in given:
        start, stop, step = given["start"], given["start"] + given["length"], 1
    else:
        start, stop, step = slice(given["start"], given["end"], given["step"]).indices(size)
    if (start, stop, step) == (0, size, 1):
        reader.values[node] = source
    elif axis == 0:
        raise reader.refusal(node, "takes images out of the batch")
    else:
        reader.add(node, "move", [source], move="slice", axis=axis, start=start, stop=stop, step=step)


@handles("select")
def _select(reader: FlowReader, node: fx.Node, given: dict[str, Any]) -> None:
    shape = list(map(int, given["self"].meta["val"].shape))
    axis = given["dim"] % len(shape)
    if axis == 0 or len(shape) < 3:
        raise reader.refusal(node, "takes images out of the batch")
    start = given["index"] % shape[axis]
    shape[axis] = 1
    part = reader.add(
        node, "move", [reader.value(given["self"], node)], part="part", shape=tuple(shape[1:]), move="slice",
        axis=axis, start=start, stop=start + 1, step=1,
    )  # fmt: skip
    reader.add(node, "move", [part], move="reshape")


@handles("split", "split_with_sizes", "chunk")
def _split(reader: FlowReader, node: fx.Node, given: dict[str, Any]) -> None:
    source, whole = reader.value(given["self"], node), given["self"].meta["val"]
    axis = given["dim"] % whole.ndim
    if axis == 0:
        raise reader.refusal(node, "takes images out of the batch")
    parts, start = [], 0
    for number, part in enumerate(node.meta["val"]):
        stop = start + int(part.shape[axis])
        shape = tuple(map(int, part.shape[1:]))
        cut = {"move": "slice", "axis": axis, "start": start, "stop": stop, "step": 1}
        parts.append(reader.add(node, "move", [source], part=str(number), shape=shape, **cut))
        start = stop
    reader.values[node] = tuple(parts)


@handles("pad", "constant_pad_nd")
def _pad(reader: FlowReader, node: fx.Node, given: dict[str, Any]) -> None:
    if given.get("mode", "constant") != "constant" or given.get("value"):
        raise reader.refusal(node, "pads with something else than zeros")
    amounts, rank = list(given["pad"]), _rank(node)
    pairs = [(0, 0)] * (rank - len(amounts) // 2) + list(zip(amounts[::2], amounts[1::2], strict=True))[::-1]
    if pairs[0] != (0, 0) or any(min(pair) < 0 for pair in pairs):
        raise reader.refusal(node, "pads the batch, or crops")
    reader.add(node, "move", [reader.value(given["self"], node)], move="pad", amounts=tuple(pairs))


@handles("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d")
def _nearest(reader: FlowReader, node: fx.Node, given: dict[str, Any]) -> None:
    source = given["input"] if "input" in given else given["self"]
    before, after = source.meta["val"].shape[2:], node.meta["val"].shape[2:]
    if any(b % a for a, b in zip(before, after, strict=True)):
        raise reader.refusal(node, "repeats positions unevenly")
    factors = tuple(int(b // a) for a, b in zip(before, after, strict=True))
    reader.add(node, "move", [reader.value(source, node)], move="nearest", factors=factors)


@handles("pixel_shuffle")
def _pixel_shuffle(reader: FlowReader, node: fx.Node, given: dict[str, Any]) -> None:
    if _rank(node) != 4:
        raise reader.refusal(node)
    factor = int(given["upscale_factor"])
    reader.add(node, "move", [reader.value(given["self"], node)], move="pixel_shuffle", factor=factor)


@handles("dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout", "alpha_dropout", "native_dropout",
         "clone", "contiguous", "detach", "alias", "identity", "to", "_to_copy", "lift_fresh_copy",
         "positive")  # fmt: skip
def _same(reader: FlowReader, node: fx.Node, given: dict[str, Any]) -> None:
    source = given["self"] if "self" in given else given["input"]
    value = node.meta["val"]
    if isinstance(value, Tensor) and not value.is_floating_point():
        raise reader.refusal(node, "makes something else than real numbers")
    reader.values[node] = reader.value(source, node)
