"""The layers of a network that nobody ran: those that its modules would be if each of them ran once."""

import torch
from torch import nn

from slimbit.records.network import LayerSpec
from slimbit.survey.kinds import rule_of
from slimbit.survey.module import layers_of_calls, refuse_what_cannot_be_counted
from slimbit.survey.trace import Call


def layers_by_type(model: nn.Module) -> tuple[LayerSpec, ...]:
    """Layers by module type alone, in the order in which the network registers them.

    Args:
        model: Out of its wrappers; not run, not changed.

    Returns:
        As `survey_network` finds them, but for what only a forward pass tells: ``positions`` is 0, and modules that
        would never run are among them.

    Raises:
        InputError: The network has lazy or zero-size layers.

    >>> [layer.name for layer in layers_by_type(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Linear(2, 2)))]
    ['0', '2']
    """
    refuse_what_cannot_be_counted(model)
    nothing = torch.empty(0, 1, device="meta")
    seen: set[tuple[str, tuple[int, int] | None]] = set()
    calls = []
    for path, module in model.named_modules():
        rule = rule_of(module)
        call = Call(path)
        for use in () if rule is None else rule(module, (nothing,) * 3, {}, nothing):
            # attention uses the weight of a child that it never calls
            key = (f"{path}.{use.parameter}".removeprefix("."), use.rows)
            if key not in seen:
                seen.add(key)
                call.uses.append(use)
        calls.append(call)
    return tuple(layers_of_calls(model, calls).values())
