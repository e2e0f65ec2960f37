"""Which values are quantized, and that every implementation of their arithmetic rounds alike."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.exchange_case import NETWORKS, Residual, built, compressed, inputs
from torch import Tensor, nn

from slimbit.apply.activations import float_values, measure_activations, quantization_points, with_quantized_values
from slimbit.apply.integers import MOST_BIAS, integer_program, integers_of
from slimbit.numerics.requantize import requantized, tie_distance, untied
from slimbit.records.activations import ActivationQuantizer
from slimbit.records.dataflow import Operation, Stage, stages_of
from slimbit.records.errors import InputError
from slimbit.survey.dataflow import read_dataflow
from slimbit.survey.module import survey_network


def test_points_of_a_residual_network() -> None:
    flow = read_dataflow(Residual(), torch.zeros(1, 3, 10, 10))
    points = {point.value: (point.bits, point.signed) for point in quantization_points(flow, 4)}
    assert points["x"] == (8, None)  # the network's input
    assert points["relu"] == (4, False)  # read by conv1 and by the sum
    assert points["bn1"] == (8, True)  # a summand: no multiplier reads it
    assert not {"stem", "bn0", "add", "fc"} & {*points}  # one rounding per stage; logits stay float
    assert points["relu#2"] == (4, False)
    assert points["bn2"] == (8, True)
    assert points["relu#3"] == (8, False)  # only the mean reads it
    assert points["mean.pooled"] == (4, False)


def test_what_only_moves_shares_a_step() -> None:
    flow = read_dataflow(built("unet"), torch.zeros(1, 1, 16, 16))
    members = {point.value: point.members for point in quantization_points(flow, 8)}
    joined = next(group for group in members.values() if "cat" in group)
    assert {"up1", "b.2", "max_pool2d#2"} <= {*joined}
    assert all(len(flow.readers(value)) or value in flow.outputs for group in members.values() for value in group)


def test_relu6_never_gets_a_range_above_six() -> None:
    result, _, _ = compressed("mobile", activation_bits=4)
    table = {quantizer.value: quantizer for quantizer in result.plan.activations}
    assert table["up.2"].limits[1] <= 6.0
    assert not table["up.2"].signed


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.fc = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.attention(x, x, x, need_weights=False)[0].mean(1))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) if x.sum() > 0 else self.fc(-x)


@pytest.mark.parametrize(
    ("network", "shape", "words"),
    [
        (Attention(), (5, 8), ("without activation bits",)),
        (Branching(), (4,), ("Branching must be traceable by torch.export",)),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4)), (3, 4, 4), ("group_norm of module '1'",)),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.Softmax(1), nn.Conv2d(4, 2, 1)), (3, 4, 4), ("softmax", "'1'")),
        (nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")), (3, 4, 4), ("pad", "zeros")),
        (nn.Sequential(nn.AdaptiveAvgPool2d(3), nn.Conv2d(3, 2, 1)), (3, 4, 4), ("(4, 4) to (3, 3)",)),
    ],
)
def test_what_has_no_integer_form_is_named_in_one_sentence(
    network: nn.Module, shape: tuple[int, ...], words: tuple[str, ...]
) -> None:
    with pytest.raises(InputError) as caught:
        quantization_points(read_dataflow(network, torch.zeros(1, *shape)), 8)
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


def test_layers_of_a_refused_network_can_be_quantized() -> None:
    from slimbit.apply.compress import compress
    from slimbit.apply.layers import weights_of
    from slimbit.plan.inputs import PlanInputs
    from slimbit.plan.steps import step_by_range
    from slimbit.records.config import QuantConfig

    network, example = Attention().eval(), torch.zeros(1, 5, 8)
    spec = survey_network(network, example).spec
    plan = step_by_range(
        PlanInputs(spec=spec, weights=weights_of(network, spec)),
        4,
        QuantConfig(compensation=False, statistics="stored"),
    )
    assert compress(network, plan, spec).model(example).shape == (1, 2)


def stage(kind: str, **settings: object) -> Stage:
    names = ("a", "b")[: 2 if kind in ("add", "multiply") else 1]
    head = Operation(name="y", kind=kind, inputs=names, shape=(4, 4, 4), settings=settings)  # type: ignore[arg-type]
    return Stage(head=head, value="y")


def quantizer(value: str, step: float, *, bits: int = 8, signed: bool = True) -> ActivationQuantizer:
    return ActivationQuantizer(value=value, bits=bits, step=float(np.float32(step)), signed=signed)


@pytest.mark.parametrize("seed", range(12))
def test_sums_round_alike_in_every_order(seed: int) -> None:
    """Four ways in which runtimes add two quantized values, all in float32, over all 65,536 pairs of codes."""
    rng = np.random.default_rng(seed)
    one, two = quantizer("a", rng.uniform(0.01, 0.2)), quantizer("b", rng.uniform(0.01, 0.2), signed=False)
    out = untied(stage("add"), [one, two], quantizer("y", rng.uniform(0.02, 0.3)))
    assert tie_distance(stage("add"), [one, two], out) >= 1
    f = np.float32
    a, b = (np.arange(q.low, q.high + 1) for q in (one, two))
    a, b = a[:, None].astype(f), b[None].astype(f)
    sa, sb, sy = f(one.step), f(two.step), f(out.step)
    exact = np.rint((a.astype(float) * float(sa) + b.astype(float) * float(sb)) / float(sy))
    ways = [
        np.rint((a * sa + b * sb) / sy),  # dequantize, add, quantize
        np.rint((a * sa + b * sb) * (f(1) / sy)),  # by the reciprocal
        np.rint(a * (sa / sy) + b * (sb / sy)),  # ratios first
        np.rint(((a + f(128)) * (sa / sy)) + ((b * (sb / sy)) + (f(128) - f(128) * (sa / sy)))) - 128,  # offsets inside
    ]
    inside = (exact > -128.5) & (exact < 127.5)
    for way in ways:
        assert np.array_equal(way[inside], exact[inside])


def test_a_step_that_leaves_ties_is_moved() -> None:
    one, two = quantizer("a", 0.5), quantizer("b", 0.25)
    tied = quantizer("y", 0.5)
    assert tie_distance(stage("add"), [one, two], tied) < 1  # 0.25 / 0.5 is half a step
    moved = untied(stage("add"), [one, two], tied)
    assert 0.97 * tied.step < moved.step < tied.step
    assert tie_distance(stage("add"), [one, two], moved) >= 1


def test_requantized_rounds_half_to_even_after_one_float32_product() -> None:
    sums = torch.tensor([1.0, 3.0, 5.0, 1000.0, -1000.0])
    assert requantized(sums, torch.tensor(0.5), low=-128, high=127).tolist() == [0.0, 2.0, 2.0, 127.0, -128.0]


@pytest.mark.parametrize("name", NETWORKS)
def test_rounded_values_are_what_hooks_see(name: str) -> None:
    """The float run that calibrates later layers rounds as the integers do, up to ties of float sums."""
    result, flow, images = compressed(name, bits=6)
    network = built(name)
    network.load_state_dict(result.network.state_dict())
    with torch.no_grad():
        rounded = with_quantized_values(network, flow, result.plan.activations)(*images)
        integer = result.model(*images)
    parts = (
        [(rounded, integer)]
        if isinstance(rounded, Tensor)
        else list(zip(rounded.values(), integer.values(), strict=True))
    )
    for left, right in parts:
        spread = float(right.std())
        assert float((left - right).abs().mean()) < 0.05 * spread + 1e-3


def test_levels_become_whole_numbers() -> None:
    midrise = torch.tensor([[0.5, -1.5], [2.5, -0.5]])
    integers, step, grid = integers_of(midrise, torch.tensor(0.2))
    assert integers.tolist() == [[1, -3], [5, -1]]
    assert float(step) == pytest.approx(0.1)
    assert grid == "midrise"
    assert integers_of(torch.tensor([[0.0, -1.5]]), torch.tensor(1.0))[2] == "midrise_zero"
    assert integers_of(torch.tensor([[2.0, -1.0]]), torch.tensor(1.0))[2] == "midtread"


class Folded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(2, 5, 1), nn.BatchNorm2d(5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.bn(self.conv(x))).mean((2, 3)))


def test_batchnorm_folds_into_signs_steps_and_biases() -> None:
    network = Folded().eval()
    network.bn.weight.data = torch.tensor([2.0, -2.0, 0.0, 1.0, 1e-12])
    network.bn.bias.data = torch.tensor([0.5, 0.5, 0.75, 0.5, 4.0])
    levels = torch.tensor(
        [[[[1.0]], [[2.0]]], [[[1.0]], [[2.0]]], [[[1.0]], [[2.0]]], [[[0.0]], [[0.0]]], [[[1.0]], [[3.0]]]]
    )
    network.conv.weight.data = 0.1 * levels
    example = torch.rand(4, 2, 3, 3)
    flow, spec = read_dataflow(network, example), survey_network(network, example).spec
    fc = torch.tensor([[1.0] * 5, [-1.0] * 5])
    network.fc.weight.data = 0.5 * fc
    quantizers = measure_activations(network, flow, [example], bits=8)
    program = integer_program(
        network, flow, quantizers, spec=spec,
        levels={"conv": levels, "fc": fc}, steps={"conv": torch.tensor(0.1), "fc": torch.tensor(0.5)},
    )  # fmt: skip
    layer = program.stages[0].layer
    assert layer is not None
    assert layer.weights.flatten(1).tolist() == [[1, 2], [-1, -2], [0, 0], [0, 0], [0, 0]]
    assert 2 in layer.constant
    assert 3 in layer.constant
    assert int(layer.bias.abs().max()) <= MOST_BIAS
    source = next(q for q in quantizers if q.value == "x")
    for f, wanted in ((2, 0.75), (3, None), (4, 4.0)):
        # what a constant filter gives: its bias at its own step, resolved to 16 bits
        value = float(layer.bias[f]) * source.step * float(layer.steps[f])
        scale = network.bn.weight[f] / (1 + network.bn.eps) ** 0.5
        moved = (network.conv.bias[f] * scale + network.bn.bias[f]).item()
        shift = moved if wanted is None else wanted
        assert value == pytest.approx(shift, rel=2e-5)


class Stacked(nn.Module):
    """Layers that follow each other directly, and one output that something else reads, too."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.b(self.a(x))
        return y, torch.sigmoid(self.c(y))


def test_only_what_nothing_else_reads_stays_float() -> None:
    flow = read_dataflow(Stacked(), torch.zeros(1, 4))
    assert [point.value for point in quantization_points(flow, 8)] == ["x", "a", "b"]
    assert float_values(flow, stages_of(flow)) == {"c", "sigmoid"}


def test_every_stage_ends_in_one_value() -> None:
    for name in NETWORKS:
        flow = read_dataflow(built(name), tuple(x[:1] for x in inputs(name, 1)))
        values = [stage.value for stage in stages_of(flow)]
        assert len({*values}) == len(values)
        assert {*flow.outputs} <= {*values}
