"""How much of plain rounding's harm is left after compensation and new statistics, layer by layer."""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from slimbit.apply.attention import open_attention
from slimbit.apply.calibration import Calibration
from slimbit.apply.layers import bind, first_input
from slimbit.apply.lockstep import Lockstep
from slimbit.numerics.copies import copied
from slimbit.numerics.rounding import compensation_factor, damped
from slimbit.records.network import NetworkSpec


def compensation_factors(model: nn.Module, spec: NetworkSpec, calibration: Calibration) -> dict[str, float]:
    """Factor by which compensation lowers each layer's sensitivity, for `slimbit.plan.inputs.PlanInputs`.

    The Fisher sensitivity charges every weight error in full. Two parts of it are free: the part that moves only
    the mean output where a bias or BatchNorm absorbs it, and the part that the other columns repair. What is left is
    ``tr(cov) / tr(H) * mean_j 1 / U_jj^2`` (see `compensation_factor`). Layers differ by several times, so closed forms
    that leave it out give well-conditioned layers too few bits.

    Args:
        model: The float network; not changed.
        spec: Its survey.
        calibration: Its calibration.

    Returns:
        A number in (0, 1] by layer name; layers that hooks do not reach are left out (nothing repairs them).
    """
    network = open_attention(copied(model).eval())
    bounds = bind(network, spec)
    shares: dict[str, float] = {}

    def measure(name: str, values: dict[int, Tensor]) -> None:
        if name in shares:
            return
        sums = calibration.patch_sums(bounds[name], values)
        free = name in calibration.normalized or bounds[name].bias() is not None
        inputs = sums.moments(centred=free).inputs
        left, whole = (x.diagonal(dim1=1, dim2=2).mean() for x in (inputs, sums.moments(centred=False).inputs))
        spread = float(left / whole) if 0 < float(whole) < math.inf else 1.0
        # a layer whose input never varies would look free of charge: keep a floor, so that its step stays finite
        shares[name] = max(spread * compensation_factor(damped(inputs)), FLOOR)

    lockstep = Lockstep(network, calibration.batches, calibration.forward, measure, halved=calibration.halved)
    for name in calibration.reached:
        bounds[name].module.register_forward_pre_hook(_hook(name, lockstep), with_kwargs=True)
    lockstep.run(calibration.reached.index)
    return shares


def _hook(name: str, lockstep: Lockstep) -> Callable[..., None]:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        values = first_input(args, kwargs)
        if isinstance(values, Tensor) and values.numel():
            lockstep.wait(name, values)

    return hook


FLOOR = 1e-3
