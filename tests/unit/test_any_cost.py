"""Any cost as the metric: its name, what every layer costs at every width, and the widths of a price."""

import itertools
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import slimbit
from slimbit.compress.prepared import PreparedNetwork
from slimbit.measure.hardware_models import UnfitError
from slimbit.measure.named_cost import load_amounts, load_cost
from slimbit.plan.inputs import PlanInputs
from slimbit.plan.steps import step_by_price
from slimbit.plan.widths import ActivationChoice, WidthCosts, price_bounds, widths_by_price
from slimbit.records.config import QuantConfig
from slimbit.records.cost import LayerCost
from slimbit.records.sensitivity import Sensitivity
from slimbit.survey.module import survey_network

MODES = """
name = "edge"
[[mode]]
weight_bits = 8
activation_bits = 8
cost_per_mac = 0.5
[[mode]]
weight_bits = 4
activation_bits = 8
cost_per_mac = 0.25
"""
TABLE = QuantConfig(compensation=False).for_metric("macs")


def network() -> nn.Module:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(3)
        return nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
            nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
            nn.Conv2d(6, 4, 1, bias=False), nn.ReLU(),
            nn.Flatten(), nn.Linear(4 * 36, 3),
        ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def prepared() -> PreparedNetwork:
    images = torch.randn(48, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    return slimbit.prepare(network(), images[:1], images)


@pytest.fixture
def edge(tmp_path: Path) -> Path:
    (tmp_path / "edge.toml").write_text(MODES)
    return tmp_path / "edge.toml"


def inputs_of(net: nn.Module) -> PlanInputs:
    spec = survey_network(net, torch.zeros(1, 2, 6, 6)).spec
    weights: dict[str, Tensor] = {x.name: net.state_dict()[x.weight_key] for x in spec.layers}
    generator = torch.Generator().manual_seed(1)
    sensitivity = {x.name: tuple((torch.rand(x.filters, generator=generator) + 0.1).tolist()) for x in spec.layers}
    factors = {"0": 0.1, "6": 0.5}
    return PlanInputs(spec=spec, weights=weights, sensitivity=Sensitivity(sensitivity, 1), compensation_factors=factors)


# --- names ---


def test_a_cost_is_found_by_every_kind_of_name(edge: Path) -> None:
    assert load_cost("weight_bytes").name == "weight_bytes"
    assert load_cost("hardware:loom").name == "hardware:loom"
    assert (
        load_cost(edge).name == load_cost(str(edge)).name == f"hardware:{load_cost(edge).model.name}" == "hardware:edge"
    )
    assert load_cost(lambda layer: layer.macs).unit == "units"
    assert load_cost("hardware:edge", (load_cost(edge),)).model is not None


@pytest.mark.parametrize(
    ("cost", "words"),
    [
        ("bit_ops", r"metric must be one of parameters, macs, .*, hardware:NAME, a .toml file .* got 'bit_ops'"),
        (
            "hardware:edge",
            r"metric must be hardware:NAME of a known machine, got 'hardware:edge'.* Known: ",
        ),
        ("nowhere.toml", "hardware model must exist, got none at nowhere.toml"),
        (8, "metric must be one of .* got 8"),
    ],
)
def test_a_cost_that_does_not_exist_is_answered_with_what_there_is(cost: object, words: str) -> None:
    with pytest.raises(slimbit.InputError, match=words):
        load_cost(cost)  # type: ignore[arg-type]


def test_a_cost_may_be_named_once(edge: Path) -> None:
    with pytest.raises(slimbit.InputError, match="budget must name each cost once, got 'hardware:edge' twice"):
        load_amounts({edge: 1.0, str(edge): 2.0})


def test_a_file_that_is_read_twice_is_the_same_machine(edge: Path) -> None:
    assert load_cost(edge).is_same(load_cost(edge))
    other = edge.with_name("other.toml")
    other.write_text(MODES.replace("0.25", "0.3"))
    assert not load_cost(edge).is_same(load_cost(other))


# --- the table ---


def test_the_table_holds_what_the_machine_pays(prepared: PreparedNetwork, edge: Path) -> None:
    """One bit of mid-tread would be nothing; 1/4 per MAC from 2 to 4 bits, 1/2 to 8.

    At two bits a weight or two of the linear layer is alone with its input and becomes zero, so that the input goes.
    """
    table = prepared.width_costs(load_cost(edge), TABLE)
    macs = {layer.name: layer.macs for layer in prepared.spec.layers}
    for name, costs in table.costs.items():
        shares = [x / macs[name] for x in costs[:, 0].tolist()]
        assert shares == pytest.approx([0.25] * 3 + [0.5] * 4, abs=0.01)
        assert shares[1:] == [0.25] * 2 + [0.5] * 4
    assert table.activations == ()


def test_widths_that_no_mode_holds_are_out_of_the_choice(prepared: PreparedNetwork, edge: Path) -> None:
    edge.write_text(MODES.replace("weight_bits = 8", "weight_bits = 5"))
    table = prepared.width_costs(load_cost(edge), TABLE)
    assert table.weight_bits == (2, 3, 4, 5, 6, 7, 8)
    assert all(costs[:, 0].isinf().tolist() == [False] * 4 + [True] * 3 for costs in table.costs.values())
    plan = prepared.plan_at(1e-12, edge, QuantConfig())
    assert {layer.weight_bits for layer in prepared.predicted(plan).layers} == {5}
    edge.write_text(MODES.replace("activation_bits = 8", "activation_bits = 4"))
    with pytest.raises(UnfitError, match=r"layer '0' must fit a mode of hardware model 'edge'"):
        prepared.plan_at(1e-12, edge, QuantConfig())


def test_a_function_that_fails_at_one_width_is_an_error_not_a_choice(prepared: PreparedNetwork) -> None:
    def broken(layer: LayerCost) -> float:
        return layer.macs / (layer.weight_bits - 3)

    with pytest.raises(slimbit.InputError, match=r"cost of layer .* must be a finite number of 0 or more, got "):
        prepared.plan_at(1e-9, slimbit.HardwareModel("broken", "cycles", broken), QuantConfig())


# --- the choice ---


def lagrangian(
    inputs: PlanInputs, price: float, table: WidthCosts, widths: Mapping[str, int], columns: Mapping[str, int]
) -> float:
    """Predicted loss + price x cost of given widths, filters dropped where that is less: a plain loop."""
    total = 0.0
    for name, width in widths.items():
        layer = next(x for x in inputs.spec.layers if x.name == name)
        found = inputs.width_table(layer, "midtread")
        cost = float(table.costs[name][table.weight_bits.index(width), columns.get(name, 0)]) if width else math.inf
        for row, s in enumerate(inputs.sensitivity.filters[name]):  # type: ignore[union-attr]
            left = inputs.compensation_factors.get(name, 1.0)
            kept = 0.5 * left * s * float(found.error[row, width]) + price * cost / layer.filters
            total += min(kept, 0.5 * s * float(found.error[row, 0]))
    return total


@pytest.mark.parametrize("price", [1e-7, 3e-5, 1e-3])
def test_the_choice_is_the_least_of_all_combinations(price: float) -> None:
    inputs = inputs_of(network())
    names = [layer.name for layer in inputs.spec.layers]
    generator = torch.Generator().manual_seed(2)
    costs = {name: torch.rand(3, 3, generator=generator, dtype=torch.float64).cumsum(0) * 1000 for name in names}
    costs[names[0]] = costs[names[0]][:, :1]  # reads the network's input
    choices = (
        ActivationChoice(points=("a",), layers=(names[1], names[2]), loss=(0.05, 0.01, 0.0)),
        ActivationChoice(points=("b", "c"), layers=(names[3],), loss=(0.2, 0.1, 0.05)),
    )
    table = WidthCosts(weight_bits=(2, 3, 4), costs=costs, activation_bits=(2, 4, 8), activations=choices)
    config = TABLE.model_copy(update={"compensation": True})
    plan, widths = widths_by_price(inputs, price, "bit_operations", config, table)

    best = math.inf
    for a, b in itertools.product(range(3), repeat=2):
        columns = {names[1]: a, names[2]: a, names[3]: b}
        for chosen in itertools.product((2, 3, 4), repeat=len(names)):
            value = lagrangian(inputs, price, table, dict(zip(names, chosen, strict=True)), columns)
            best = min(best, value + choices[0].loss[a] + choices[1].loss[b])
    columns = {names[1]: (2, 4, 8).index(widths["a"]), names[3]: (2, 4, 8).index(widths["b"])}
    columns[names[2]] = columns[names[1]]
    assert widths["b"] == widths["c"]
    taken = {x.name: 0 if x.kept == () else round(math.log2(max(x.limits) + 1)) + 1 for x in plan.layers}
    found = lagrangian(inputs, price, table, taken, columns)
    found += choices[0].loss[columns[names[1]]] + choices[1].loss[columns[names[3]]]
    assert found == pytest.approx(best, rel=1e-12)


def test_of_equal_costs_the_wider_is_taken(prepared: PreparedNetwork, edge: Path) -> None:
    narrow = prepared.predicted(prepared.plan_at(3e-5, edge, QuantConfig()))
    assert {layer.weight_bits for layer in narrow.layers} <= {0, 4, 8}


@pytest.mark.parametrize("metric", ["bit_operations", "macs", "nonzero_macs", "esn_analog_class_a", "hardware:stripes"])
def test_cost_falls_when_the_price_grows(prepared: PreparedNetwork, metric: str) -> None:
    cost = load_cost(metric)
    bounds = price_bounds(prepared.inputs(TABLE, priced=True), TABLE, prepared.width_costs(cost, TABLE))
    prices = [bounds[0] * (bounds[1] / bounds[0]) ** (k / 8) for k in range(9)]
    found = [cost.total(prepared.predicted(prepared.plan_at(price, metric, TABLE))) for price in prices]
    assert found == sorted(found, reverse=True)  # type: ignore[type-var]
    assert found[-1] == 0
    assert found[0] > 0  # type: ignore[operator]


def test_no_price_beyond_the_bounds_changes_anything(prepared: PreparedNetwork, edge: Path) -> None:
    cost = load_cost(edge)
    low, high = price_bounds(prepared.inputs(TABLE, priced=True), TABLE, prepared.width_costs(cost, TABLE))
    for price, beyond in ((low, low / 1000), (high, high * 1000)):
        assert prepared.plan_at(price, cost, TABLE).layers == prepared.plan_at(beyond, cost, TABLE).layers


@pytest.mark.parametrize(
    ("metric", "alike"),
    [
        ("hardware:ideal_digital", "esn_digital"),
        ("hardware:analog_class_b", "esn_analog"),
        ("hardware:filterwise", "esn_filterwise"),
    ],
)
def test_machines_that_are_a_metric_take_its_closed_form(prepared: PreparedNetwork, metric: str, alike: str) -> None:
    found, wanted = (prepared.plan_at(1e-6, name, QuantConfig()) for name in (metric, alike))
    assert found.layers == wanted.layers


def test_weight_bytes_are_widths_per_filter_and_mean_bits_a_digital_step() -> None:
    """A byte is eight bits of one weight; the mean is over all weights."""
    inputs = inputs_of(network())
    config = QuantConfig(compensation=False)
    per_weight = config.model_copy(update={"per": "parameter"})
    bytes_ = step_by_price(inputs, 8e-5, "weight_bytes", config)
    assert bytes_.layers == step_by_price(inputs, 1e-5, "esn_filterwise", per_weight).layers
    weights = sum(layer.weights for layer in inputs.spec.layers)
    mean = step_by_price(inputs, 1e-5 * weights, "mean_bits", config)
    digital = step_by_price(inputs, 1e-5, "esn_digital", per_weight)
    for one, other in zip(mean.layers, digital.layers, strict=True):
        assert one.steps == pytest.approx(other.steps, rel=1e-12)


# --- with activations ---


def test_activation_widths_are_chosen_with_those_of_weights(prepared: PreparedNetwork) -> None:
    small = slimbit.quantize(
        prepared, budget={"bit_operations": 16 * prepared_macs(prepared)}, config=QuantConfig(activation_bits=8)
    )
    widths = {layer.name: layer.activation_bits for layer in small.cost.layers}
    assert widths["0"] == 8  # the network's input
    assert len({*widths.values()}) > 1
    assert small.cost.total.bit_operations <= 16 * prepared_macs(prepared)
    assert small.cost.total.bit_operations == sum(x.macs * x.weight_bits * x.activation_bits for x in small.cost.layers)


def prepared_macs(prepared: PreparedNetwork) -> int:
    return sum(layer.macs for layer in prepared.spec.layers)


def test_a_machine_that_pads_activations_leaves_them_wide(prepared: PreparedNetwork, edge: Path) -> None:
    plan = prepared.plan_at(1e-5, edge, QuantConfig(activation_bits=8))
    assert {quantizer.bits for quantizer in plan.activations} == {8}


# --- budgets ---


@pytest.mark.parametrize(
    "metric", ["bit_operations", "weight_bytes", "mean_bits", "hardware:loom", "hardware:int8_array"]
)
def test_a_budget_of_any_cost_is_met(prepared: PreparedNetwork, metric: str) -> None:
    cost = load_cost(metric)
    whole = cost.total(slimbit.cost(prepared, bits=8))
    assert whole is not None
    small = slimbit.quantize(prepared, budget={metric: 0.6 * whole})
    found = cost.total(small.cost)
    assert found is not None
    assert 0.3 * whole < found <= 0.6 * whole
    assert small.plan.setting.metric == metric  # type: ignore[union-attr]


def test_a_budget_of_a_python_function(prepared: PreparedNetwork) -> None:
    machine = slimbit.HardwareModel("bytes", "B", lambda layer: layer.weight_bytes + layer.macs / 8)
    small = slimbit.quantize(prepared, budget={machine: 500.0})
    assert slimbit.cost(small, hardware=machine).hardware["bytes"].total <= 500
