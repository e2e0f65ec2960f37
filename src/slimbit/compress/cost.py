"""What anything costs that Slimbit can open: a module, a compressed model, a file, a network by name."""

from collections.abc import Iterable
from os import PathLike, fspath
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from slimbit.compress.model import CompressedModel
from slimbit.compress.prepared import PreparedNetwork
from slimbit.measure.cost import cost as cost_of_module
from slimbit.measure.cost import cost_of_survey, with_hardware
from slimbit.measure.cost_config import Steps, cost_config_from
from slimbit.measure.hardware import HardwareLike
from slimbit.records.cost import CostReport
from slimbit.records.errors import InputError
from slimbit.records.network import Per
from slimbit.sources.networks import survey_of
from slimbit.survey.module import explicit_mask, read_weight
from slimbit.survey.result import Survey
from slimbit.survey.trace import Inputs


def cost(
    model: "nn.Module | CompressedModel | PreparedNetwork | ExportedProgram | str | PathLike[str]",
    example_input: Inputs | None = None,
    *,
    bits: float | None = None,
    steps: Steps | None = None,
    per: Per = "mac",
    hardware: HardwareLike | Iterable[HardwareLike] = (),
    batch: int | None = None,
    allow_code: bool = False,
    **counting: Any,
) -> CostReport:
    """What a network costs, layer by layer, in units that no particular chip distorts.

    With ``bits=b`` every layer is rounded with ``step = max|W| / 2^(b-1)`` and clipped to ``2^(b-1) - 0.5`` steps;
    with ``steps`` it is rounded with those and not clipped; with neither the weights are taken as they are.

    ``esn_analog = sum_l c_l sum_i q_i^2``, Eq. (2); ``esn_digital = sum_l c_l sum_i bits(q_i)``, Eq. (3).
    All metrics: `slimbit.records.cost.Metrics`.

    Args:
        model: Any module, left as it is (mode, hooks, buffers, device): masks of `torch.nn.utils.prune` are read,
            pruned weights cost nothing. Or what `slimbit.prune`, `slimbit.quantize` and `slimbit.prepare` return; the
            path of a ``.onnx``, ``.pt2`` or ``.safetensors`` file or of a pruned folder; a network by name; or what
            ``torch.export`` returns.
        example_input: One example with its batch dimension; a tuple or dict for several arguments. Only for a module.
        bits: Bit width, 1 to 16; fractional widths sweep ``max_abs`` smoothly.
        steps: One step for all layers, or by layer name a step or one per filter.
        per: "mac" weighs a weight by its output positions ``c_l``, "parameter" by 1.
        hardware: Hardware cost models: names (`slimbit.hardware_names`), TOML files, functions from a layer's cost
            to a number, or `slimbit.HardwareModel`.
        batch: How many images a module's example, or the inputs of a file, hold; default: learned from what the network
            does with more of them.
        allow_code: Whether code in a ``.pt2`` file, or that a pruned folder names, may run.
        **counting: ``policy``, ``grid``, ``formula``, ``activation_bits`` of
            `slimbit.measure.cost_config.CostConfig`.

    Returns:
        A report without tensors; ``print(report)`` shows it as a table.

    Raises:
        InputError: A network that does not run on the example, weights that are not finite, bits outside 1 to 16,
            steps for layers that do not exist.

    >>> import slimbit, torch
    >>> report = slimbit.cost(torch.nn.Conv2d(3, 8, 3, padding=1, bias=False), torch.zeros(1, 3, 4, 4), bits=1)
    >>> report.total.macs, report.total.esn_digital, report.total.esn_analog
    (3456, 3456, 864.0)
    """
    if isinstance(model, nn.Module):
        if example_input is None:
            raise InputError("example_input must be given for a module, e.g. torch.zeros(1, 3, 32, 32), got none")
        options = {"bits": bits, "steps": steps, "per": per, "hardware": hardware, "batch": batch, **counting}
        return cost_of_module(model, example_input, **options)
    if not isinstance(model, CompressedModel | PreparedNetwork | ExportedProgram | str | PathLike):
        kind = type(model).__name__  # type: ignore[unreachable] # for callers whose types nobody checked
        raise InputError(f"model must be a module, a compressed or prepared network, a path or a name, got {kind}")
    if example_input is not None:
        raise InputError(f"example_input must be given for a module only, got one beside a {type(model).__name__}")
    if isinstance(model, CompressedModel) and model.layers:
        if bits is not None or steps is not None or counting or per != model.cost.per:
            raise InputError(
                "bits, steps and other settings must not be given for a quantized model, which has its own"
            )
        return with_hardware(model.cost, hardware)
    config = cost_config_from(bits=bits, steps=steps, per=per, **counting)
    if isinstance(model, ExportedProgram):
        from slimbit.survey.exported import survey_exported

        return with_hardware(cost_of_survey(survey_exported(model, batch=batch), config), hardware)
    if isinstance(model, PreparedNetwork):
        report = cost_of_survey(model.survey, config, keep=lambda layer: model.masks.get(layer.name))
        return with_hardware(report, hardware)
    if isinstance(model, CompressedModel):
        network = model.model
        survey = Survey(model.spec, lambda layer: read_weight(network, layer))
        return with_hardware(cost_of_survey(survey, config, keep=lambda x: explicit_mask(network, x)), hardware)
    name = model if isinstance(model, str) else fspath(model)
    return with_hardware(cost_of_survey(survey_of(name, batch=batch, allow_code=allow_code), config), hardware)
