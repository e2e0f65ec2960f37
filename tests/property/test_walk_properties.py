"""Properties of the predicted signal-to-noise ratio that hold for any setting."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimbit.numerics.walk import equilibrium_signal_to_noise, predicted_signal_to_noise

RATES = st.floats(1e-4, 1.0)
DECAYS = st.floats(1e-5, 2e-3)
MOMENTA = st.floats(0.0, 0.95)
STEPS = st.integers(2, 200)


@given(RATES, DECAYS, MOMENTA, STEPS, st.floats(1.1, 3.0))
def test_it_falls_with_learning_rate_weight_decay_and_steps(
    rate: float, decay: float, momentum: float, steps: int, more: float
) -> None:
    def found(lr: float, wd: float, iterations: int) -> float:
        return predicted_signal_to_noise([lr], iterations, weight_decay=wd, momentum=momentum)[0]

    here = found(rate, decay, steps)
    assert 0 < found(more * rate, decay, steps) < here
    assert found(rate, more * decay, steps) < here
    assert found(rate, decay, steps + 1) < here


@given(st.lists(RATES, min_size=1, max_size=5), DECAYS, MOMENTA, STEPS, st.floats(0.1, 10))
def test_only_ratios_of_learning_rate_and_decay_matter(
    rates: list[float], decay: float, momentum: float, steps: int, scale: float
) -> None:
    one = predicted_signal_to_noise(rates, steps, weight_decay=decay, momentum=momentum)
    other = predicted_signal_to_noise([r * scale for r in rates], steps, weight_decay=decay / scale, momentum=momentum)
    assert one == pytest.approx(other, rel=1e-6)


@given(st.floats(1e-9, 1e-2), STEPS, MOMENTA)
def test_momentum_only_delays_the_noise(rate: float, steps: int, momentum: float) -> None:
    without = equilibrium_signal_to_noise(rate, steps)
    assert without * (1 - 1e-9) <= equilibrium_signal_to_noise(rate, steps, momentum=momentum)
