"""A keep plan as surgery: a really smaller network."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from slimbit.apply.advice import layers_to_protect
from slimbit.apply.axes import bind_axes
from slimbit.apply.constants import noise
from slimbit.apply.mask import prepared, zeroed
from slimbit.numerics.batches import output_tensors
from slimbit.numerics.copies import copied, plain_network
from slimbit.numerics.memory import hookable
from slimbit.numerics.strided import protect_gradients
from slimbit.records.errors import InputError
from slimbit.records.keep import KeepPlan
from slimbit.survey.channel_run import call
from slimbit.survey.trace import Inputs


def prune(model: nn.Module, plan: KeepPlan, example_input: Inputs) -> nn.Module:
    """A copy of the network without everything that the plan removes.

    The smaller network runs once, and its outputs are compared with those of `slimbit.apply.mask.mask`, so that
    numbers in the network's code that no longer fit (``x.view(-1, 64)``, ``x[:, :32]``) are found here and not later.

    Args:
        model: Not changed. Parametrizations are replaced by the weights that they compute.
        plan: What stays.
        example_input: One example with its batch dimension; a tuple or dict for several arguments.

    Returns:
        A new, smaller network in evaluation mode. `rebuild` makes it again from a fresh network and its state dict.

    Raises:
        InputError: A plan for another network, or a network whose code does not follow the smaller sizes: which layers
            to protect is told.

    >>> from slimbit.records.keep import AxisKeep
    >>> filters = AxisKeep(name="0", role="filters", size=2, kept=(1,))
    >>> inputs = AxisKeep(name="1", role="inputs", size=2, kept=(1,))
    >>> plan = KeepPlan(network="n", policy="mine", axes=(filters, inputs))
    >>> prune(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)), plan, torch.zeros(1, 3))
    Sequential(
      (0): Linear(in_features=3, out_features=1, bias=True)
      (1): Linear(in_features=1, out_features=1, bias=True)
    )
    """
    network, wrong = _cut_and_compared(model, plan, example_input)
    if not wrong:
        return network

    def works(part: KeepPlan) -> bool:
        return not _cut_and_compared(model, part, example_input)[1]

    layers = layers_to_protect(model, plan, example_input, works)
    if not layers:
        raise InputError(f"{wrong}: the plan must remove whole units of the groups that find_filter_groups finds")
    raise InputError(f"{wrong}: protect {', '.join(map(repr, layers))}")


def _cut_and_compared(model: nn.Module, plan: KeepPlan, example_input: Inputs) -> tuple[nn.Module, str]:
    """The smaller network, and what is wrong with it, if anything is."""
    network = prepared(model, plan, example_input)
    masked = zeroed(copied(network), plan)
    return _cut(network, plan), _difference(network, masked, noise(example_input, seed=0))


def rebuild(model: nn.Module, plan: KeepPlan, state: Mapping[str, Tensor]) -> nn.Module:
    """The smaller network again: surgery on a fresh network, then the state dict of the pruned one.

    Args:
        model: A network of the original's form, e.g. ``slimbit.network("resnet20")``; not changed.
        plan: What stays.
        state: State dict of the pruned network; biases that folding added are among it.

    Raises:
        InputError: A plan or a state dict of another network.
    """
    network = cut_as(model, plan, state)
    try:
        network.load_state_dict(dict(state))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"state dict must be that of the pruned network, got {reason}") from error
    return network


def cut_as(model: nn.Module, plan: KeepPlan, state: Mapping[str, Tensor]) -> nn.Module:
    """The form of the smaller network: a copy cut to its sizes, with the biases that folding added.

    Args:
        model: A network of the original's form; not changed.
        plan: What stays.
        state: State dict of the pruned network, for the names and shapes of its biases; what else it holds is not used.

    Raises:
        InputError: A plan of another network.
    """
    network = _cut(plain_network(model), plan)
    for path, module in network.named_modules():
        key = f"{path}.bias".removeprefix(".")
        if isinstance(module, _ConvNd | nn.Linear) and module.bias is None and key in state:
            bias = torch.zeros_like(state[key], device=module.weight.device)
            module.register_parameter("bias", nn.Parameter(bias))
    return network


def _cut(network: nn.Module, plan: KeepPlan) -> nn.Module:
    """Remove in place; returns the network, whose narrow layers anyone may train."""
    for bound in bind_axes(network, plan):
        bound.axis.take(bound.index())
    return protect_gradients(network)


TOLERANCE = {torch.float16: 0.05, torch.bfloat16: 0.2}
"""Largest difference of outputs over their largest value; 1e-3 for wider types: sums run in another order."""

TIES = 0.01
"""Share of outputs that are no floating-point numbers (classes, indices) and may differ: where two values are as good
as equal, the order of sums decides."""


def _difference(pruned: nn.Module, masked: nn.Module, inputs: Inputs) -> str:
    """What differs between both networks; nothing if they run and have equal outputs."""
    path: list[str] = []
    handles = [m.register_forward_pre_hook(_enter(path, name)) for name, m in hookable(pruned)]
    handles += [m.register_forward_hook(_leave(path)) for _, m in hookable(pruned)]
    try:
        with torch.no_grad():
            found = output_tensors(call(pruned, inputs))
    except Exception as error:  # noqa: BLE001 - whatever code says to sizes that it does not expect
        where = next((f"module {name!r}" for name in reversed(path) if name), "the network")
        reason = " ".join(str(error).split())[:200]
        return f"code of {where} must follow the smaller sizes, got {reason}"
    finally:
        for handle in handles:
            handle.remove()
    with torch.no_grad():
        wanted = output_tensors(call(masked, inputs))
    if len(found) == len(wanted) and all(map(_alike, found, wanted)):
        return ""
    return f"outputs must stay those of the masked network, got others from {_first(pruned, masked, inputs)} on"


def _alike(found: Tensor, wanted: Tensor) -> bool:
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return False
    if not wanted.is_floating_point():
        return int((found != wanted).sum()) <= TIES * wanted.numel()
    if not bool((found.isfinite() == wanted.isfinite()).all()):
        return False
    found, wanted = (part.nan_to_num(0.0, 0.0, 0.0) for part in (found, wanted))
    scale = float(wanted.abs().max()) if wanted.numel() else 0.0
    difference = float((found - wanted).abs().max()) if wanted.numel() else 0.0
    return not difference > TOLERANCE.get(wanted.dtype, 1e-3) * scale


def _first(pruned: nn.Module, masked: nn.Module, inputs: Inputs) -> str:
    """The first module that does not make, of what is left, what it makes in the masked network."""
    outputs: list[list[tuple[str, Any]]] = [[], []]
    for network, met in zip((pruned, masked), outputs, strict=True):
        handles = [m.register_forward_hook(_note(met, name)) for name, m in hookable(network)]
        with torch.no_grad():
            call(network, inputs)
        for handle in handles:
            handle.remove()
    for (name, found), (_, wanted) in zip(*outputs, strict=False):
        same = isinstance(found, Tensor) and isinstance(wanted, Tensor) and found.shape == wanted.shape
        if same and not _alike(found, wanted):
            return f"module {name!r}" if name else "the network"
    return "the network"


def _enter(path: list[str], name: str) -> Any:
    return lambda *_: path.append(name)


def _leave(path: list[str]) -> Any:
    def hook(*_: Any) -> None:
        path.pop()

    return hook


def _note(met: list[tuple[str, Any]], name: str) -> Any:
    def hook(_: nn.Module, __: Any, output: Any) -> None:
        met.append((name, output))

    return hook
