"""From a network to its `Dataflow`: the graph of ``torch.export``, every operation by what it does to values.

Only networks whose every operation has a kind are read; any other is refused in one sentence that names the
operation and its module. Weights can be quantized all the same: nothing but activations needs the graph.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from slimbit.numerics.copies import plain_network
from slimbit.records.dataflow import Dataflow
from slimbit.records.errors import InputError
from slimbit.records.text import fault_of
from slimbit.survey import dataflow_rules  # noqa: F401 - registers the rules
from slimbit.survey.dataflow_reader import BATCH, FlowReader
from slimbit.survey.trace import Inputs


def read_dataflow(model: nn.Module, example_input: Inputs, *, name: str = "") -> Dataflow:
    """The operations of a network and the values between them.

    Args:
        model: Any module that ``torch.export`` can trace in evaluation mode; not run, not changed.
        example_input: One example with its batch dimension; a tuple or dict for several arguments.
        name: Name for people; default: the type of the module.

    Raises:
        InputError: It cannot be traced, or an operation has no integer form; both are named.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    >>> flow = read_dataflow(net, torch.zeros(1, 3, 8, 8))
    >>> [(x.name, x.kind, x.shape) for x in flow]  # doctest: +NORMALIZE_WHITESPACE
    [('0', 'layer', (8, 6, 6)), ('1', 'function', (8, 6, 6)), ('2', 'average', (8, 1, 1)), ('3', 'move', (8,)),
     ('4', 'layer', (2,))]
    """
    network = plain_network(model).cpu()
    args, kwargs = _example(example_input)
    what = name or type(network).__name__
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch.export's own making; the user cannot act on them
        try:
            program = torch.export.export(network, args, kwargs, strict=False)
            if _writes_in_place(program):
                program = program.run_decompositions({})
        except Exception as error:
            reason = fault_of(error)
            raise InputError(
                f"{what} must be traceable by torch.export to find its activations, got {reason}"
            ) from error
    return FlowReader(program, network).read(what)


def _example(example_input: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments with a batch of `BATCH` images, a number that sizes rarely have by chance."""

    def repeated(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.ndim == 0:
            return value
        value = value.detach().cpu()
        return torch.cat([value] * -(-BATCH // max(1, len(value))))[:BATCH]

    if isinstance(example_input, Tensor):
        return (repeated(example_input),), {}
    if isinstance(example_input, Mapping):
        return (), {key: repeated(value) for key, value in example_input.items()}
    assert isinstance(example_input, Sequence)
    return tuple(map(repeated, example_input)), {}


def _writes_in_place(program: ExportedProgram) -> bool:
    """Whether an operation changes a tensor that something else may still read."""
    return any(
        isinstance(target := node.target, torch._ops.OpOverload)
        and target._schema.is_mutable
        and isinstance(source := node.args[0], fx.Node)
        and (len(source.users) > 1 or source.op == "placeholder" or not _is_fresh(source))
        for node in program.graph.nodes
        if node.op == "call_function" and node.args
    )


def _is_fresh(node: fx.Node) -> bool:
    """Whether an operation's output shares no memory with its input, but for what it changed itself."""
    if not isinstance(node.target, torch._ops.OpOverload) or node.target._opname in ("dropout", "contiguous"):
        return False
    returned = node.target._schema.returns
    return node.target._schema.is_mutable or all(value.alias_info is None for value in returned)
