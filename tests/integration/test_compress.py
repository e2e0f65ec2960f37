"""Plans carried out on networks of many kinds."""

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import slimbit
from slimbit.apply.calibration import calibrate
from slimbit.apply.compensation import compensation_factors
from slimbit.apply.compress import compress
from slimbit.apply.layers import weights_of
from slimbit.artifacts.packed import pack_model, unpack_model
from slimbit.measure.sensitivity import measure_sensitivity
from slimbit.numerics.energy import level_bits
from slimbit.numerics.grid import to_levels
from slimbit.numerics.moments import channel_moments, paired_statistics
from slimbit.plan.inputs import PlanInputs
from slimbit.plan.steps import step_by_deviation, step_by_price, step_by_range
from slimbit.records.codec import from_plain, plain
from slimbit.records.config import QuantConfig
from slimbit.records.plan import CompressionPlan, LayerPlan
from slimbit.survey.module import survey_network

PLAIN = QuantConfig(compensation=False, statistics="stored")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def small_net(seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=2, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 6, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    )
    for module in net:
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return net.eval()


def images(count=24, seed=1):
    return torch.randn(count, 3, 8, 8, generator=generator(seed))


@pytest.fixture(scope="module")
def known():
    net, x = small_net(), images()
    spec = survey_network(net, x[:1]).spec
    sensitivity = measure_sensitivity(net, spec, x, generator=generator(2))
    return net, x, spec, PlanInputs(spec=spec, weights=weights_of(net, spec), sensitivity=sensitivity)


def esn(layers, spec):
    levels = {name: layer.levels for name, layer in layers.items()}
    analog = sum(layer.positions * float(levels[layer.name].square().sum()) for layer in spec.layers)
    digital = sum(layer.positions * int(level_bits(levels[layer.name]).sum()) for layer in spec.layers)
    return analog, digital


def test_the_users_network_is_untouched_and_the_new_one_holds_step_times_levels(known):
    net, x, spec, inputs = known
    before = {key: value.clone() for key, value in net.state_dict().items()}
    result = compress(net, step_by_price(inputs, 2e-9, "esn_analog"), spec, x)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert not any(module._forward_pre_hooks for module in (*net.modules(), *result.model.modules()))
    for layer in spec.layers:
        weight = result.model.get_parameter(layer.weight_key)
        torch.testing.assert_close(weight.detach(), result.layers[layer.name].weights())


def test_max_abs_clips_the_extreme_weight(known):
    net, _, spec, inputs = known
    result = compress(net, step_by_range(inputs, 3, PLAIN), spec)
    for layer in spec.layers:
        # max|W| / 4 is the step, so the extreme weight is 4 steps: floor + 0.5 = 4.5 if positive, clipped to 3.5
        assert result.layers[layer.name].levels.abs().max() == 3.5


def test_sigma_steps_are_multiples_of_the_root_mean_square_of_each_filter(known):
    _, _, spec, inputs = known
    plan = step_by_deviation(inputs, 0.5, QuantConfig(grid="midrise_zero", granularity="filter"))
    weight = inputs.weights[spec.layers[0].name]
    assert plan.layers[0].steps == pytest.approx([0.5 * float(row.square().mean().sqrt()) for row in weight])


@pytest.mark.parametrize("metric", ["esn_analog", "esn_digital"])
@pytest.mark.parametrize("grid", ["midrise", "midrise_zero", "midtread"])
@pytest.mark.parametrize("rounding", ["nearest", "rate_aware"])
def test_cost_falls_when_the_price_grows(known, metric, grid, rounding):
    net, _, spec, inputs = known
    config = PLAIN.model_copy(update={"rounding": rounding, "grid": grid})
    costs = []
    for price in (1e-10, 1e-8, 1e-6, 1e-4):
        plan = step_by_price(inputs, price, metric, config)
        costs.append(esn(compress(net, plan, spec).layers, spec)[metric == "esn_digital"])
    assert costs == sorted(costs, reverse=True)
    assert costs[0] > 1.5 * costs[-1]


def test_filterwise_cost_falls_to_nothing_and_pruned_filters_are_explicit(known):
    _, _, _, inputs = known
    widths = []
    for price in (1e-11, 1e-8, 1e-6, 1e3):
        plan = step_by_price(inputs, price, "esn_filterwise", QuantConfig(grid="midrise"))
        widths.append(sum(len(x.kept) if x.kept is not None else len(x.steps) for x in plan.layers))
    assert widths == sorted(widths, reverse=True)
    assert all(x.kept == () for x in plan.layers)


def test_filterwise_levels_stay_within_their_widths_under_compensation(known):
    net, x, spec, inputs = known
    plan = step_by_price(inputs, 1e-8, "esn_filterwise", QuantConfig(grid="midrise"))
    result = compress(net, plan, spec, x)
    for layer in plan.layers:
        levels = result.layers[layer.name].levels.flatten(1).abs().amax(1)
        assert bool((levels <= torch.tensor(layer.limits)).all())
        cut = set(range(len(levels))) - set(range(len(levels)) if layer.kept is None else layer.kept)
        assert {f for f in range(len(levels)) if levels[f] == 0} == cut


def test_filterwise_refuses_an_uncounted_zero(known):
    with pytest.raises(ValueError, match=r"grid must be midrise or midtread for esn_filterwise"):
        step_by_price(known[3], 1.0, "esn_filterwise", QuantConfig(grid="midrise_zero"))


@pytest.mark.parametrize("target", ["weights", "outputs"])
def test_compensation_lowers_the_error_of_the_outputs(known, target):
    net, x, spec, inputs = known
    with_it = step_by_price(inputs, 2e-8, "esn_analog", QuantConfig(target=target))
    without = dataclasses.replace(
        with_it,
        config=with_it.config.model_copy(update={"compensation": False, "target": "weights", "statistics": "paired"}),
    )
    with torch.no_grad():
        expected = net(x)
    error = {
        plan.config.compensation: float((compress(net, plan, spec, x).model(x).detach() - expected).square().mean())
        for plan in (with_it, without)
    }
    assert error[True] < 0.95 * error[False]


def test_several_batches_give_the_result_of_one(known):
    net, x, spec, inputs = known
    double = copy.deepcopy(net).double()
    plan = step_by_price(inputs, 2e-9, "esn_analog", QuantConfig(target="outputs"))
    one = compress(double, plan, spec, calibrate(double, spec, x.double(), samples=0))
    several = compress(double, plan, spec, calibrate(double, spec, x.double().split(7), samples=0, batch_size=7))
    assert all(torch.equal(one.layers[name].levels, several.layers[name].levels) for name in one.layers)
    for key, value in one.model.state_dict().items():
        torch.testing.assert_close(value, several.model.state_dict()[key])


@pytest.mark.parametrize("statistics", ["absolute", "paired", "paired_layerwise"])
def test_statistics_equal_a_recomputation_layer_by_layer(known, statistics):
    """Walk through the sequential net by hand, correcting each BatchNorm and bias before going on."""
    net, x, spec, inputs = known
    config = QuantConfig(compensation=False, statistics=statistics)
    result = compress(net, step_by_deviation(inputs, 1.5, config.model_copy(update={"grid": "midrise_zero"})), spec, x)
    a = b = x
    with torch.no_grad():
        for before, after in zip(net, result.model, strict=True):
            if isinstance(before, nn.BatchNorm2d):
                if statistics == "absolute":
                    mean, var = b.mean((0, 2, 3)), b.var((0, 2, 3), correction=1)
                else:
                    mean, var = paired_statistics(
                        before.running_mean.double(),
                        before.running_var.double(),
                        original=channel_moments(a),
                        quantized=channel_moments(b),
                    )
                torch.testing.assert_close(after.running_mean, mean.float(), rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(after.running_var, var.float(), rtol=1e-4, atol=1e-5)
            a, b = before(a), after(b)
            if getattr(before, "bias", None) is not None and not isinstance(before, nn.BatchNorm2d):
                dims = (0, 2, 3) if a.ndim == 4 else (0,)
                torch.testing.assert_close(b.mean(dims), a.mean(dims), rtol=1e-4, atol=1e-5)


def test_stored_statistics_stay(known):
    net, x, spec, inputs = known
    result = compress(net, step_by_range(inputs, 2, QuantConfig(grid="midrise_zero", statistics="stored")), spec, x)
    for key, value in net.state_dict().items():
        if "running" in key or "bias" in key:
            assert torch.equal(result.model.state_dict()[key], value)


def test_results_are_reproducible_bit_for_bit(known):
    net, x, spec, inputs = known
    plan = step_by_price(inputs, 2e-9, "esn_digital", QuantConfig(target="outputs", refit=True))
    first, second = (compress(net, plan, spec, calibrate(net, spec, x, samples=50, seed=3)) for _ in range(2))
    assert first.digest() == second.digest()
    other = compress(net, plan, spec, calibrate(net, spec, x, samples=50, seed=4))
    assert other.digest() != first.digest()


def test_levels_are_fixed_points_of_the_grid(known):
    net, x, spec, inputs = known
    for grid in ("midrise", "midrise_zero", "midtread"):
        plan = step_by_price(inputs, 2e-9, "esn_analog", QuantConfig(grid=grid))
        for layer in compress(net, plan, spec, x).layers.values():
            levels = layer.levels
            # a hundredth of a step inside the cell, so that the border of a cell does not decide
            nudged = levels + 0.01 * (levels != 0)
            assert torch.equal(to_levels(nudged, torch.tensor(1.0), grid=grid), levels)


class Everything(nn.Module):
    """Attention, an embedding, tied weights, a transposed convolution, a module called twice."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)
        self.twice = nn.Linear(8, 8)
        self.up = nn.ConvTranspose1d(8, 6, 3, stride=2)
        self.down = nn.Conv1d(6, 8, 3, padding=1, groups=2)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.embed(tokens)
        x = x + self.attn(x, x, x, need_weights=False)[0]
        x = self.twice(torch.relu(self.twice(x)))
        x = self.down(torch.relu(self.up(x.transpose(1, 2))))
        return self.head(x.mean(2))


def test_every_kind_of_weight_ends_on_its_grid():
    torch.manual_seed(0)
    net = Everything().eval()
    tokens = torch.randint(11, (16, 5), generator=generator())
    spec = survey_network(net, tokens[:1]).spec
    sensitivity = measure_sensitivity(net, spec, tokens, generator=generator())
    inputs = PlanInputs(spec=spec, weights=weights_of(net, spec), sensitivity=sensitivity)
    plan = step_by_price(inputs, 1e-7, "esn_digital")
    for batches in (tokens, tokens.split(5)):
        result = compress(net, plan, spec, calibrate(net, spec, batches, batch_size=5))
        assert set(result.layers) == {layer.name for layer in spec.layers if not layer.shared_with}
        assert result.model.head.weight is result.model.embed.weight
        for layer in plan.layers:
            spec_layer = spec.layer(layer.name)
            stored = result.model.get_parameter(spec_layer.weight_key)
            stored = stored[slice(*(spec_layer.rows or (None,)))]
            assert (
                stored.detach()
                .div(layer.steps[0])
                .mul(2)
                .sub(stored.detach().div(layer.steps[0]).mul(2).round())
                .abs()
                .max()
                < 1e-3
            )
        assert torch.isfinite(result.model(tokens)).all()


def test_plan_round_trips_and_its_digest_follows_its_content(known):
    plan = step_by_price(known[3], 1e-9, "esn_filterwise", QuantConfig(grid="midtread"))
    again = from_plain(CompressionPlan, plain(plan), where="plan")
    assert again == plan
    assert again.digest() == plan.digest()
    assert dataclasses.replace(plan, config=plan.config.model_copy(update={"refit": True})).digest() != plan.digest()


def test_compensation_factors_make_closed_forms_spend_less_where_repair_is_easy(known):
    net, x, spec, inputs = known
    shares = compensation_factors(net, spec, calibrate(net, spec, x))
    assert set(shares) == {layer.name for layer in spec.layers}
    assert all(0 < share <= 1.02 for share in shares.values())  # 1 % damping can lift it just above 1
    told = dataclasses.replace(inputs, compensation_factors=shares)
    plain, repaired = (step_by_price(e, 1e-9, "esn_digital") for e in (inputs, told))
    for layer, before, after in zip(spec.layers, plain.layers, repaired.layers, strict=True):
        # step^2 = 12 price c / (s share ln 2)
        assert after.steps[0] == pytest.approx(before.steps[0] / shares[layer.name] ** 0.5)


def test_skipped_layers_stay_float(known):
    net, x, spec, inputs = known
    first = spec.layers[0]
    plan = step_by_range(inputs, 2, QuantConfig(grid="midrise_zero", skip=(first.name,)))
    result = compress(net, plan, spec, x)
    assert first.name not in result.layers
    assert torch.equal(result.model.get_parameter(first.weight_key), net.get_parameter(first.weight_key))


def test_sensitivity_of_a_linear_gaussian_model_is_the_mean_squared_input():
    # gradient of the log-likelihood by w[f, d] is noise[f] * x[d]: its mean square is mean x[d]^2 = (1 + 4) / 2
    net = nn.Linear(2, 3, bias=False)
    x = torch.tensor([[1.0, 2.0]]).repeat(4000, 1)
    spec = survey_network(net, x[:1]).spec
    for together in (1, 8):
        found = measure_sensitivity(
            net, spec, x[: 1000 * together], generator=generator(), likelihood="gaussian", images_per_pass=together
        )
        assert found.layer(spec.layers[0].name) == pytest.approx(2.5, rel=0.1)


def test_sensitivity_of_logistic_regression_is_the_closed_form():
    # two classes: d log p(y) / d w[0, :] = (1[y = 0] - p0) x, mean square p0 p1 x^2
    net = nn.Linear(1, 2, bias=False)
    net.weight.data = torch.tensor([[1.0], [0.0]])
    p = torch.sigmoid(torch.tensor(1.0)).item()
    x = torch.ones(3000, 1)
    spec = survey_network(net, x[:1]).spec
    found = measure_sensitivity(net, spec, x, generator=generator(), images_per_pass=4)
    assert found.filters[spec.layers[0].name] == pytest.approx((p * (1 - p),) * 2, rel=0.1)


def test_a_plan_for_a_filter_count_that_does_not_fit_is_refused(known):
    net, _, spec, _ = known
    bad = CompressionPlan(
        network="n",
        policy="own",
        layers=(LayerPlan(name=spec.layers[0].name, steps=(1.0, 2.0)),),
        config=PLAIN,
    )
    with pytest.raises(ValueError, match=r"steps of layer '.*' must be 1 or 8 numbers, got 2"):
        compress(net, bad, spec)


class TiedLater(nn.Module):
    """Two layers share a weight that was registered with the one that runs last, or first."""

    def __init__(self, *, first: str) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.b.weight, self.first = self.a.weight, first

    def forward(self, x: Tensor) -> Tensor:
        order = (self.a, self.b) if self.first == "a" else (self.b, self.a)
        for layer in order:
            x = torch.relu(layer(x))
        return self.head(x)


@pytest.mark.parametrize("first", ["a", "b"])
def test_tied_weights_are_followed_in_whatever_order_they_are_used(first: str, tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(2)
        net, x = TiedLater(first=first).eval(), torch.randn(64, 6)
    second = {"a": "b", "b": "a"}[first]
    spec = survey_network(net, x[:1]).spec
    assert [(layer.name, layer.shared_with) for layer in spec.layers] == [(first, ""), (second, first), ("head", "")]
    # the tied weight once, a bias for each of the two layers, the head
    assert (
        slimbit.cost(net, x[:1]).total.parameters == 36 + 2 * 6 + (18 + 3) == sum(p.numel() for p in net.parameters())
    )

    def agreement(network: nn.Module) -> float:
        with torch.no_grad():
            return 100.0 * float((network(x).argmax(1) == net(x).argmax(1)).double().mean())

    frontier = slimbit.trace_frontier(net, x[:1], x, agreement, out=tmp_path / "run", points=2)
    assert {point.state for point in frontier.points} == {"done"}
    sensitivity = measure_sensitivity(net, spec, [x], generator=torch.Generator().manual_seed(0))
    inputs = PlanInputs(spec=spec, weights=weights_of(net, spec), sensitivity=sensitivity)
    result = compress(net, step_by_range(inputs, 3), spec, x)
    assert result.model.a.weight is result.model.b.weight
    assert set(result.layers) == {first, "head"}
    again, layers = unpack_model(pack_model(result.model, result.layers, spec), net)
    assert set(layers) == set(result.layers)
    assert again.a.weight is again.b.weight
    with torch.no_grad():
        assert torch.equal(again(x), result.model(x))
