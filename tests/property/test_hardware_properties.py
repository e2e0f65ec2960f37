"""What must hold for every layer: fewer bits, weights or filters never cost more, on any machine."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimbit.measure.hardware import hardware_cost, hardware_names, load_hardware, sparse_model
from slimbit.records.cost import LayerCost

ARITHMETIC = ("simd", "int8_array", "stripes", "loom", "bit_fusion")


def level_bits(level: float) -> int:
    """Bits of a level, by counting: how often |2 level| halves before nothing is left, plus the sign.

    0.5 -> 1, 1.5 -> 2 (3 = 0b11), 3.5 -> 3 (7 = 0b111).
    """
    return int(abs(2 * level)).bit_length()


def layer_of(levels: list[list[float]], *, positions: int = 1, activation_bits: int = 8) -> LayerCost:
    """Cost record of a fully connected layer with these levels, one list per filter (0 = pruned weight)."""
    flat = [level for row in levels for level in row]
    bits = [[level_bits(level) for level in row] for row in levels]
    weight_bits = max(map(max, bits))
    macs = positions * len(flat)
    return LayerCost(
        name="fc",
        kind="linear",
        shape=(len(levels), len(levels[0])),
        filters=len(levels),
        positions=positions,
        weights=len(flat),
        grid="midrise_zero",
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        filter_bits=tuple(map(max, bits)),
        parameters=len(flat),
        macs=macs,
        nonzero_macs=positions * sum(level != 0 for level in flat),
        esn_analog=positions * sum(level**2 for level in flat),
        esn_digital=positions * sum(map(sum, bits)),
        esn_filterwise=positions * sum(len(row) * max(row) for row in bits),
        esn_analog_class_a=macs * max(level**2 for level in flat),
        bit_operations=macs * weight_bits * activation_bits,
        weight_bytes=sum(len(row) * max(row) for row in bits) / 8,
        mean_bits=sum(map(sum, bits)) / len(flat),
    )


level = st.one_of(st.just(0.0), st.integers(-100, 100).map(lambda whole: whole + 0.5))
matrix = st.integers(1, 6).flatmap(
    lambda inputs: st.lists(st.lists(level, min_size=inputs, max_size=inputs), min_size=1, max_size=6)
)
layers = st.builds(layer_of, matrix, positions=st.integers(1, 1000), activation_bits=st.integers(1, 16))
widths = st.integers(0, 32)


def cost(name: str, layer: LayerCost) -> float:
    return hardware_cost(load_hardware(name), [layer]).total


@pytest.mark.parametrize("name", hardware_names())
@given(layer=layers, widths=st.tuples(widths, widths, widths, widths))
def test_cost_and_energy_never_rise_when_bits_fall(
    name: str, layer: LayerCost, widths: tuple[int, int, int, int]
) -> None:
    weight, activation, fewer_weight, fewer_activation = widths
    many = replace(layer, weight_bits=weight, activation_bits=activation)
    few = replace(layer, weight_bits=min(weight, fewer_weight), activation_bits=min(activation, fewer_activation))
    before, after = (hardware_cost(load_hardware(name), [each]) for each in (many, few))
    assert after.total <= before.total
    if before.picojoules is not None and after.picojoules is not None:
        assert after.picojoules <= before.picojoules


@pytest.mark.parametrize("name", hardware_names())
@given(levels=matrix, data=st.data())
def test_cost_never_rises_when_a_weight_or_filter_goes(
    name: str, levels: list[list[float]], data: st.DataObject
) -> None:
    row = data.draw(st.integers(0, len(levels) - 1))
    column = data.draw(st.integers(0, len(levels[0]) - 1))
    holed = [list(values) for values in levels]
    holed[row][column] = 0.0
    dense = cost(name, layer_of(levels))
    assert cost(name, layer_of(holed)) <= dense
    if len(levels) > 1:
        assert cost(name, layer_of(levels[:row] + levels[row + 1 :])) <= dense


@given(layer=layers)
def test_order_of_the_ideal_machines(layer: LayerCost) -> None:
    assert cost("ideal_digital", layer) <= cost("filterwise", layer) <= layer.weight_bits * layer.macs
    assert cost("analog_class_b", layer) <= cost("analog_class_a", layer)


@given(layer=layers, overhead=st.floats(0, 100))
def test_sparse_lies_between_zero_skipping_and_dense(layer: LayerCost, overhead: float) -> None:
    paid = hardware_cost(sparse_model(overhead), [layer]).total
    assert cost("scalar_cpu", layer) <= paid <= layer.macs


@given(layer=layers)
def test_bit_fusion_pays_at_least_its_bits_and_at_most_four_times_as_much(layer: LayerCost) -> None:
    # D P_w P_a / 64 is its share with bricks of any size; each operand rounds up to a power of two bricks of
    # 2 bits, at most doubling it from 2 bits on, and a 1-bit operand takes 2 bits.
    least = layer.macs * layer.weight_bits * layer.activation_bits / 64
    assert least <= cost("bit_fusion", layer) <= 4 * least


@pytest.mark.parametrize("name", ARITHMETIC)
@given(layer=layers, times=st.integers(2, 9))
def test_cost_is_proportional_to_the_macs(name: str, layer: LayerCost, times: int) -> None:
    assert cost(name, replace(layer, macs=times * layer.macs)) == pytest.approx(times * cost(name, layer))


@given(first=layers, second=layers)
def test_network_costs_what_its_layers_cost(first: LayerCost, second: LayerCost) -> None:
    for name in hardware_names():
        both = hardware_cost(load_hardware(name), [first, second])
        assert both.total == pytest.approx(cost(name, first) + cost(name, second))
