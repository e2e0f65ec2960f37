"""Copies of a network to work on: always possible, and with every weight a plain parameter."""

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm

from slimbit.numerics.memory import tensors_of


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside torch.compile or a data-parallel wrapper."""
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while True:
        if isinstance(model, parallel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment] # a module, as asked above
        else:
            return model


def plain_network(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode, out of its wrappers, whose every weight is a plain parameter.

    Parametrizations (weight norm, spectral norm of either kind, `torch.nn.utils.prune`) are replaced by the weights
    that they compute now. What a pruning mask took stays known: the mask is kept as a buffer ``<name>_mask`` outside
    of the state dict, see `mask_of`.

    Args:
        model: Not changed.

    >>> net = torch.nn.utils.parametrizations.weight_norm(nn.Linear(2, 1))
    >>> sorted(plain_network(net).state_dict())
    ['bias', 'weight']
    """
    network = copied(unwrapped(model)).eval()
    with torch.no_grad():
        for module in network.modules():
            _fold(module)
    return network


def mask_of(module: nn.Module, name: str) -> Tensor | None:
    """The pruning mask of a parameter, True where a weight stays; None where there is none.

    Of `torch.nn.utils.prune`, of `plain_network` or `slimbit.apply.mask.mask`: all keep it as a buffer ``<name>_mask``.
    """
    mask = getattr(module, f"{name}_mask", None)
    return mask.detach() != 0 if isinstance(mask, Tensor) else None


def copied(model: nn.Module, memo: Mapping[int, Any] | None = None) -> nn.Module:
    """A deep copy, also of a network that holds results of an earlier pass, which `copy.deepcopy` alone refuses.

    Args:
        model: Not changed.
        memo: What stands in the copy for an object, by its `id`; as of `copy.deepcopy`.

    >>> net = nn.Linear(2, 2)
    >>> net.last = net(torch.ones(2))
    >>> copied(net).last.requires_grad
    False
    """
    known = dict(memo or {})
    for module in model.modules():
        for tensor in tensors_of(module.__dict__):
            if not tensor.is_leaf:  # that an operation made
                known.setdefault(id(tensor), tensor.detach().clone())
    return copy.deepcopy(model, known)


def _fold(module: nn.Module) -> None:
    if parametrize.is_parametrized(module):
        _fold_parametrizations(module)
    for hook in list(module._forward_pre_hooks.values()):
        if isinstance(hook, WeightNorm):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # that it is old is not news to this user
                remove_weight_norm(module, hook.name)
        elif isinstance(hook, SpectralNorm):
            remove_spectral_norm(module, hook.name)
            for key, loading in list(module._load_state_dict_pre_hooks.items()):
                # torch wraps this hook and so no longer finds it when it should go
                if isinstance(getattr(loading, "hook", loading), SpectralNormLoadStateDictPreHook):
                    del module._load_state_dict_pre_hooks[key]
        elif isinstance(hook, prune.BasePruningMethod):
            name = hook._tensor_name
            mask = getattr(module, f"{name}_mask")
            prune.remove(module, name)  # type: ignore[no-untyped-call]  # torch leaves it untyped
            module.register_buffer(f"{name}_mask", mask, persistent=False)


def _fold_parametrizations(module: nn.Module) -> None:
    """As `parametrize.remove_parametrizations`, which would also break the original: copies share one made-up class."""
    tables: Any = module.parametrizations
    values = {name: getattr(module, name).detach().clone() for name in tables}
    parameters = {name for name, table in tables.items() if any(True for _ in table.parameters())}
    module.__class__ = type(module).__bases__[0]
    del module._modules["parametrizations"]
    for name, value in values.items():
        if name in parameters:
            module.register_parameter(name, nn.Parameter(value))
        else:
            module.register_buffer(name, value)
