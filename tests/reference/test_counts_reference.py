"""Counts that were once wrong without a word, each beside its value from plain arithmetic or torch's own counter."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import slimbit
from slimbit.measure.cost import cost_of_survey
from slimbit.measure.counting import Counting
from slimbit.records.errors import InputError
from slimbit.records.network import LayerSpec, NetworkSpec
from slimbit.survey.result import StoredLevels, Survey


def expected_value_layer() -> nn.Conv2d:
    """The last layer of YOLOv8's box head: a fixed convolution with the weights 0, 1, ... 15."""
    layer = nn.Conv2d(16, 1, 1, bias=False)
    layer.weight.data = torch.arange(16.0).reshape(1, 16, 1, 1)
    return layer


@pytest.mark.parametrize("bits", [None, 8])
def test_a_weight_that_is_zero_is_multiplied_all_the_same(bits):
    total = slimbit.cost(expected_value_layer(), torch.zeros(1, 16, 4, 4), bits=bits).total
    assert total.macs == 4 * 4 * 16
    assert total.nonzero_macs == 4 * 4 * (15 if bits is None else 16)  # the mid-rise grid has no zero


def test_filters_of_zeros_are_kept_until_somebody_prunes_them():
    layer = nn.Conv2d(3, 4, 3, bias=False)
    layer.weight.data[1] = 0
    found = slimbit.cost(layer, torch.zeros(1, 3, 8, 8)).layers[0]
    assert (found.macs, found.nonzero_macs) == (36 * 4 * 27, 36 * 3 * 27)
    assert (found.filter_bits, found.weight_bytes) == ((32,) * 4, 4 * 4 * 27)
    assert found.esn_filterwise == 32 * found.macs
    prune.custom_from_mask(layer, "weight", (layer.weight != 0).float())
    found = slimbit.cost(layer, torch.zeros(1, 3, 8, 8)).layers[0]
    assert (found.macs, found.filter_bits, found.weight_bytes) == (36 * 3 * 27, (32, 0, 32, 32), 4 * 3 * 27)


def of_levels(levels: torch.Tensor, bits: int, grid: str = "midtread"):
    spec = LayerSpec(name="a", kind="linear", weight_key="a", shape=tuple(levels.shape), positions=5)
    stored = StoredLevels(levels, torch.tensor(0.5), grid, bits)
    return cost_of_survey(Survey(NetworkSpec("net", (spec,)), lambda _: stored), Counting()).layers[0]


@pytest.mark.parametrize(
    ("levels", "bits"),
    [
        ([[-8, 7, 1], [0, 0, 0]], 4),  # int4 holds -8, for which the formula alone says 5 bits
        ([[255, 3, 0], [128, 0, 0]], 8),  # uint8 with the zero point 0
        ([[-128, 127, 0], [-3, 1, 1]], 8),  # uint8 with the zero point 128
    ],
)
def test_a_level_takes_no_more_bits_than_its_file_stores(levels, bits):
    found = of_levels(torch.tensor(levels), bits)
    assert found.weight_bits == bits
    assert max(found.filter_bits) == bits
    assert found.bit_operations == 5 * 6 * bits * 8
    table = {0: 0, 1: 2, 3: 3, 7: 4, 8: 5, 127: 8, 128: 9, 255: 9}  # floor(log2 |q|) + 2
    assert found.esn_digital == 5 * sum(min(bits, table[abs(q)]) for row in levels for q in row)
    assert found.esn_digital <= found.esn_filterwise <= bits * found.macs


def test_zeros_of_an_integer_file_are_multiplied_all_the_same():
    found = of_levels(torch.tensor([[0, 3, 0], [0, 0, 0]]), 8)
    assert (found.macs, found.nonzero_macs) == (5 * 6, 5)


def test_complex_weights_are_refused_by_name():
    model = nn.Sequential(nn.Linear(3, 2, dtype=torch.complex64))
    for bits in (None, 4):
        with pytest.raises(InputError, match=r"weights of layer 0 must be real, got complex64"):
            slimbit.cost(model, torch.zeros(1, 3, dtype=torch.complex64), bits=bits)
