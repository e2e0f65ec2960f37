"""Runs of a network under a trace, and again at other sizes."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import slimbit.survey.channel_layers
import slimbit.survey.channel_shapes  # noqa: F401 - both register their rules
from slimbit.numerics.batches import output_tensors
from slimbit.numerics.copies import copied, plain_network
from slimbit.numerics.memory import hookable
from slimbit.records.errors import InputError
from slimbit.survey.channel_growth import Growth, grow
from slimbit.survey.channel_operation import Operation, arguments, numbers_among, plain_name
from slimbit.survey.channel_replay import DETACH, Replay, ReplayCalls, computed
from slimbit.survey.channel_rules import rule_of
from slimbit.survey.channel_trace import Decisions, Record, Trace, storage_of
from slimbit.survey.trace import Inputs

LEFT_EMPTY = "would have no channel left"
COPIES = {"clone", "repeat"}
"""Operations that are no views and yet only move entries."""


class Runs:
    """Runs of a network on an example: of shapes alone or, where control flow reads values, of real values.

    Raises:
        InputError: The network does not run on the example.
    """

    def __init__(self, network: nn.Module, example_input: Inputs) -> None:
        self._shared = _shared_names(network)
        self._numbers = {
            name: buffer.cpu().numpy() for name, buffer in network.named_buffers() if buffer.dtype == torch.long
        }
        self._shapes_only = True
        try:
            self._network = plain_network(network).to("meta")
            self._example = _moved(example_input, lambda x: x.to("meta"))
            self.first = self.traced(Decisions())
        except InputError:
            raise
        except Exception:  # noqa: BLE001 - whatever shapes alone cannot do, values may
            self._shapes_only = False
            self._network, self._example = plain_network(network), example_input
            self.first = self._first_of_values()

    def _first_of_values(self) -> Trace:
        paths = [""]
        try:
            return self.traced(Decisions(), paths)
        except Exception as error:
            where = f"module {paths[-1]!r} of " if any(paths) else ""
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            name = type(self._network).__name__
            raise InputError(f"{where}{name} must run on the example input, got {reason}") from error

    def changed(self, decisions: Decisions, change: Callable[[nn.Module], None]) -> Trace | None:
        """The network after a change; None if it does not run then."""
        try:
            return self.traced(decisions, change=change)
        except Exception:  # noqa: BLE001 - whatever code says to sizes that it does not expect
            return None

    def traced(
        self,
        decisions: Decisions,
        paths: list[str] | None = None,
        *,
        change: Callable[[nn.Module], None] = lambda _: None,
    ) -> Trace:
        """The network at its own sizes.

        Args:
            decisions: What is known of its operations.
            paths: Takes the paths of the running modules.
            change: Changes the network before it runs.
        """
        network = copied(self._network)
        change(network)
        tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        owners = {storage_of(tensor): self._shared[name] for name, tensor in tensors.items()}
        modules = dict(network.named_modules())
        trace = Trace(modules, owners, decisions, shapes_only=self._shapes_only, numbers=self._numbers)
        if paths is not None:
            trace.path = paths
        with torch.no_grad(), _on_stack(network, trace.path), _Calls(trace), _OperationMode(trace):
            outputs = call(network, self._example)
        for tensor in output_tensors(outputs):
            found = trace.channels(tensor)
            if found is not None:
                trace.channel_groups.pin(found.ids, "it is an output of the network")
        for record in trace.records:
            for _, channels in record.outputs:
                roots = None if channels is None else trace.channel_groups.roots(channels.ids)
                if roots is not None and (roots == roots.flat[0]).all():
                    trace.channel_groups.pin(roots, f"{record.where} {LEFT_EMPTY}")
        for key, where in trace.strayed.items():
            path = key.rpartition(".")[0]
            places = [(path, "filters"), (path, "inputs"), (path, "norm"), (key, "parameter")]
            for place, ids in trace.channel_groups.axes.items():
                if place in places:
                    trace.channel_groups.pin(ids, f"{key} is also used by {where}")
        return trace

    def replayed(self, trace: Trace, growth: Growth, *, open_: bool) -> Replay:
        """The network with copies of its units; as long as views are open, what carries no channels is not compared."""
        network, replay = copied(self._network), Replay(trace, growth, open_=open_)
        grow(network, trace, growth)
        with torch.no_grad(), _on_stack(network, replay.path):
            try:
                with ReplayCalls(replay), replay:
                    call(network, self._example)
            except Exception as error:  # noqa: BLE001 - whatever code says to sizes that it does not expect
                replay.error = error
        return replay


def call(network: nn.Module, inputs: Inputs) -> Any:
    """Call a network on inputs in the form of an example."""
    if isinstance(inputs, Tensor):
        return network(inputs)
    return network(**inputs) if isinstance(inputs, Mapping) else network(*inputs)


def _shared_names(network: nn.Module) -> dict[str, list[str]]:
    """For each parameter and buffer, the names under which modules store it; a module has one name."""
    names: dict[int, list[str]] = {}
    for path, module in network.named_modules():
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                names.setdefault(id(tensor), []).append(f"{path}.{key}".removeprefix("."))
    return {name: group for group in names.values() for name in group}


@contextmanager
def _on_stack(network: nn.Module, stack: list[str]) -> Iterator[None]:
    """Keeps the paths of the running modules of a network, which is hooked for good, on a stack."""

    def enter(path: str) -> Callable[..., None]:
        return lambda *_: stack.append(path)

    def leave(*_: Any) -> None:
        stack.pop()

    for path, module in hookable(network):
        module.register_forward_pre_hook(enter(path), prepend=True)
        module.register_forward_hook(leave)
    yield


class _Calls(TorchFunctionMode):
    """Notes what each function of torch that the network calls returns."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self._trace = trace

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        result = func(*args, **(kwargs or {}))
        self._trace.results.append(result)
        return result


class _OperationMode(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch leaves it untyped
    """Applies the rule of every operation that runs."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch leaves it untyped
        self._trace = trace

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        outputs = computed(func, args, kwargs)
        parts = outputs if isinstance(outputs, list | tuple) else (outputs,)
        tensors = [part for part in parts if isinstance(part, Tensor)]
        values = arguments(func, args, kwargs)
        op = Operation(self._trace, plain_name(func), func, args, kwargs, values, tensors)
        inputs = tuple(found for x in op.tensors() if (found := op.channels(x)) is not None)
        self._note_moves(op)
        (rule_of(op) if op.outputs else Operation.give_up)(op)
        op.stray()
        if op.name == DETACH:
            return outputs
        self._trace.records.append(
            Record(
                name=op.name,
                where=op.where,
                path=tuple(self._trace.path),
                numbers=numbers_among(values, shapes_only=self._trace.shapes_only),
                inputs=inputs,
                outputs=tuple((tensor, op.channels(tensor)) for tensor in tensors),
                sizes=tuple(op.sizes),
                undecided=op.undecided,
                even=op.even,
                known=bool(inputs) and all(op.trace.constant(tensor) is None for tensor in tensors),
                call=len(self._trace.results),
            )
        )
        return outputs

    def _note_moves(self, op: Operation) -> None:
        """Remember of which tensor each output is a view, or of which parameter a copy."""
        source = op.args[0] if op.args else None
        if not isinstance(source, Tensor) or op.writes:
            return
        views = any(result.alias_info is not None for result in op.func._schema.returns)
        if not views and not (op.name in COPIES and op.trace.names(source)):
            return
        for number, output in enumerate(op.outputs):
            op.trace.note_move(output, source, _moving(op, number))


def _moving(op: Operation, number: int) -> Callable[[Tensor], Tensor]:
    """What makes an operation's output of its first argument."""

    def move(tensor: Tensor) -> Tensor:
        made = op.func(tensor, *op.args[1:], **op.kwargs)
        found: Tensor = made if isinstance(made, Tensor) else made[number]
        return found

    return move


def _moved(inputs: Inputs, function: Callable[[Tensor], Tensor]) -> Inputs:
    def one(value: Any) -> Any:
        return function(value) if isinstance(value, Tensor) else value

    if isinstance(inputs, Tensor):
        return function(inputs)
    if isinstance(inputs, Mapping):
        return {key: one(value) for key, value in inputs.items()}
    return tuple(one(value) for value in inputs)
