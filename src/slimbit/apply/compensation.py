"""How much of plain rounding's harm is left after compensation and new statistics, layer by layer."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from slimbit.apply.calibration import Calibration
from slimbit.apply.layers import Bound, bind, first_input
from slimbit.numerics.copies import copied
from slimbit.numerics.moments import PatchSums, patches
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
        calibration: Its calibration; only the first batch is used.

    Returns:
        A number in (0, 1] by layer name; layers that hooks do not reach are left out (nothing repairs them).
    """
    network = copied(model).eval()
    bounds = bind(network, spec)
    shares: dict[str, float] = {}
    for name in calibration.reached:
        bounds[name].module.register_forward_pre_hook(
            _measure(name, bounds[name], calibration, shares), with_kwargs=True
        )
    with torch.no_grad():
        calibration.forward(network, calibration.batches[0])
    return shares


def _measure(name: str, bound: Bound, calibration: Calibration, shares: dict[str, float]) -> Callable[..., None]:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        values = first_input(args, kwargs)
        if name in shares or not isinstance(values, Tensor) or bound.window is None or not values.numel():
            return
        generator = calibration.generator(name, 0)
        sums = PatchSums()
        sums.add(patches(bound.batched(values).float(), bound.window, samples=calibration.samples, generator=generator))
        free = name in calibration.normalized or bound.bias() is not None
        left, whole = (sums.moments(centred=c).inputs.diagonal(dim1=1, dim2=2).mean() for c in (free, False))
        spread = float(left / whole) if 0 < float(whole) < math.inf else 1.0
        # a layer whose input never varies would look free of charge: keep a floor, so that its step stays finite
        shares[name] = max(spread * compensation_factor(damped(sums.moments(centred=free).inputs)), FLOOR)

    return hook


FLOOR = 1e-3
