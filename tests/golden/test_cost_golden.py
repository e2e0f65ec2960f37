"""Known numbers of the specification, with their arithmetic."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import slimbit
from slimbit.measure.cost import cost_of_survey
from slimbit.measure.cost_config import CostConfig
from slimbit.numerics.energy import level_bits, level_sums
from slimbit.numerics.grid import largest_level, to_levels
from slimbit.numerics.levels import LayerLevels
from slimbit.numerics.steps import gaussian_step
from slimbit.plan.inputs import PlanInputs
from slimbit.plan.steps import step_by_deviation
from slimbit.records.config import QuantConfig
from slimbit.survey.module import survey_network
from slimbit.survey.result import Survey


def _cost(name: str, **options):
    shape = (3, 224, 224) if name in {"resnet18", "resnet50", "mobilenet_v2"} else (3, 32, 32)
    return slimbit.cost(slimbit.network(name), torch.zeros(1, *shape), **options)


def test_bit_table_of_both_grids_and_both_formulas():
    midrise = torch.tensor([0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5, 8.5, 127.5])
    assert level_bits(midrise).tolist() == [1, 2, 3, 3, 4, 4, 4, 4, 5, 8]
    assert level_bits(-midrise).tolist() == level_bits(midrise).tolist()
    assert level_bits(midrise, "literal").tolist() == [0, 2, 3, 3, 4, 4, 4, 4, 5, 8]
    midtread = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8])
    assert level_bits(midtread).tolist() == [0, 2, 3, 3, 4, 4, 4, 4, 5]
    # b bits hold 2^b - 1 mid-tread codes: 0, +-1, ..., +-(2^(b-1) - 1)
    for bits in range(2, 12):
        assert level_bits(torch.tensor([2 ** (bits - 1) - 1])).item() == bits


def test_resnet20_at_one_bit():
    report = _cost("resnet20", bits=1)
    assert report.total.macs == 41_074_688 + 640
    assert report.total.esn_digital == report.total.macs  # 1 bit per MAC
    assert report.total.esn_analog == report.total.macs / 4  # 0.5^2 per MAC
    assert report.total.convolution_filters == 800
    assert sum(layer.filters for layer in report.layers if layer.kind == "conv2d") == 800


@pytest.mark.parametrize(
    ("name", "macs"),
    [
        ("resnet20-A", 40_551_040),
        ("resnet20-B", 40_813_184),
        ("resnet8", 12_763_136 + 640),
        ("resnet14", 26_918_912 + 640),
        ("vgg7", 607_518_720 + 8_398_848),  # convolutions + 8192*1024 + 1024*10
        ("densenet_bc_100_12", 287_929_692),
        ("resnet18", 1_814_073_344),
        ("resnet50", 4_089_184_256),
        ("mobilenet_v2", 300_774_272),
    ],
)
def test_macs_of_the_zoo(name, macs):
    assert _cost(name).total.macs == macs


def test_bit_operations_as_qonnx_counts_them():
    assert _cost("resnet20-B", bits=8).total.bit_operations == 40_813_184 * 8 * 8 == 2_612_043_776


def test_filters_of_the_smaller_networks():
    assert _cost("resnet8").total.convolution_filters == 352
    assert _cost("resnet14").total.convolution_filters == 576


@pytest.mark.parametrize(("value", "bits"), [(0.5, 1), (1.5, 2), (6.5, 4)])
def test_equal_weights_cost_n_v_squared(value, bits):
    layer = nn.Linear(30, 20, bias=False)
    nn.init.constant_(layer.weight, value)
    total = slimbit.cost(layer, torch.zeros(1, 30), steps=1.0).total
    # 6.5 / 1 floors to 6, + 0.5
    assert total.esn_analog == 600 * value**2
    assert total.esn_digital == 600 * bits


def test_gaussian_weights_at_a_step_of_one_sigma_cost_1_0833_per_weight():
    weights = torch.randn(1000, 1000, generator=torch.Generator().manual_seed(0))
    mean = level_sums(to_levels(weights, torch.tensor(1.0))).squares / weights.numel()
    # E[q^2] = 1 + 1/12 to the accuracy of the sampling error, sqrt(2/1e6) ~ 0.0014
    assert mean == pytest.approx(13 / 12, abs=0.005)


def test_one_bit_less_divides_analog_by_four_and_digital_by_b_over_b_minus_one():
    weights = torch.rand(64, 1024, generator=torch.Generator().manual_seed(0)) * 2 - 1
    layer = nn.Linear(1024, 64, bias=False)
    layer.weight.data = weights
    high, low = (slimbit.cost(layer, torch.zeros(1, 1024), bits=bits).total for bits in (8, 7))
    assert high.esn_analog / low.esn_analog == pytest.approx(4, rel=0.01)
    # uniform weights: mean bits are b - 1 + 2^(1-b), so 7.0078 / 6.0156
    assert high.esn_digital / low.esn_digital == pytest.approx(7.0078 / 6.0156, rel=0.002)


def test_the_extreme_weight_is_clipped_to_the_width():
    layer = nn.Linear(3, 1, bias=False)
    layer.weight.data = torch.tensor([[1.0, -1.0, 0.1]])
    report = slimbit.cost(layer, torch.zeros(1, 3), bits=3)
    # step 1/4: 4 would be level 4.5 (4 bits); clipped to 3.5; -4 is level -3.5; 0.4 is 0.5
    assert report.layers[0].filter_bits == (3,)
    assert report.total.esn_analog == 3.5**2 + 3.5**2 + 0.5**2
    assert report.total.esn_digital == 3 + 3 + 1


def test_estimate_of_eq_4_beside_the_exact_value():
    layer = nn.Linear(512, 512, bias=False)
    torch.nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(1))
    fine = slimbit.cost(layer, torch.zeros(1, 512), steps=0.1)
    # S/N = 12 sigma^2 / step^2 = 1200; the exact value is S/N/12 + 1/12 per weight
    assert fine.layers[0].signal_to_noise == pytest.approx(1200, rel=0.02)
    assert fine.total.esn_analog_estimate == pytest.approx(fine.total.esn_analog, rel=0.01)
    assert not fine.notes
    coarse = slimbit.cost(layer, torch.zeros(1, 512), steps=1.0)
    assert coarse.layers[0].signal_to_noise < 20
    assert coarse.total.esn_analog_estimate < 0.95 * coarse.total.esn_analog
    assert coarse.total.esn_analog_estimate_plus == pytest.approx(coarse.total.esn_analog, rel=0.02)
    assert "Eq. (4)" in coarse.notes[0]


def test_embedding_and_shared_weights():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(50, 16)
            self.head = nn.Linear(16, 50, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens):
            return self.head(self.embed(tokens))

    total = slimbit.cost(Tied(), torch.zeros(1, 7, dtype=torch.long), bits=8).total
    assert total.parameters == 800  # once
    assert total.weight_bytes <= 800  # 8 bits each at most, once
    assert total.macs == 7 * 800  # the look-up costs none


def test_repeated_calls_add_positions():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(self.fc(x))

    report = slimbit.cost(Twice(), torch.zeros(1, 5, 4))
    assert report.total.macs == 2 * 5 * 16
    assert report.layers[0].positions == 10
    assert report.total.parameters == 20


def test_structured_masks_remove_whole_filters_and_the_inputs_nobody_reads():
    layer = nn.Conv2d(4, 4, 3, bias=False)
    prune.ln_structured(layer, "weight", 2, n=2, dim=0)
    mask = layer.weight_mask
    mask[:, 3] = 0  # input channel 3 is read by no filter
    total = slimbit.cost(layer, torch.zeros(1, 4, 5, 5), bits=2).total
    # 2 filters x 3 inputs x 9 kernel x 9 positions
    assert total.macs == 2 * 3 * 9 * 9
    assert total.nonzero_macs == total.macs
    assert total.esn_filterwise == 2 * total.macs
    assert math.isclose(total.mean_bits, total.esn_digital / 9 / layer.weight.numel())


def test_a_zero_beside_all_codes_of_a_width_takes_one_bit_more():
    layer = nn.Linear(3, 3, bias=False)
    layer.weight.data = torch.tensor([[0.5, -0.5, 0.5], [0.5, 0.0, 0.5], [2.5, 0.0, -1.5]])
    report = slimbit.cost(layer, torch.zeros(1, 3), steps=1.0, grid="midrise_zero")
    # +-0.5: two codes, 1 bit; with 0 three codes, 2 bits; 0 and +-0.5 ... +-2.5: seven codes, 3 bits
    assert report.layers[0].filter_bits == (1, 2, 3)
    assert report.total.esn_filterwise == 3 * (1 + 2 + 3)
    assert report.total.weight_bytes == 18 / 8
    # ESN_d skips zeros: 3 x 1 bit, 2 x 1 bit, 3 + 2 bits
    assert report.total.esn_digital == 3 + 2 + 5


def test_one_mid_tread_bit_holds_only_zero():
    layer = nn.Linear(3, 2, bias=False)
    assert slimbit.cost(layer, torch.zeros(1, 3), bits=1, grid="midtread").notes[0].startswith("Every weight is 0")


@pytest.mark.parametrize("grid", ["midrise", "midtread"])
def test_the_width_of_a_whole_number_of_codes_has_that_many(grid):
    # log2 rounds up for many counts (2^log2(13) = 13.000000000000002): these are still 13 codes, not 14
    top = {"midrise": lambda codes: codes - 0.5, "midtread": lambda codes: codes - 1.0}[grid]
    assert all(largest_level(1 + math.log2(codes), grid) == top(codes) for codes in range(1, 2**15 + 1))
    assert largest_level(1 + math.log2(13.5), grid) == top(14)  # any other width rounds the number of codes up
    assert largest_level(1 + math.log2(13.001), grid) == top(14)


@pytest.mark.parametrize("granularity", ["layer", "filter"])
def test_sigma_means_one_thing_in_costs_and_in_plans(granularity):
    weight = torch.randn(6, 50, generator=torch.Generator().manual_seed(3)) + 0.7  # far from a mean of 0
    weight[:, ::5] = 0.0  # pruned
    layer = nn.Linear(50, 6, bias=False)
    layer.weight.data = weight
    rows = weight if granularity == "filter" else weight.reshape(1, -1)
    by_hand = [math.sqrt(sum(float(w) ** 2 for w in row) / sum(float(w) != 0 for w in row)) for row in rows]
    spec = survey_network(layer, torch.zeros(1, 50)).spec
    inputs = PlanInputs(spec=spec, weights={"Linear": weight})
    plan = step_by_deviation(inputs, 0.3, QuantConfig(granularity=granularity, grid="midtread"))
    assert plan.layers[0].steps == pytest.approx([0.3 * sigma for sigma in by_hand], rel=1e-6)
    if granularity == "layer":
        cost = slimbit.cost(layer, torch.zeros(1, 50), bits=4, policy="sigma")
        assert cost.layers[0].steps == pytest.approx([gaussian_step(4) * by_hand[0]], rel=1e-6)
    # S/N = ||W||^2 / (||W||_0 step^2 / 12) = 12 / k^2
    fine = slimbit.cost(layer, torch.zeros(1, 50), steps=torch.tensor(plan.layers[0].steps).squeeze(), grid="midtread")
    assert fine.layers[0].signal_to_noise == pytest.approx(12 / 0.3**2, rel=0.15)


@pytest.mark.parametrize("kdim", [None, 6], ids=["stacked", "widths of their own"])
def test_pruned_attention_by_hand(kdim):
    attention = nn.MultiheadAttention(4, 2, kdim=kdim, vdim=kdim, batch_first=True).eval()
    names = ["in_proj_weight"] if kdim is None else ["q_proj_weight", "k_proj_weight", "v_proj_weight"]
    for name in names:
        prune.ln_structured(attention, name, 0.5, n=2, dim=0)  # half of the rows
    prune.l1_unstructured(attention.out_proj, "weight", 6)
    keys = torch.zeros(1, 5, kdim or 4)
    example = {"query": torch.zeros(1, 3, 4), "key": keys, "value": keys}
    report = slimbit.cost(attention, example, bits=1)
    # 1 bit per weight that is left: half of each of 4 x 4 (or 4 x 6) at 3 or 5 tokens, and 10 of 16 at 3
    rows = {layer.name: sum(bits > 0 for bits in layer.filter_bits) for layer in report.layers[:3]}
    assert sum(rows.values()) == 6
    inputs = {"q_proj": 4, "k_proj": kdim or 4, "v_proj": kdim or 4}
    tokens = {"q_proj": 3, "k_proj": 5, "v_proj": 5}
    by_hand = {name: tokens[name] * rows[name] * inputs[name] for name in rows}
    assert {layer.name: layer.esn_digital for layer in report.layers} == {**by_hand, "out_proj": 3 * 10}
    for name in names:
        prune.remove(attention, name)
    assert slimbit.cost(attention, example, bits=1).total.esn_digital > report.total.esn_digital  # zeros, not pruned


def gaussian(weights):
    return torch.randn(weights, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("signal_to_noise", [48, 193, 768])
@pytest.mark.parametrize("grid", ["midrise", "midtread"])
def test_eq_4_counts_weights_that_are_not_zero_not_levels(grid, signal_to_noise):
    """Of n Gaussian weights: step^2 = 12 sigma^2 / (S/N), and sum q^2 is about n (S/N + 1) / 12 on both grids.

    A mid-tread step of half a standard deviation (S/N 48) makes a fifth of the weights 0, and their error is like that
    of any other: counted by levels, the estimate was 20 % too low there, and 10 % at S/N 193.
    """
    step = math.sqrt(12 / signal_to_noise)
    layer = nn.Linear(400, 500, bias=False)
    layer.weight.data = gaussian(200_000).reshape(500, 400)
    report = slimbit.cost(layer, torch.zeros(1, 400), steps=step, grid=grid)
    assert report.layers[0].signal_to_noise == pytest.approx(signal_to_noise, rel=0.02)
    by_hand = 200_000 * report.layers[0].signal_to_noise / 12
    assert report.total.esn_analog_estimate == pytest.approx(by_hand, rel=1e-12)
    assert report.total.esn_analog_estimate_plus == pytest.approx(by_hand + 200_000 / 12, rel=1e-12)
    # off by its own next order, 1 / (S/N)
    assert report.total.esn_analog_estimate == pytest.approx(report.total.esn_analog, rel=1.3 / signal_to_noise + 0.005)


def test_eq_4_leaves_out_pruned_weights_and_weights_of_zero():
    layer = nn.Linear(400, 500, bias=False)
    layer.weight.data = gaussian(200_000).reshape(500, 400)
    layer.weight.data[:, :100] = 0.0  # 50,000 of 200,000
    prune.ln_structured(layer, "weight", 250, n=2, dim=0)  # 250 x 300 are left
    report = slimbit.cost(layer, torch.zeros(1, 400), steps=0.25, grid="midtread")
    by_hand = 250 * 300 * report.layers[0].signal_to_noise / 12
    assert report.total.esn_analog_estimate == pytest.approx(by_hand, rel=1e-12)
    assert report.total.esn_analog_estimate == pytest.approx(report.total.esn_analog, rel=0.02)


def test_no_estimate_where_the_error_is_not_uniform():
    layer = nn.Linear(400, 500, bias=False)
    layer.weight.data = gaussian(200_000).reshape(500, 400)
    report = slimbit.cost(layer, torch.zeros(1, 400), steps=1.0, grid="midrise_zero")
    assert report.layers[0].signal_to_noise < 20
    assert report.total.esn_analog_estimate is report.total.esn_analog_estimate_plus is None
    assert not report.notes  # no warning of an estimate that there is not


def test_float_layers_are_left_out_of_the_analog_total_and_named():
    net = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 2, bias=False))
    survey = survey_network(net, torch.zeros(1, 3))
    levels = LayerLevels(torch.tensor([[0.5, 1.5, -0.5], [2.5, 0.5, 0.5]]), torch.tensor(0.1), "midrise")
    part = cost_of_survey(Survey(survey.spec, lambda x: levels if x.name == "0" else survey.weight(x)), CostConfig())
    assert [layer.esn_analog for layer in part.layers] == [9.5, None]  # 0.25 + 2.25 + 0.25 + 6.25 + 0.25 + 0.25
    assert part.total.esn_analog == 9.5
    assert part.total.esn_analog_class_a == 6 * 2.5**2
    assert part.total.esn_digital == (1 + 2 + 1 + 3 + 1 + 1) + 4 * 32
    text = "esn_analog and esn_analog_class_a are sums over 1 of 2 layers: the others are float and have no levels"
    assert part.notes == (f"{text} (first: 1).",)
    whole = slimbit.cost(net, torch.zeros(1, 3), bits=2)
    assert not {"esn_analog", "esn_analog_class_a"} & whole.versus(part).ratios().keys()  # sums over other layers
    assert {"esn_analog", "esn_analog_class_a"} <= part.versus(part).ratios().keys()
    assert slimbit.cost(net, torch.zeros(1, 3)).total.esn_analog is None
