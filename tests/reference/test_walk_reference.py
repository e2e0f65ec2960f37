"""The closed form against a simulated walk: SGD with momentum on scale-invariant weights, in equilibrium and after."""

from collections.abc import Sequence

import numpy as np
import pytest

from slimbit.numerics.walk import decay, equilibrium_signal_to_noise, predicted_signal_to_noise, walk_rate


def simulate(
    rates: Sequence[float], iterations: int, *, weight_decay: float, momentum: float, burn_in: int, start: float = 1.0
) -> list[float]:
    """S/N per epoch of 16 walks in 500 dimensions; the gradient is orthogonal to w and as large as 1 / ||w||."""
    random = np.random.default_rng(3)
    w = random.standard_normal((16, 500))
    # equilibrium: ||w||^4 = learning rate / (2 weight_decay (1 - momentum)) for gradients of length 1 / ||w||
    square = np.sqrt(rates[0] / (2 * weight_decay * (1 - momentum)))
    w *= np.sqrt(start * square) / np.linalg.norm(w, axis=1, keepdims=True)
    buffer = np.zeros_like(w)

    def step(rate: float) -> None:
        g = random.standard_normal(w.shape)
        squares = (w * w).sum(1, keepdims=True)
        g -= (g * w).sum(1, keepdims=True) / squares * w
        g /= np.sqrt((g * g).sum(1, keepdims=True) * squares)
        buffer[...] = momentum * buffer + g + weight_decay * w
        w[...] -= rate * buffer

    for _ in range(burn_in):
        step(rates[0])
    found = []
    for rate in rates:
        begin, signal, noise = w.copy(), 0.0, 0.0
        for _ in range(iterations):
            step(rate)
            signal += (w * w).sum()
            noise += ((w - begin) ** 2).sum()
        found.append(signal / noise)
    return found


def test_equilibrium_at_the_settings_of_the_specification() -> None:
    found = np.mean(simulate([0.1] * 3, 500, weight_decay=5e-4, momentum=0.9, burn_in=1000))
    assert found == pytest.approx(4.332, rel=0.05)  # the short form; momentum accounts for most of the difference
    rate = walk_rate(0.1, 5e-4, 0.9)
    assert found == pytest.approx(equilibrium_signal_to_noise(rate, 500, momentum=0.9), rel=0.02)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(("weight_decay", "iterations"), [(5e-4, 400), (2e-3, 200), (1e-3, 60)])
def test_before_and_after_a_drop_of_the_learning_rate(momentum: float, weight_decay: float, iterations: int) -> None:
    rates = [0.1 * (1 - momentum) * 10] * 2 + [0.01 * (1 - momentum) * 10] * 3  # the same walk_rate for both momenta
    settings = {"weight_decay": weight_decay, "momentum": momentum}
    found = simulate(rates, iterations, burn_in=600, **settings)
    wanted = predicted_signal_to_noise(rates, iterations, **settings)
    assert found == pytest.approx(wanted, rel=0.05)


def test_away_from_equilibrium() -> None:
    settings = {"weight_decay": 1e-3, "momentum": 0.9}
    found = simulate([0.05] * 4, 300, burn_in=0, start=3.0, **settings)
    wanted = predicted_signal_to_noise([0.05] * 4, 300, start=3.0, **settings)
    # the first epoch begins without momentum, which the closed form does not know
    assert found[1:] == pytest.approx(wanted[1:], rel=0.05)


def test_a_weight_without_gradient_decays() -> None:
    w, buffer = 1.0, 0.0
    for _ in range(500):
        buffer = 0.9 * buffer + 1e-3 * w
        w -= 0.05 * buffer
    assert w == pytest.approx(decay([0.05] * 500, 1e-3, 0.9), rel=0.01)
