"""Ranges and steps of activations against the published tables and slow searches."""

import math

import pytest
import torch

from slimbit.numerics.activation_range import aciq_range, aciq_ratio, activation_step, largest_code, rounded
from slimbit.records.activations import RANGE_METHODS, ActivationQuantizer, to_float32
from slimbit.records.codec import from_plain, plain
from slimbit.records.errors import InputError

# Banner et al., arXiv 1810.05723: alpha / b and alpha / sigma for 1 to 8 bits
LAPLACE = (1.86, 2.83, 3.89, 5.03, 6.20, 7.41, 8.64, 9.89)
GAUSS = (1.24, 1.71, 2.15, 2.55, 2.93, 3.28, 3.61, 3.92)


@pytest.mark.parametrize("bits", range(1, 9))
def test_aciq_ratios_are_the_published_ones(bits: int) -> None:
    assert aciq_ratio(bits, gauss=False) == pytest.approx(LAPLACE[bits - 1], abs=0.011)
    assert aciq_ratio(bits, gauss=True) == pytest.approx(GAUSS[bits - 1], abs=0.011)


@pytest.mark.parametrize("gauss", [False, True])
def test_aciq_ratio_minimizes_the_error_of_its_distribution(gauss: bool) -> None:
    bits, n = 4, 40_000
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(n, generator=generator, dtype=torch.float64)
    if not gauss:  # a Laplace variable is an exponential one with a random sign
        values = values.sign() * -torch.rand(n, generator=generator, dtype=torch.float64).log()

    def error(alpha: float) -> float:  # clipping plus uniform rounding over 2^b cells, the paper's model
        clipped = (values.abs() - alpha).clamp(min=0).square().mean()
        return float(clipped) + alpha**2 / (3 * 4**bits)

    best = min((k / 100 for k in range(100, 1200)), key=error)
    assert aciq_ratio(bits, gauss=gauss) == pytest.approx(best, abs=0.1)


def test_aciq_after_a_relu_takes_the_scale_of_the_positive_half() -> None:
    values = torch.tensor([0.0, 0.0, 0.0, 1.0, 3.0])
    assert aciq_range(values, bits=4, signed=False, gauss=False) == pytest.approx(2.0 * aciq_ratio(5, gauss=False))
    assert aciq_range(values, bits=4, signed=False, gauss=True) == pytest.approx(
        math.sqrt(5) * aciq_ratio(5, gauss=True)
    )
    assert aciq_range(values, bits=4, signed=True, gauss=False) == pytest.approx(0.8 * aciq_ratio(4, gauss=False))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("heavy", [False, True])
def test_mse_is_as_good_as_a_search_over_every_range(bits: int, signed: bool, heavy: bool) -> None:
    generator = torch.Generator().manual_seed(bits)
    values = torch.randn(300, generator=generator).double()
    values = values**3 if heavy else values
    values = values if signed else values.clamp(min=0)
    codes = largest_code(bits, signed=signed)
    low = -codes - 1 if signed else 0
    top = float(values.abs().max())

    def error(step: float) -> float:
        return sum((v - step * min(max(round(v / step), low), codes)) ** 2 for v in values.tolist())

    found = activation_step(values, bits=bits, signed=signed, method="mse")
    best = min(error(top * k / 100 / codes) for k in range(2, 101))
    assert error(found) <= 1.02 * best


@pytest.mark.parametrize("method", RANGE_METHODS)
def test_steps_are_float32_and_positive_whatever_the_values(method: str) -> None:
    for values in (torch.zeros(10), torch.full((5,), 1e-30), torch.tensor([1e30]), torch.rand(100), -torch.rand(100)):
        for signed in (False, True):
            step = activation_step(values, bits=4, signed=signed, method=method)  # type: ignore[arg-type]
            assert 0 < step < math.inf
            assert step == to_float32(step)


def test_a_clamp_is_never_exceeded() -> None:
    values = torch.rand(1000) * 6
    for bits in range(2, 9):
        step = activation_step(values, bits=bits, signed=False, method="max", most=3.3)
        assert step * largest_code(bits, signed=False) <= 3.3


def test_percentile_is_the_sorted_entry() -> None:
    values = torch.arange(1, 2001).double()  # 99.9 % of 2000 entries are at most 1998
    assert activation_step(values, bits=8, signed=False, method="percentile") == to_float32(1998 / 255)


def test_rounded_is_half_to_even_and_clamped() -> None:
    assert rounded(torch.tensor([0.5, 1.5, 2.5, 9.0, -9.0]), 1.0, low=-2, high=3).tolist() == [0.0, 2.0, 2.0, 3.0, -2.0]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"bits": 9}, "activation bits of the value 'x' must be a whole number from 2 to 8, got 9"),
        ({"bits": True}, "activation bits of the value 'x' must be a whole number from 2 to 8, got True"),
        ({"step": 0.0}, "step of the value 'x' must be a positive number, got 0.0"),
        ({"step": 0.1}, "step of the value 'x' must be exact in float32, got 0.1"),
        ({"step": float("nan")}, "step of the value 'x' must be a positive number, got nan"),
        ({"zero_point": 256}, "zero point of the value 'x' must be from 0 to 255, got 256"),
        ({"signed": 1}, "signed of the value 'x' must be true or false, got 1"),
        ({"value": ""}, "value of an activation quantizer must be a name, got ''"),
    ],
)
def test_quantizers_are_checked(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        ActivationQuantizer(**{"value": "x", "bits": 8, "step": 0.5, **changes})  # type: ignore[arg-type]
    assert str(caught.value) == sentence


def test_quantizers_survive_json() -> None:
    quantizer = ActivationQuantizer(value="a.b", bits=5, step=0.25, zero_point=-3, signed=True)
    assert from_plain(ActivationQuantizer, plain(quantizer), where="plan") == quantizer
    with pytest.raises(InputError, match="wide"):
        from_plain(ActivationQuantizer, {**plain(quantizer), "wide": 1}, where="plan")
    with pytest.raises(InputError, match="bits"):
        from_plain(ActivationQuantizer, {"value": "a"}, where="plan")
