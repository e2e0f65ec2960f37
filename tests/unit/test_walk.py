"""The closed form of the weights' random walk: hand-computed numbers, limits, and what it refuses."""

import math

import numpy as np
import pytest

from slimbit.numerics.walk import (
    decay,
    epochs_until_dead,
    equilibrium_signal_to_noise,
    predicted_signal_to_noise,
    walk_rate,
)
from slimbit.records.errors import InputError

SETTINGS = {"weight_decay": 5e-4, "momentum": 0.9}


def test_rate_by_hand() -> None:
    assert walk_rate(0.1, 5e-4, 0.9) == pytest.approx(0.1 * 5e-4 / 0.1)
    assert walk_rate(0.3, 1e-3, 0.0) == pytest.approx(3e-4)


def test_the_number_of_the_specification() -> None:
    # a = 5e-4; mean of exp(-a i), i = 1 ... 500: 0.221199 / (500 * 5.00125e-4) = 0.884576; 1 / (2 * 0.115424) = 4.332
    assert equilibrium_signal_to_noise(5e-4, 500) == pytest.approx(4.332, abs=5e-4)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(("rate", "iterations"), [(5e-4, 500), (1e-7, 300), (1e-3, 1), (1e-12, 7), (9.99e-7, 100)])
def test_equilibrium_is_the_plain_mean_over_the_steps(rate: float, iterations: int, momentum: float) -> None:
    lag = 2 * momentum / (1 - momentum**2)
    noise = [
        -math.expm1(-rate * i) - rate * lag * (math.exp(-rate * i) - momentum**i) for i in range(1, iterations + 1)
    ]
    expected = 1 / (2 * math.fsum(noise) / iterations)
    assert equilibrium_signal_to_noise(rate, iterations, momentum=momentum) == pytest.approx(expected, rel=1e-9)


def test_series_and_closed_form_meet() -> None:
    below, above = (equilibrium_signal_to_noise(1e-6 * near, 100) * near for near in (1 - 1e-9, 1 + 1e-9))
    assert below == pytest.approx(above, rel=1e-10)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("learning_rate", [1e-4, 0.1, 1.0])
def test_a_constant_learning_rate_is_the_equilibrium(learning_rate: float, momentum: float) -> None:
    found = predicted_signal_to_noise([learning_rate] * 3, 390, weight_decay=5e-4, momentum=momentum)
    rate = walk_rate(learning_rate, 5e-4, momentum)
    assert found == pytest.approx([equilibrium_signal_to_noise(rate, 390, momentum=momentum)] * 3, rel=1e-9)


def test_overshoot_after_a_drop_and_the_way_back() -> None:
    rates = [0.1] * 2 + [0.01] * 300
    before, after, *rest = predicted_signal_to_noise(rates, 500, **SETTINGS)[1:]
    assert 57 < after / before < 89
    assert all(later < earlier for earlier, later in zip([after, *rest], rest, strict=False))
    # relaxed: the equilibrium of the lower rate, about ten times that of the higher one
    assert rest[-1] == pytest.approx(equilibrium_signal_to_noise(5e-5, 500, momentum=0.9), rel=1e-3)
    assert rest[-1] / before == pytest.approx(10, rel=0.1)


def test_an_epoch_may_be_given_step_by_step() -> None:
    per_epoch = predicted_signal_to_noise([0.1, 0.01, 0.0], 100, **SETTINGS)
    per_step = predicted_signal_to_noise([[0.1] * 100, np.full(100, 0.01), 0.0], 100, **SETTINGS)
    assert per_epoch == pytest.approx(per_step)
    assert per_epoch[-1] == math.inf  # nothing moves at learning rate 0
    same = math.sqrt(10)  # the squared norm that is equilibrium at 0.1, seen from 0.01
    rising, low = (
        predicted_signal_to_noise([rates], 100, start=same, **SETTINGS)[0]
        for rates in (np.linspace(0.01, 0.1, 100), 0.01)
    )
    assert predicted_signal_to_noise([0.1], 100, **SETTINGS)[0] < rising < low


def test_away_from_equilibrium_the_norm_decides() -> None:
    # four times the squared norm v: four times the signal, and steps of size e^2 G / v make a quarter of the noise
    large, usual, small = (predicted_signal_to_noise([0.01], 20, start=x, **SETTINGS)[0] for x in (4.0, 1.0, 0.25))
    assert large / usual == pytest.approx(16, rel=0.05)
    assert usual / small == pytest.approx(16, rel=0.05)
    long = predicted_signal_to_noise([0.1] * 60, 500, start=4.0, **SETTINGS)
    assert long[-1] == pytest.approx(equilibrium_signal_to_noise(5e-4, 500, momentum=0.9), rel=1e-3)


def test_decay_by_hand() -> None:
    assert decay([0.1] * 500, 5e-4, 0.9) == pytest.approx(math.exp(-0.25))
    assert decay([[0.1, 0.2], [0.3, 0.0]], 1e-3, 0.5) == pytest.approx(math.exp(-0.6 * 1e-3 / 0.5))
    assert decay([], 1e-3, 0.5) == 1.0


def test_epochs_until_dead_is_where_decay_meets_the_threshold() -> None:
    epochs = epochs_until_dead(walk_rate(1.81, 5e-4, 0.9), 250)
    assert epochs == pytest.approx(1.32, abs=0.005)  # ln 20 = 2.9957 over 1.81 * 5e-4 / 0.1 * 250 = 2.2625
    assert decay([1.81] * round(250 * epochs), 5e-4, 0.9) == pytest.approx(0.05, rel=0.01)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: walk_rate(0.0, 5e-4, 0.9), "learning_rate must be a positive number, got 0.0"),
        (lambda: walk_rate(math.nan, 5e-4, 0.9), "learning_rate must be a positive number, got nan"),
        (lambda: walk_rate(0.1, -1.0, 0.9), "weight_decay must be a positive number, got -1.0"),
        (lambda: walk_rate(0.1, 5e-4, 1.0), "momentum must be from 0 to below 1, got 1.0"),
        (lambda: equilibrium_signal_to_noise(-1.0, 5), "rate must be a positive number, got -1.0"),
        (lambda: equilibrium_signal_to_noise(1e-3, 0), "iterations must be a whole number from 1, got 0"),
        (lambda: equilibrium_signal_to_noise(1e-3, 2.5), "iterations must be a whole number from 1, got 2.5"),
        (lambda: equilibrium_signal_to_noise(1e-3, 5, momentum=-0.1), "momentum must be from 0 to below 1"),
        (lambda: decay([0.1, -0.1], 5e-4, 0.9), "learning_rates must be finite numbers from 0, got -0.1"),
        (lambda: epochs_until_dead(1e-3, 5, 1.0), "threshold must be between 0 and 1, got 1.0"),
        (lambda: predicted_signal_to_noise([0.1, math.inf], 5, **SETTINGS), "learning rates of epoch 2 must be finite"),
        (
            lambda: predicted_signal_to_noise([[]], 5, **SETTINGS),
            r"epoch 1 must be one number or one per step, got sha",
        ),
        (lambda: predicted_signal_to_noise([0.0], 5, **SETTINGS), "must hold a learning rate above 0, got none"),
        (lambda: predicted_signal_to_noise([], 5, **SETTINGS), "must hold a learning rate above 0, got none"),
        (lambda: predicted_signal_to_noise([0.1], True, **SETTINGS), "iterations must be a whole number"),
        (lambda: predicted_signal_to_noise([0.1], 5, start=0.0, **SETTINGS), "start must be a positive number, got 0"),
    ],
)
def test_nonsense_is_refused(call, said: str) -> None:
    with pytest.raises(InputError, match=said):
        call()
