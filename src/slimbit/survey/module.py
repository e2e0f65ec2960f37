"""Look once at any `nn.Module`: its layers, how often an image meets each weight, and what no layer explains.

The network itself is never run and never touched. A skeleton of it (the same modules with shape-only "meta"
tensors instead of weights) sees one forward pass; only where that is impossible, because the network's control
flow reads values, does a full copy run on the example.
"""

import copy
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from slimbit.numerics.copies import copied, unwrapped
from slimbit.numerics.grid import layer_weight
from slimbit.records.errors import InputError
from slimbit.records.network import LayerSpec, NetworkSpec, OtherParameter, OtherWork
from slimbit.survey.batch import Retrace, calls_per_image, described, tensors_in, with_tensors
from slimbit.survey.computed import as_computed
from slimbit.survey.hints import hints, refuse_without_forward
from slimbit.survey.kinds import Use, counted_type, rule_of
from slimbit.survey.result import Survey
from slimbit.survey.trace import Call, Inputs, trace_calls

LayerKey = tuple[str, str]


def survey_network(model: nn.Module, example_input: Inputs, *, name: str = "", batch: int | None = None) -> Survey:
    """Survey a network by one forward pass of its skeleton.

    Args:
        model: Any module; it is not run, its mode, hooks, buffers and device stay as they are.
        example_input: One example with its batch dimension, e.g. ``torch.zeros(1, 3, 32, 32)``; a tuple for
            several arguments, a dict for keyword arguments. Counts are per image.
        name: Name for reports; default: the type of the module.
        batch: How many images the example holds; default: found out by running on twice as many where the example
            has a dimension that may be a batch (`slimbit.survey.batch`).

    Returns:
        Layers in order of first use, other parameters, other work, and a reader of weights.

    Raises:
        InputError: The network does not run on the example, has lazy or zero-size layers, or cannot be copied; the
            batch does not divide the positions of a layer.

    >>> survey = survey_network(nn.Conv2d(3, 8, 3, padding=1), torch.zeros(1, 3, 4, 4))
    >>> survey.spec.layers[0].macs  # 16 positions x 8 filters x 27 weights
    3456
    """
    model = unwrapped(model)
    refuse_what_cannot_be_counted(model)
    calls, retrace = _traced(model, example_input)
    calls, note = calls_per_image(model, example_input, calls, retrace, batch=batch)
    calls, unlike = as_computed(model, calls)
    layers = layers_of_calls(model, calls)
    unknown = _unknown(calls)
    spec = NetworkSpec(
        name=name or type(model).__name__,
        layers=tuple(layers.values()),
        other_parameters=_other_parameters(model, layers.values(), unlike),
        other_work=_other_work(calls, layers),
        notes=(*_notes(model, unlike), *hints(model), *filter(None, [note]), *unknown.values()),
        uncounted=tuple(unknown),
        inputs=tuple(tuple(x.shape) for x in tensors_in(example_input)),
    )
    return Survey(spec, lambda layer: read_weight(model, layer))


def read_weight(model: nn.Module, layer: LayerSpec) -> Tensor:
    """The float weight of a layer, filters first, detached; a view of the model's own tensor where possible.

    Args:
        model: The surveyed network.
        layer: One of its layers.
    """
    weight = _tensor(unwrapped(model), layer.weight_key)
    assert weight is not None
    return layer_weight(weight, layer)


def explicit_mask(model: nn.Module, layer: LayerSpec) -> Tensor | None:
    """Which weights a `torch.nn.utils.prune` mask keeps, filters first, or None where there is no mask."""
    mask = _tensor(unwrapped(model), f"{layer.weight_key}_mask")
    return None if mask is None else layer_weight(mask, layer) != 0


def _traced(model: nn.Module, example_input: Inputs) -> tuple[list[Call], Retrace]:
    """The calls of one pass, and how to make another on other examples."""

    def on_shapes(example: Inputs) -> list[Call]:
        return trace_calls(_copy(model, skeleton=True), with_tensors(example, _to_meta))

    def on_values(example: Inputs) -> list[Call]:
        return trace_calls(_copy(model, skeleton=False), example)

    if not isinstance(example_input, Tensor | Mapping | Sequence) or isinstance(example_input, str):
        raise InputError(f"the example input must be a tensor, a tuple or a dict, got {type(example_input).__name__}")
    try:
        return on_shapes(example_input), on_shapes
    except InputError:
        raise
    except Exception:  # noqa: BLE001, S110 - whatever shapes alone cannot do, values may
        pass
    try:
        return on_values(example_input), on_values
    except InputError:
        raise
    except Exception as error:
        refuse_without_forward(model, error)
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"the example input must be one that {type(model).__name__} can run on, "
            f"got {described(example_input)}: {reason}"
        ) from error


def _copy(model: nn.Module, *, skeleton: bool) -> nn.Module:
    """A copy in evaluation mode; as a skeleton, every tensor is replaced by its shape."""
    memo: dict[int, Any] = {}
    if skeleton:
        for module in model.modules():
            for store in (module._parameters, module._buffers, module.__dict__):
                memo.update({id(v): _to_meta(v) for v in store.values() if isinstance(v, Tensor)})
    try:
        clone = copied(model, memo)
    except Exception as error:
        raise InputError(f"{type(model).__name__} must support copy.deepcopy to be surveyed, got {error}") from error
    for module in clone.modules():
        module.training = False
        if skeleton and type(module) in _SHAPE_KEEPING:
            # no MACs, same shape out as in; torch's shape-only versions take longer than all the rest
            module.forward = nn.Identity().forward
    return clone


_SHAPE_KEEPING = frozenset(
    {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish}
)


def _to_meta(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    meta = torch.empty_like(value, device="meta", requires_grad=False)
    return nn.Parameter(meta, requires_grad=False) if isinstance(value, nn.Parameter) else meta


def layers_of_calls(model: nn.Module, calls: Sequence[Call]) -> dict[LayerKey, LayerSpec]:
    """One layer per weight of a module, positions added up over its calls for one image, in order of first use."""
    positions: Counter[LayerKey] = Counter()
    times: Counter[LayerKey] = Counter()
    first: dict[LayerKey, Use] = {}
    for call in calls:
        for use in call.uses:
            key = (call.path, use.part)
            positions[key] += use.positions
            times[key] += 1
            first.setdefault(key, use)
    seen: dict[Any, str] = {}
    return {
        key: _layer(model, key, use, seen, positions=positions[key], calls=times[key]) for key, use in first.items()
    }


def _layer(model: nn.Module, key: LayerKey, use: Use, seen: dict[Any, str], *, positions: int, calls: int) -> LayerSpec:
    path, part = key
    module = model.get_submodule(path)
    stored = _tensor(module, use.parameter)
    assert stored is not None
    name = _join(path, part) or type(module).__name__
    groups = int(getattr(module, "groups", 1))
    shape = _filters_first_shape(use, tuple(stored.shape), groups)
    shared_with = seen.setdefault((_identity(module, use.parameter), use.rows), name)
    bias = _tensor(module, use.bias)
    owns_bias = bias is not None and seen.setdefault((_identity(module, use.bias), use.rows), name) == name
    return LayerSpec(
        name=name,
        kind=use.kind,
        weight_key=_join(path, use.parameter),
        shape=shape,
        groups=groups,
        positions=positions,
        calls=calls,
        transposed=use.kind.startswith("conv_transpose"),
        bias_parameters=shape[0] if owns_bias else 0,
        shared_with="" if shared_with == name else shared_with,
        rows=use.rows,
    )


def _filters_first_shape(use: Use, shape: tuple[int, ...], groups: int) -> tuple[int, ...]:
    if use.rows is not None:
        return (use.rows[1] - use.rows[0], *shape[1:])
    if use.kind.startswith("conv_transpose"):
        return (shape[1] * groups, shape[0] // groups, *shape[2:])
    return shape


def _identity(module: nn.Module, parameter: str) -> int:
    """What makes two layers share one memory: the stored parameter, or what a parametrization computes it from."""
    owner, attribute = _owner(module, parameter)
    if parametrize.is_parametrized(owner, attribute):
        return id(owner.parametrizations[attribute])  # type: ignore[index] # a ModuleDict, as asked above
    return id(getattr(owner, attribute))


def _other_parameters(
    model: nn.Module, layers: Iterable[LayerSpec], unlike: Mapping[str, str]
) -> tuple[OtherParameter, ...]:
    counted = {id(p) for layer in layers for p in _parameters_of(model, layer)}
    ran = {layer.weight_key.rpartition(".")[0] for layer in layers}
    others = []
    for name, parameter in model.named_parameters():
        if id(parameter) in counted:
            continue
        path = name.rpartition(".")[0]
        module = model.get_submodule(path)
        idle = path not in ran and rule_of(module) is not None
        others.append(
            OtherParameter(
                name, parameter.numel(), type(module).__name__ + idle * f" ({unlike.get(path, 'never called')})"
            )
        )
    return tuple(others)


def _notes(model: nn.Module, unlike: Mapping[str, str]) -> Iterator[str]:
    """One sentence for all modules of a type that are not counted for the same reason."""
    alike: dict[tuple[type[nn.Module], str], list[str]] = {}
    for path, why in unlike.items():
        alike.setdefault((type(model.get_submodule(path)), why), []).append(path or "the network")
    for (kind, why), paths in alike.items():
        counted = counted_type(model.get_submodule(paths[0].removeprefix("the network")))
        assert counted is not None
        yield (
            f"{kind.__name__} ({len(paths)} modules, the first is {paths[0]}) is not counted as the "
            f"{counted.__name__} it derives from, because it {why}."
        )


def _unknown(calls: Iterable[Call]) -> dict[str, str]:
    """A sentence for each operation of another package: nobody knows what it multiplies."""
    places: dict[str, list[str]] = {}
    for call in calls:
        for operation, count in call.unknown.items():
            places.setdefault(operation, []).extend([call.path or "the network"] * count)
    return {
        operation: f"{operation} is not counted ({len(paths)} calls, the first in {paths[0]})."
        for operation, paths in places.items()
    }


def _parameters_of(model: nn.Module, layer: LayerSpec) -> list[Tensor]:
    """Weight and bias of a layer, or what its weight is computed from."""
    owner, attribute = _owner(model, layer.weight_key)
    biases = {"bias", "in_proj_bias"}
    # weight_norm, spectral_norm and prune keep the trained tensor beside the computed one: weight_v, weight_orig
    found: list[Tensor] = [
        parameter
        for key, parameter in owner._parameters.items()
        if parameter is not None and (key in biases or key == attribute or key.startswith(f"{attribute}_"))
    ]
    if parametrize.is_parametrized(owner):
        found += list(owner.parametrizations.parameters())  # type: ignore[union-attr]
    return found


def _other_work(calls: Sequence[Call], layers: Mapping[LayerKey, LayerSpec]) -> tuple[OtherWork, ...]:
    """MACs of each module's own operations beyond what its counted weights explain."""
    macs: Counter[str] = Counter()
    times: Counter[str] = Counter()
    operations: dict[str, dict[tuple[str, tuple[str, ...]], None]] = {}
    for call in calls:
        used = [layers[call.path, use.part] for use in call.uses]
        explained = sum(use.positions * layer.weights for use, layer in zip(call.uses, used, strict=True))
        excess = sum(call.work.values()) - explained
        if excess > 0:
            macs[call.path] += excess
            times[call.path] += 1
            keys = {layer.weight_key for layer in used}
            foreign = [entry for entry in call.work if keys.isdisjoint(entry[1])]
            operations.setdefault(call.path, {}).update(dict.fromkeys(foreign or call.work))
    return tuple(
        OtherWork(
            name=path,
            operation=", ".join(dict.fromkeys(operation for operation, _ in operations[path])),
            macs=count,
            calls=times[path],
            parameters=tuple(dict.fromkeys(name for _, names in operations[path] for name in names)),
        )
        for path, count in macs.items()
    )


def refuse_what_cannot_be_counted(model: nn.Module) -> None:
    """Raise `InputError` for what is no Python module, and for parameters without a shape or without elements."""
    if not isinstance(model, nn.Module):
        raise InputError(f"the network must be a torch.nn.Module, got {_kind(model)}")
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError("the network must be a Python module, got a scripted one: pass the module it was made from")
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise InputError(f"parameter {name} must have a shape, got a lazy one: run the network once first")
        if parameter.numel() == 0:
            raise InputError(f"parameter {name} must have at least one element, got shape {tuple(parameter.shape)}")


def _kind(value: object) -> str:
    program = type(value).__name__ == "ExportedProgram"
    return type(value).__name__ + program * ": count it with slimbit.cost, or pass the module"


def _owner(module: nn.Module, key: str) -> tuple[nn.Module, str]:
    path, _, attribute = key.rpartition(".")
    return module.get_submodule(path), attribute


def _tensor(module: nn.Module, key: str) -> Tensor | None:
    """The tensor at a dotted attribute ("" and None give None); a computed weight is computed on a copy."""
    if not key:
        return None
    owner, attribute = _owner(module, key)
    if parametrize.is_parametrized(owner, attribute):
        # computing it may update buffers (spectral norm in training mode)
        owner = copy.deepcopy(owner).eval()
    with torch.no_grad():
        value = getattr(owner, attribute, None)
    return value.detach() if isinstance(value, Tensor) else None


def _join(*parts: str) -> str:
    return ".".join(filter(None, parts))
