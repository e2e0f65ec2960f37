"""What to do about networks whose layers no rule of `slimbit.survey.kinds` can see: packed, scripted, flattened."""

from collections.abc import Iterator

import torch
from torch import fx, nn

from slimbit.records.errors import InputError
from slimbit.survey.kinds import rule_of

_PACKED = ("torch.ao.nn.quantized.", "torch.ao.nn.intrinsic.quantized.", "torch.nn.quantized.")


def hints(model: nn.Module) -> Iterator[str]:
    """Notes on modules that hold weights which cannot be counted where they are, and what can be counted instead.

    Args:
        model: The network.
    """
    packed = [(path, type(m).__name__) for path, m in model.named_modules() if _is_packed(m)]
    if packed:
        path, kind = packed[0]
        yield (
            f"The weights of {len(packed)} modules are packed by torch.ao.quantization and not counted (first: "
            f"{path or 'the network'}, {kind}): count the network before convert(), or an ONNX file of it."
        )
    scripted = [path for path, module in model.named_modules() if isinstance(module, torch.jit.ScriptModule)]
    if scripted:
        yield (
            f"Module {scripted[0]} is scripted, so its layers are not counted; their work is listed: replace it by the "
            "module it was made from."
        )
    if isinstance(model, fx.GraphModule) and not any(rule_of(module) for module in model.modules()):
        yield (
            "The network is a graph of functions without layers, as torch.export gives with .module(): count the "
            "module it was made from, or the program itself, before .module()."
        )


def refuse_without_forward(model: nn.Module, error: Exception) -> None:
    """Raise `InputError` if the error says that a network has no ``forward``, and name the part that has."""
    if not isinstance(error, NotImplementedError) or 'required "forward"' not in str(error):
        return
    sizes = {name: sum(p.numel() for p in child.parameters()) for name, child in model.named_children()}
    parts = sorted((name for name in sizes if sizes[name]), key=lambda name: -sizes[name])
    advice = f": pass the part of it that computes, like its module {' or '.join(parts[:3])}" if parts else ""
    raise InputError(f"{type(model).__name__} must have a forward function to be counted, got none{advice}") from error


def _is_packed(module: nn.Module) -> bool:
    return type(module).__module__.startswith(_PACKED) and callable(getattr(module, "weight", None))
