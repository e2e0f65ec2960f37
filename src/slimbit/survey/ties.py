"""Which filters live or die together: one pass of the network's shapes in which every channel keeps its name.

Filters get numbers. Each operation that runs carries them on, ties those that it adds, or says that it mixes
them; an operation without a rule makes the filters that reach it fixed. So a unit is removable only if everything
between the layers that make it and the layers that read it is understood, and the rest says why it is not.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode

import slimbit.survey.tie_shapes  # noqa: F401 - registers its rules
from slimbit.numerics.batches import output_tensors
from slimbit.numerics.copies import plain_network
from slimbit.records.errors import InputError
from slimbit.records.groups import Ties
from slimbit.records.text import fault_of
from slimbit.survey.module import refuse_what_cannot_be_counted
from slimbit.survey.tie_operation import Operation, Trace, arguments, storage_of
from slimbit.survey.tie_rules import rule_of
from slimbit.survey.trace import Inputs

NEVER_CALLED = "it is never called"


def tied_filters(model: nn.Module, example_input: Inputs, *, name: str = "") -> Ties:
    """Groups of filters that live or die together, and everything that loses entries with them.

    Residual sums tie filters one by one, concatenations put them side by side, a flattened image gives each filter
    several inputs of a linear layer, depthwise and grouped convolutions tie all inputs and filters of a group.
    Inputs and outputs of the network are never part of a group.

    Args:
        model: Any module; it is not run, not changed. Parametrizations count as the weights that they compute.
        example_input: One example with its batch dimension; a tuple or dict for several arguments.
        name: Name for people; default: the type of the module.

    Returns:
        The groups, and why the filters that are in none cannot be removed.

    Raises:
        InputError: The network does not run on the example.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 10))
    >>> group = tied_filters(net, torch.zeros(1, 3, 4, 4)).groups[0]
    >>> [(m.name, m.role, m.channels[1]) for m in group.members]
    [('0', 'filters', (1,)), ('1', 'norm', (1,)), ('4', 'inputs', (4, 5, 6, 7))]
    """
    refuse_what_cannot_be_counted(model)
    network = plain_network(model)
    trace = _traced(network, example_input)
    for key, where in trace.strayed.items():
        path = key.rpartition(".")[0]
        places = [(path, "filters"), (path, "inputs"), (path, "norm"), (key, "parameter")]
        for place, channels in trace.ledger.axes.items():
            if place in places:
                trace.ledger.fix(channels, f"{key} is also used by {where}")
    return Ties(
        network=name or type(network).__name__,
        groups=tuple(trace.ledger.groups()),
        fixed=dict(_fixed(network, trace)),
    )


def _fixed(network: nn.Module, trace: Trace) -> Iterator[tuple[str, str]]:
    for path, module in network.named_modules():
        if not isinstance(module, _ConvNd | nn.Linear):
            continue
        filters = trace.ledger.axes.get((path, "filters"))
        if filters is None:
            where = trace.strayed.get(f"{path}.weight".lstrip("."))
            yield path, f"its weight is used by {where}" if where else NEVER_CALLED
            continue
        reason = next((why for f in filters if (why := trace.ledger.reason(f)) is not None), None)
        if reason is not None:
            yield path, reason


def _traced(network: nn.Module, example_input: Inputs) -> Trace:
    """The trace of a pass of shapes alone or, where control flow reads values, of a real one."""
    shared = _shared_names(network)
    try:
        skeleton = plain_network(network).to("meta")
        return _run(_untraced(skeleton, shared), skeleton, _moved(example_input, lambda x: x.to("meta")))
    except InputError:
        raise
    except Exception:  # noqa: BLE001 - whatever shapes alone cannot do, values may
        clone = plain_network(network)
    trace = _untraced(clone, shared)
    try:
        return _run(trace, clone, example_input)
    except Exception as error:
        where = f"module {trace.path[-1]!r} of " if any(trace.path) else ""
        reason = fault_of(error)
        raise InputError(f"{where}{type(network).__name__} must run on the example input, got {reason}") from error


def _shared_names(network: nn.Module) -> dict[str, list[str]]:
    """For each parameter and buffer, the names under which modules store it; a module has one name."""
    names: dict[int, list[str]] = {}
    for path, module in network.named_modules():
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                names.setdefault(id(tensor), []).append(f"{path}.{key}".removeprefix("."))
    return {name: group for group in names.values() for name in group}


def _untraced(network: nn.Module, shared: Mapping[str, list[str]]) -> Trace:
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    owners = {storage_of(tensor): shared[name] for name, tensor in tensors.items()}
    return Trace(dict(network.named_modules()), owners)


def _run(trace: Trace, network: nn.Module, example_input: Inputs) -> Trace:
    """Run a network, which is hooked for good, under a trace."""
    with torch.no_grad(), _paths(network, trace.path), _Watch(trace):
        if isinstance(example_input, Tensor):
            outputs = network(example_input)
        elif isinstance(example_input, Mapping):
            outputs = network(**example_input)
        else:
            outputs = network(*example_input)
    for tensor in output_tensors(outputs):
        found = trace.channels(tensor)
        if found is not None:
            trace.ledger.fix(found.atoms, "it is an output of the network")
    return trace


@contextmanager
def _paths(network: nn.Module, stack: list[str]) -> Iterator[None]:
    """Keeps the paths of the running modules on a stack."""

    def enter(path: str) -> Callable[..., None]:
        return lambda *_: stack.append(path)

    def leave(*_: Any) -> None:
        stack.pop()

    for path, module in network.named_modules():
        module.register_forward_pre_hook(enter(path), prepend=True)
        module.register_forward_hook(leave)
    yield


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch leaves it untyped
    """Applies the rule of every operation that runs."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch leaves it untyped
        self._trace = trace

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        outputs = func(*args, **kwargs)
        parts = outputs if isinstance(outputs, list | tuple) else (outputs,)
        name = func._overloadpacket.__name__
        op = Operation(
            trace=self._trace,
            name=name.removesuffix("_") if not name.endswith("__") else name,
            values=arguments(func, args, kwargs),
            outputs=[part for part in parts if isinstance(part, Tensor)],
            pointwise=torch.Tag.pointwise in func.tags,
        )
        (rule_of(op) if op.outputs else Operation.give_up)(op)
        op.stray()
        return outputs


def _moved(inputs: Inputs, function: Callable[[Tensor], Tensor]) -> Inputs:
    def one(value: Any) -> Any:
        return function(value) if isinstance(value, Tensor) else value

    if isinstance(inputs, Tensor):
        return function(inputs)
    if isinstance(inputs, Mapping):
        return {key: one(value) for key, value in inputs.items()}
    return tuple(one(value) for value in inputs)
