"""Networks, plans and images that a careless implementation would spoil silently."""

import dataclasses
import json

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from slimbit.apply.calibration import calibrate
from slimbit.apply.compress import compress
from slimbit.apply.layers import weights_of
from slimbit.measure.sensitivity import measure_sensitivity
from slimbit.plan.inputs import PlanInputs
from slimbit.plan.steps import step_by_deviation, step_by_price, step_by_range
from slimbit.records.codec import from_plain, plain
from slimbit.records.config import QuantConfig
from slimbit.records.errors import InputError
from slimbit.records.plan import CompressionPlan, LayerPlan
from slimbit.survey.module import survey_network

EVERY = [
    QuantConfig(target=t, refit=r, rounding=n)
    for t in ("weights", "outputs")
    for r in (False, True)
    for n in ("nearest", "rate_aware")
]


def net_of(*layers):
    torch.manual_seed(0)
    return nn.Sequential(*layers).eval()


def inputs_of(net, x):
    spec = survey_network(net, x[:1]).spec
    found = measure_sensitivity(net, spec, x, generator=torch.Generator().manual_seed(0), likelihood="gaussian")
    return PlanInputs(spec=spec, weights=weights_of(net, spec), sensitivity=found)


def images(count=12):
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("config", EVERY, ids=lambda r: f"{r.target}-{r.refit}-{r.rounding}")
@pytest.mark.parametrize("metric", ["esn_analog", "esn_digital", "esn_filterwise"])
def test_constant_zero_and_single_filter_layers_survive_every_config(config, metric):
    net = net_of(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 1, 1), nn.Conv2d(1, 5, 1), nn.BatchNorm2d(5)
    )
    with torch.no_grad():
        net[0].weight.fill_(0.25)
        net[3].weight.zero_()
    x = images()
    inputs = inputs_of(net, x)
    grid = "midtread" if metric == "esn_filterwise" else "midrise_zero"
    config = config.model_copy(update={"grid": grid})
    if metric == "esn_filterwise" and config.rounding == "rate_aware":
        with pytest.raises(InputError, match="rounding must be nearest for esn_filterwise"):
            step_by_price(inputs, 1e-9, metric, config)
        return
    for price in (1e-9, 1e-3, 1e6):
        plan = step_by_price(inputs, price, metric, config)
        result = compress(net, plan, inputs.spec, x)
        assert torch.isfinite(result.model(x)).all()
        assert all(torch.isfinite(v).all() for x in result.layers.values() for v in (x.levels, x.steps))
        assert not result.layers["3"].levels.any()


def test_dead_batchnorm_channels_stay_finite_and_keep_their_mean():
    net = net_of(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    with torch.no_grad():
        net[0].weight[1].zero_()
    x = images()
    inputs = inputs_of(net, x)
    # the huge step rounds everything to zero: every channel of the compressed network is constant
    plan = step_by_deviation(inputs, 50.0, QuantConfig(grid="midrise_zero"))
    result = compress(net, plan, inputs.spec, x)
    assert not result.layers["0"].levels.any()
    a, b = net[:2](x), result.model[:2](x)
    torch.testing.assert_close(a.mean((0, 2, 3)), b.mean((0, 2, 3)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_calibration_images_are_named(bad):
    net, x = net_of(nn.Conv2d(3, 2, 3)), images()
    spec = survey_network(net, x[:1]).spec
    x[3, 0, 0, 0] = bad
    with pytest.raises(InputError, match="calibration batch 0 must be finite, got NaN or infinity"):
        calibrate(net, spec, x)


def test_a_layer_whose_output_is_not_finite_is_named():
    net, x = net_of(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 1)), images()
    spec = survey_network(net, x[:1]).spec
    net[2].bias.data.fill_(float("nan"))
    with pytest.raises(InputError, match="output of layer '2' on the calibration images must be finite"):
        calibrate(net, spec, x)


def test_a_weight_that_is_not_finite_is_named():
    net, x = net_of(nn.Conv2d(3, 2, 3)), images()
    spec = survey_network(net, x[:1]).spec
    net[0].weight.data[0, 0, 0, 0] = float("nan")
    inputs = PlanInputs(spec=spec, weights=weights_of(net, spec))
    with pytest.raises(InputError, match="weight of layer '0' must be finite"):
        step_by_range(inputs, 4)


@pytest.mark.parametrize("batches", [[], torch.zeros(0, 3, 6, 6)], ids=["none", "empty"])
def test_no_images_are_refused(batches):
    net, x = net_of(nn.Conv2d(3, 2, 3)), images()
    with pytest.raises(InputError, match="must hold"):
        calibrate(net, survey_network(net, x[:1]).spec, batches)


def test_missing_calibration_and_unknown_layers_are_refused():
    net, x = net_of(nn.Conv2d(3, 2, 3)), images()
    inputs = inputs_of(net, x)
    plan = step_by_range(inputs, 4)
    with pytest.raises(InputError, match="calibration must be given"):
        compress(net, plan, inputs.spec)
    stranger = dataclasses.replace(plan, layers=(LayerPlan(name="9", steps=(1.0,)),))
    with pytest.raises(InputError, match="plan must name layers of the network, got '9'"):
        compress(net, stranger, inputs.spec, x)
    with pytest.raises(InputError, match="skip must name layers"):
        step_by_range(inputs, 4, QuantConfig(skip=("9",)))


def test_a_parametrized_weight_gets_a_clear_error():
    net, x = net_of(nn.Conv2d(3, 2, 3)), images()
    inputs = inputs_of(net, x)
    plan = step_by_range(inputs, 4)
    parametrizations.weight_norm(net[0])
    with pytest.raises(InputError, match="remove its parametrization first"):
        compress(net, plan, inputs.spec, x)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), "1"])
def test_prices_bits_and_multiples_must_make_sense(value):
    net, x = net_of(nn.Conv2d(3, 2, 3)), images()
    inputs = inputs_of(net, x)
    with pytest.raises(InputError, match="price must be a positive number"):
        step_by_price(inputs, value, "esn_analog")
    with pytest.raises(InputError, match="bits must be from 1 to 16"):
        step_by_range(inputs, value)
    with pytest.raises(InputError, match="k must be positive"):
        step_by_deviation(inputs, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": {"rounding": "up"}}, r"config\.rounding of plan.json must be 'nearest' or 'rate_aware', got 'up'"),
        (
            {"config": {"rounded": "up"}},
            r"plan.json must hold only known keys, got config\.rounded; did you mean round",
        ),
        ({"colour": 1}, "plan.json must hold only known keys, got colour"),
        ({"layers": 3}, "layers of plan.json must be a list, got 3"),
        ({"layers": [{"name": "a", "steps": []}]}, "steps of layer 'a'"),
        ({"layers": [{"name": "a", "steps": [-1.0]}]}, "must be positive"),
        ({"layers": [{"name": "a", "steps": [1.0], "kept": [2, 1]}]}, "rising"),
        ({"layers": [{"name": "a", "steps": [1.0]}, {"name": "a", "steps": [1.0]}]}, "named once"),
        ({"layers": [{"steps": [1.0]}]}, r"plan.json must hold layers\.0\.name, got none"),
        (
            {"setting": {"kind": "price", "value": -1, "metric": "esn_digital"}},
            "price must be a positive number, got -1",
        ),
        (
            {"setting": {"kind": "knob", "value": 1}},
            "kind of setting of plan.json must be one of .*'price'.*, got 'knob'",
        ),
        ({"setting": "4 bits"}, "setting of plan.json must be"),
    ],
)
def test_a_damaged_plan_is_refused_in_one_sentence(change, message):
    plan = CompressionPlan(network="n", policy="own", layers=(LayerPlan(name="a", steps=(1.0,)),))
    data = json.loads(json.dumps(plain(plan)))
    assert from_plain(CompressionPlan, data, where="plan.json") == plan
    with pytest.raises(InputError, match=message):
        from_plain(CompressionPlan, {**data, **change}, where="plan.json")


def test_half_precision_network_keeps_its_type():
    net, x = net_of(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)), images()
    inputs = inputs_of(net, x)
    plan = step_by_price(inputs, 1e-6, "esn_analog")
    result = compress(net.bfloat16(), plan, inputs.spec, x.bfloat16())
    assert {p.dtype for p in result.model.parameters()} == {torch.bfloat16}


def test_the_likelihood_must_suit_the_output():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 3)

        def forward(self, x):
            return self.conv(x), x

    class Decided(Pair):
        def forward(self, x):
            return self.conv(x).argmax(1)

    x = images()
    spec = survey_network(Decided(), x[:1]).spec
    for choice in ("categorical", "gaussian"):
        with pytest.raises(InputError, match="must hold float tensors, a row per image"):
            measure_sensitivity(Decided(), spec, x, generator=torch.Generator(), likelihood=choice)
    net = Pair()

    def squares(outputs, generator):
        del generator
        return outputs[0].square().sum()

    assert measure_sensitivity(net, spec, x, generator=torch.Generator(), likelihood=squares).layer("conv") > 0
