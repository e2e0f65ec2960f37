"""The random walk of weights under SGD in closed form: signal-to-noise ratio and decay from the settings alone.

Everything here is derived, see docs/explanation/random-walk.md, which also says where it breaks. The weights of a
convolution before a batch normalization are scale-invariant: their gradient is orthogonal to them and as large as
``1 / ||W||``. With ``e = learning_rate / (1 - momentum)``, ``a = e * weight_decay`` and ``v = ||W||^2``::

    dv/dt = -2 a v + e^2 G / v        E[W_i . W_start] = v_start exp(-integral of a)

per optimizer step; G is the mean squared gradient on the unit sphere, and cancels out of every ratio.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from slimbit.records.errors import InputError
from slimbit.records.signal import ratio

Rates = float | Sequence[float] | NDArray[np.float64]
"""Learning rate of an epoch: one number, or one per step."""

SMALL = 1e-4
"""Of ``a I``: below it three terms of the series are exact to 12 digits, where the closed form begins to cancel."""


def walk_rate(learning_rate: float, weight_decay: float, momentum: float) -> float:
    """``a = learning_rate * weight_decay / (1 - momentum)`` (derived, see docs/explanation/random-walk.md).

    Args:
        learning_rate: Positive.
        weight_decay: Of the L2 kind, that is added to the gradient; positive.
        momentum: From 0 to below 1.

    Returns:
        Share of its norm that a weight without gradient loses per optimizer step.

    Raises:
        InputError: A setting outside its range.

    >>> round(walk_rate(0.1, 5e-4, 0.9), 12)
    0.0005
    """
    _positive("learning_rate", learning_rate)
    return learning_rate * _decay_scale(weight_decay, momentum)


def equilibrium_signal_to_noise(rate: float, iterations: int, *, momentum: float = 0.0) -> float:
    """``S/N = 1 / (2 (1 - f))``, ``f = mean_i exp(-a i) = (1 - exp(-a I)) / (I (exp(a) - 1))`` (derived).

    The signal-to-noise ratio of an epoch by the paper's Eq. (5), at a constant learning rate, once decay and
    gradient balance: the mean over ``i = 1 ... I`` of ``E||W_i - W_start||^2 = 2 v (1 - exp(-a i))``. For many steps
    ``I (exp(a) - 1)`` is ``a I``: ``S/N = 1 / (2 (1 - (1 - exp(-a I)) / (a I)))``.

    Momentum smooths the gradients, so that the walk gets off the spot a little later: ``exp(-a i)`` is then
    ``exp(-a i) + a L (exp(-a i) - momentum^i)`` with ``L = 2 momentum / (1 - momentum^2)``. It matters where an epoch
    is not much longer than L, and is left out unless the momentum is told.

    Args:
        rate: ``a``, from `walk_rate`; small against 1.
        iterations: ``I``, optimizer steps of an epoch.
        momentum: From 0 to below 1.

    Raises:
        InputError: A number outside its range.

    >>> a = walk_rate(0.1, 5e-4, 0.9)
    >>> round(equilibrium_signal_to_noise(a, 500), 3), round(equilibrium_signal_to_noise(a, 500, momentum=0.9), 3)
    (4.332, 4.492)
    """
    _positive("rate", rate)
    _check_iterations(iterations)
    lag = _lag(momentum)
    n = iterations + 1
    if rate * iterations < SMALL:  # mean of 1 - exp(-a i) = a i - (a i)^2 / 2 + (a i)^3 / 6 - ...
        lost = rate * n / 2 * (1 - rate * (2 * iterations + 1) / 6 + rate * rate * iterations * n / 12)
    else:
        lost = 1 + math.expm1(-rate * iterations) / (iterations * math.expm1(rate))
    kept = momentum * (1 - momentum**iterations) / (1 - momentum) / iterations  # mean of momentum^i
    return ratio(0.5, lost - rate * lag * (1 - lost - kept))


def decay(learning_rates: ArrayLike, weight_decay: float, momentum: float) -> float:
    """``exp(-sum_t lr_t * weight_decay / (1 - momentum))``: what is left of a filter's norm without any gradient.

    Args:
        learning_rates: Of every optimizer step, zero or positive; any shape.
        weight_decay: As in `walk_rate`.
        momentum: As in `walk_rate`.

    Raises:
        InputError: A setting outside its range.

    >>> round(decay([0.1] * 500, 5e-4, 0.9), 4)  # exp(-0.25)
    0.7788
    """
    rates = _checked_rates(np.ravel(np.asarray(learning_rates, dtype=np.float64)), "learning_rates")
    return math.exp(-math.fsum(rates) * _decay_scale(weight_decay, momentum))


def epochs_until_dead(rate: float, iterations: int, threshold: float = 0.05) -> float:
    """``ln(1 / threshold) / (rate * iterations)``: epochs until a filter without gradient counts as dead (derived).

    Of a filter that begins at the 90th percentile of its layer, while the norms of the others stay.

    Args:
        rate: From `walk_rate`.
        iterations: Optimizer steps of an epoch.
        threshold: Share of the 90th percentile below which a filter is dead, see
            `slimbit.records.signal.DEAD_THRESHOLDS`.

    Raises:
        InputError: A number that is not positive, or a threshold of 1 and more.

    >>> round(epochs_until_dead(walk_rate(0.1, 5e-4, 0.9), 500), 1)  # ln(20) / 0.25
    12.0
    """
    _positive("rate", rate)
    _check_iterations(iterations)
    if not (isinstance(threshold, int | float) and 0 < threshold < 1):
        raise InputError(f"threshold must be between 0 and 1, got {threshold!r}")
    return -math.log(threshold) / (rate * iterations)


def predicted_signal_to_noise(
    learning_rates_per_epoch: Sequence[Rates],
    iterations: int,
    *,
    weight_decay: float,
    momentum: float,
    start: float = 1.0,
) -> tuple[float, ...]:
    """S/N of every epoch by the paper's Eq. (5), for any schedule (derived, see docs/explanation/random-walk.md).

    With ``u = v^2`` the walk is linear, ``du/dt = -4 a u + 2 e^2 G``, and is solved exactly from step to step; then
    ``noise_i = v_i + v_start - 2 v_start exp(-A_i)``, ``A_i`` the integral of ``a`` since the epoch began, less what
    momentum smooths away (`equilibrium_signal_to_noise`), and S/N is the mean of ``v`` over the mean of the noise.

    Args:
        learning_rates_per_epoch: For each epoch its learning rate, or one per step (then their number counts, not
            ``iterations``).
        iterations: Optimizer steps of an epoch that is given as one learning rate.
        weight_decay: As in `walk_rate`.
        momentum: As in `walk_rate`.
        start: ``||W||^2`` at the beginning over its equilibrium at the first learning rate above zero.

    Returns:
        One power ratio per epoch; infinite where the learning rate is zero throughout.

    Raises:
        InputError: A setting outside its range, or no learning rate above zero.

    >>> found = predicted_signal_to_noise([0.1, 0.01, 0.01], 500, weight_decay=5e-4, momentum=0.9)
    >>> [round(x, 1) for x in found]  # equilibrium, what the paper calls overshoot, and the way back
    [4.5, 374.3, 344.7]
    """
    _check_iterations(iterations)
    _positive("start", start)
    scale = _decay_scale(weight_decay, momentum)
    epochs = [_per_step(rates, iterations, place) for place, rates in enumerate(learning_rates_per_epoch, 1)]
    first = next((rate for rates in epochs for rate in rates if rate > 0), None)
    if first is None:
        raise InputError("learning_rates_per_epoch must hold a learning rate above 0, got none")
    found = []
    square = float(start) ** 2 * first  # u in units of G / (2 weight_decay (1 - momentum)): equilibrium = learning rate
    for rates in epochs:
        signal, noise, square = _epoch(rates, square, scale, momentum=momentum)
        found.append(ratio(signal, noise))
    return tuple(found)


def _epoch(rates: NDArray[np.float64], square: float, scale: float, *, momentum: float) -> tuple[float, float, float]:
    """Mean of ``v`` and of the noise over the steps of an epoch, and ``u = v^2`` at its end.

    Differences to the beginning are summed up, not subtracted: noise is far smaller than signal in slow epochs.
    """
    keeps = np.exp(-4 * rates * scale)
    gains = -np.expm1(-4 * rates * scale) * (rates - square)
    moved = np.fromiter(_moves(keeps, gains), dtype=np.float64, count=len(rates))  # u_i - u_start
    norm = math.sqrt(square)
    norms = np.sqrt(square + moved)
    faded = -np.expm1(-np.cumsum(rates * scale))  # 1 - exp(-A_i)
    lags = _lag(momentum) * (1 - faded - momentum ** np.arange(1.0, len(rates) + 1))
    noises = moved / (norms + norm) + 2 * norm * faded - 2 * rates * scale * rates / norms * lags  # e^2 G / v a step
    return float(norms.mean()), float(noises.mean()), float(square + moved[-1])


def _moves(keeps: NDArray[np.float64], gains: NDArray[np.float64]) -> Iterator[float]:
    moved = 0.0
    for keep, gain in zip(keeps.tolist(), gains.tolist(), strict=True):
        moved = moved * keep + gain
        yield moved


def _per_step(rates: Rates, iterations: int, epoch: int) -> NDArray[np.float64]:
    where = f"learning rates of epoch {epoch}"
    values = np.asarray(rates, dtype=np.float64)
    if values.ndim > 1 or values.size == 0:
        raise InputError(f"{where} must be one number or one per step, got shape {values.shape}")
    return _checked_rates(np.full(iterations, float(values)) if values.ndim == 0 else values, where)


def _checked_rates(rates: NDArray[np.float64], where: str) -> NDArray[np.float64]:
    wrong = rates[~(np.isfinite(rates) & (rates >= 0))]
    if len(wrong):
        raise InputError(f"{where} must be finite numbers from 0, got {float(wrong[0])}")
    return rates


def _decay_scale(weight_decay: float, momentum: float) -> float:
    """``weight_decay / (1 - momentum)``."""
    _positive("weight_decay", weight_decay)
    _lag(momentum)
    return weight_decay / (1 - momentum)


def _lag(momentum: float) -> float:
    """Steps by which the variance of a sum of smoothed gradients stays behind the number of its steps."""
    if not (isinstance(momentum, int | float) and 0 <= momentum < 1):
        raise InputError(f"momentum must be from 0 to below 1, got {momentum!r}")
    return 2 * momentum / (1 - momentum**2)


def _check_iterations(iterations: int) -> None:
    if not isinstance(iterations, int) or isinstance(iterations, bool) or iterations < 1:
        raise InputError(f"iterations must be a whole number from 1, got {iterations!r}")


def _positive(what: str, value: float) -> None:
    number = isinstance(value, int | float | np.floating | np.integer) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and value > 0):
        raise InputError(f"{what} must be a positive number, got {value!r}")
