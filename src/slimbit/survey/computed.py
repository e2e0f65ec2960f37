"""What subclasses of a counted layer really multiply: their type alone does not say.

A subclass of a convolution may standardize its weight, use half of it, call it twice, return a tuple, or compute
nothing. It is counted as its type says where its operations bear that out, and listed as other work where not.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from slimbit.survey.kinds import Use, is_stock, rule_of
from slimbit.survey.trace import Call

NOTHING = "multiplies nothing by its weight"
SOMETHING_ELSE = "multiplies by something else than its weight"
_WITHOUT_FORMULA = {"embedding", "bilinear"}  # no multiplications, or none that torch's formulas know


def as_computed(model: nn.Module, calls: Sequence[Call]) -> tuple[list[Call], dict[str, str]]:
    """The calls with those uses of weights that their operations bear out.

    Args:
        model: The network.
        calls: Of one pass.

    Returns:
        The calls, and by module path why a module is not counted as its type says.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    unlike: dict[str, str] = {}
    found = []
    for call in calls:
        module = model.get_submodule(call.path)
        if rule_of(module) is None or (is_torch_own(module) and not call.failure):
            found.append(call)
            continue
        uses = call.uses or _declared(module)
        if uses and uses[0].kind not in _WITHOUT_FORMULA:
            uses, why = _borne_out(module, call, uses, names)
            unlike.update({call.path: why} if why else {})
        found.append(replace(call, uses=uses))
    return found, unlike


def is_torch_own(module: nn.Module) -> bool:
    """Whether a module computes what torch's layer of its type does."""
    return is_stock(module) or ("forward" not in module.__dict__ and type(module).__module__.startswith("torch.nn."))


def _declared(module: nn.Module) -> list[Use]:
    """The weights that the type of a module uses, where its inputs and outputs did not say how often."""
    rule, nothing = rule_of(module), torch.empty(0, 1, device="meta")
    return [] if rule is None else list(rule(module, (nothing,) * 3, {}, nothing))


def _borne_out(module: nn.Module, call: Call, uses: list[Use], names: dict[int, str]) -> tuple[list[Use], str]:
    weights = [_elements(module, use) for use in uses]
    declared = sum(use.positions * count for use, count in zip(uses, weights, strict=True))
    keys = {names.get(id(_parameter(module, use.parameter)), "") for use in uses} - {""}
    direct = sum(macs for (_, operands), macs in call.work.items() if keys & set(operands))
    if len(uses) == 1 and direct and not keys & call.slices:
        positions, rest = divmod(direct, weights[0])
        if not rest:  # the weight itself is an operand, so that is how often it was multiplied
            return [replace(uses[0], positions=positions)], ""
    computed = sum(macs for (_, operands), macs in call.work.items() if not set(operands) - _own(module, names))
    if not call.failure and not keys & call.slices and declared <= max(direct, computed):
        return uses, ""
    if call.failure and len(uses) == 1 and computed and computed % weights[0] == 0 and not keys & call.slices:
        return [replace(uses[0], positions=computed // weights[0])], ""
    return [], SOMETHING_ELSE if call.work else NOTHING


def _own(module: nn.Module, names: dict[int, str]) -> set[str]:
    return {names[id(parameter)] for parameter in module.parameters() if id(parameter) in names}


def _parameter(module: nn.Module, key: str) -> Any:
    path, _, attribute = key.rpartition(".")
    return getattr(module.get_submodule(path), attribute, None)


def _elements(module: nn.Module, use: Use) -> int:
    shape = _parameter(module, use.parameter).shape
    return math.prod(shape) if use.rows is None else (use.rows[1] - use.rows[0]) * math.prod(shape[1:])
