"""Survey of a bare safetensors file: weights without a graph."""

from pathlib import Path
from typing import Any

from torch import Tensor

from slimbit.records.containers import check_safetensors
from slimbit.records.errors import InputError
from slimbit.records.network import LayerSpec, NetworkSpec, OtherParameter
from slimbit.survey.collect import module_name
from slimbit.survey.files import existing_file, reading
from slimbit.survey.result import Survey

_STATISTICS = ("running_mean", "running_var")
_FLOATS = ("F16", "BF16", "F32", "F64")
_NOTE = (
    "A safetensors file holds no graph: each tensor of two or more dimensions counts as a layer, its first "
    "dimension as filters, and without output positions only costs per parameter mean anything."
)


def survey_safetensors(path: str | Path) -> Survey:
    """Layers of a safetensors file; only its header is read until a weight is asked for.

    Every floating tensor with two or more dimensions is a layer of kind ``tensor`` without positions (use
    ``per="parameter"``); the others are listed as other parameters. Integers and the running statistics
    of normalization are no parameters.

    Args:
        path: The file.

    Returns:
        The survey; ``survey.weight(layer)`` reads that tensor from the file.

    Raises:
        InputError: The file is missing, damaged, of another format, or without a layer, or with
            floats of 8 bits or fewer.

    Example:
        >>> import tempfile, torch
        >>> from safetensors.torch import save_file
        >>> file = tempfile.mkdtemp() + "/net.safetensors"
        >>> save_file({"fc.weight": torch.ones(2, 3), "fc.bias": torch.ones(2)}, file)
        >>> survey = survey_safetensors(file)
        >>> [(layer.name, layer.shape, layer.positions) for layer in survey.spec.layers]
        [('fc', (2, 3), 0)]
        >>> survey.spec.other_parameters[0].elements
        2
    """
    file = existing_file(path, "safetensors")
    check_safetensors(file, "the safetensors file")
    with reading(file, "safetensors"):
        shapes = _floating_shapes(file)
    layers: dict[str, LayerSpec] = {}
    others = []
    for key, shape in shapes.items():
        if len(shape) < 2:
            others.append(OtherParameter(key, shape[0] if shape else 1, "tensor"))
            continue
        if 0 in shape:
            raise InputError(f"layer {key!r} of {file} must have weights, got shape {shape}")
        name = module_name(key) if module_name(key) not in shapes else key
        layers[name] = LayerSpec(name=name, kind="tensor", weight_key=key, shape=shape, positions=0, calls=0)
    if not layers:
        raise InputError(f"{file} must hold a floating tensor of two or more dimensions, got none")
    spec = NetworkSpec(file.stem, tuple(layers.values()), tuple(others), notes=(_NOTE,))
    return Survey(spec, lambda layer: _read(file, layer.weight_key))


def _floating_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    shapes = {}
    with _open(file) as tensors:
        for key in tensors.offset_keys():
            part = tensors.get_slice(key)
            if not part.get_dtype().startswith(("F", "BF")) or key.endswith(_STATISTICS):
                continue
            if part.get_dtype() not in _FLOATS:  # 8 bits and fewer: few operations exist for them
                raise InputError(
                    f"tensor {key!r} of {file} must be of type {', '.join(_FLOATS)}, got {part.get_dtype()}"
                )
            shapes[key] = tuple(part.get_shape())
    return shapes


def _read(file: Path, key: str) -> Tensor:
    with reading(file, "safetensors"), _open(existing_file(file, "safetensors")) as tensors:
        weight: Tensor = tensors.get_tensor(key)
        return weight


def _open(file: Path) -> Any:
    from safetensors import safe_open

    return safe_open(file, framework="pt")
