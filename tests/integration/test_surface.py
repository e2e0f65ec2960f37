"""The public surface end to end: quantize within budgets, prune, what comes out goes in again, saved and loaded."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

import slimbit
from slimbit.records.codec import plain
from slimbit.records.origin import NetworkOrigin, Normalization
from slimbit.records.setting import Bits, Price

BUDGET = 150e3


@cache
def digits() -> Tensor:
    pytest.importorskip("sklearn")
    return torch.cat(list(slimbit.open_data("digits").calibration(64)))


def images(count: int = 64) -> Tensor:
    return digits()[:count]


def network() -> nn.Module:
    return slimbit.network("digits_resnet", weights="shipped")


@pytest.fixture(scope="module")
def prepared() -> slimbit.PreparedNetwork:
    return slimbit.prepare(network(), images(1), images())


def recounted(small: slimbit.CompressedModel) -> Any:
    """Cost of the network that came out, from its weights and steps, as `slimbit.cost` counts any module."""
    steps = {name: layer.steps for name, layer in small.layers.items()}
    grid = next(iter(small.layers.values())).grid
    return slimbit.cost(small.model, images(1), steps=steps, grid=grid).total


def same_bits(one: slimbit.CompressedModel, other: slimbit.CompressedModel) -> None:
    """Everything of two compressed models is equal."""
    with torch.no_grad():
        assert torch.equal(one.model(images()), other.model(images()))
    for (key, a), (name, b) in zip(one.model.state_dict().items(), other.model.state_dict().items(), strict=True):
        assert key == name
        assert torch.equal(a, b), key
    assert (one.plan, one.keep) == (other.plan, other.keep)
    assert plain(one.cost) == plain(other.cost)
    for name, layer in one.layers.items():
        assert torch.equal(layer.levels, other.layers[name].levels), name
        assert torch.equal(layer.steps, other.layers[name].steps), name


@pytest.mark.parametrize("metric", ["esn_digital", "esn_analog", "esn_filterwise", "weight_bytes"])
def test_a_budget_is_met_by_the_exact_cost_and_used(prepared: slimbit.PreparedNetwork, metric: str) -> None:
    amount = 0.3 * slimbit.cost(prepared, bits=8).total[metric]
    small = slimbit.quantize(prepared, budget={metric: amount})
    assert 0.97 * amount < small.cost.total[metric] <= amount
    assert isinstance(small.plan.setting, Price)
    assert small.plan.setting.metric == metric
    if metric not in (
        "esn_filterwise",
        "weight_bytes",
    ):  # whose pruned filters a recount from weights alone takes for zeros
        assert recounted(small)[metric] == pytest.approx(small.cost.total[metric], rel=1e-9)


def test_several_budgets_are_met_together(prepared: slimbit.PreparedNetwork) -> None:
    whole = slimbit.cost(prepared, bits=8).total
    digital, analog = 0.5 * whole.esn_digital, 0.001 * whole.esn_analog
    both = slimbit.quantize(prepared, budget={"esn_digital": digital, "esn_analog": analog})
    assert both.cost.total.esn_digital <= digital
    assert both.cost.total.esn_analog <= analog
    # the two pull at different steps: the tighter one is used up
    used = (both.cost.total.esn_digital / digital, both.cost.total.esn_analog / analog)
    assert max(used) > 0.97
    alone = slimbit.quantize(prepared, budget={"esn_digital": digital})
    assert alone.cost.total.esn_analog > analog


def test_a_budget_of_what_no_price_is_for(prepared: slimbit.PreparedNetwork) -> None:
    limit = 0.5 * slimbit.cost(prepared, bits=8).total.weight_bytes
    small = slimbit.quantize(prepared, budget={"weight_bytes": limit})
    assert 0.9 * limit < small.cost.total.weight_bytes <= limit


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "one of bits, price, budget, signal must be given, got none"),
        ({"bits": 4, "price": 1e-9}, "one of bits, price, budget, signal must be given, got bits and price"),
        ({"budget": {}}, "budget must map costs to amounts"),
        ({"budget": 20e6}, "budget must map costs to amounts"),
        ({"budget": {"esn_digitl": 20e6}}, "got 'esn_digitl'; did you mean esn_digital"),
        ({"budget": {"esn_digital": -1}}, "budget of esn_digital must be a positive number, got -1"),
        ({"budget": {"esn_digital": True}}, "budget of esn_digital must be a positive number, got True"),
        (
            {"budget": {"parameters": 10}},
            "budget must be one that a network fits, got .*: the (least is|nearest found costs) parameters",
        ),
        ({"price": 0}, "price must be a positive number, got 0"),
        (
            {"price": 1e-9, "metric": "parameters"},
            "metric must be a cost that bit widths or dropped filters change, got 'parameters'",
        ),
        ({"bits": 17}, "bits must be from 1 to 16, got 17"),
        ({"bits": 4, "example_input": torch.zeros(1, 1, 8, 8)}, "must not be given for a prepared network"),
        ({"bits": 4, "config": slimbit.QuantConfig(skip=("fc9",))}, "skip must name layers of the network, got 'fc9'"),
    ],
)
def test_questions_that_cannot_be_answered(
    prepared: slimbit.PreparedNetwork, arguments: dict[str, Any], said: str
) -> None:
    with pytest.raises(slimbit.InputError, match=said):
        slimbit.quantize(prepared, **arguments)


def test_what_is_no_network_is_said() -> None:
    with pytest.raises(slimbit.InputError, match=r"model must be a torch\.nn\.Module, .* got str"):
        slimbit.quantize("resnet20", images(1), images(), bits=4)
    with pytest.raises(slimbit.InputError, match=r"example_input must be given, e\.g\. torch\.zeros\(1, 3, 32, 32\)"):
        slimbit.quantize(network(), bits=4)
    with pytest.raises(slimbit.InputError, match="calibration images must be given"):
        slimbit.quantize(network(), images(1), bits=4)
    plainly = slimbit.QuantConfig(compensation=False, statistics="stored")
    assert slimbit.quantize(network(), images(1), bits=4, config=plainly).plan.setting == Bits(4.0)


def test_batches_with_labels_are_images(prepared: slimbit.PreparedNetwork) -> None:
    data = torch.utils.data.TensorDataset(images(), torch.zeros(64, dtype=torch.long))
    loader = torch.utils.data.DataLoader(data, batch_size=64)
    same_bits(
        slimbit.quantize(network(), images(1), loader, bits=4),
        slimbit.quantize(network(), images(1), [images()], bits=4),
    )


def test_what_comes_out_goes_in_again(tmp_path: Path) -> None:
    before = network()
    state = {key: value.clone() for key, value in before.state_dict().items()}
    slim = slimbit.prune(before, images(1), images(), keep=0.5, protect=("layer3.*",))
    both = slimbit.quantize(slim, images(1), images(), budget={"esn_digital": BUDGET})
    assert all(torch.equal(value, state[key]) for key, value in before.state_dict().items())
    assert both.keep == slim.keep
    assert (slim.plan, slim.layers) == (None, {})
    assert both.cost.total.esn_digital <= BUDGET
    assert slim.model.layer3[0].conv1.out_channels == before.layer3[0].conv1.out_channels
    assert slim.model.layer1[0].conv1.out_channels == before.layer1[0].conv1.out_channels // 2
    quarter = slimbit.prune(slim, images(1), images(), keep=0.5, protect=("layer3.*",))
    assert quarter.model.layer1[0].conv1.out_channels == before.layer1[0].conv1.out_channels // 4
    for number, small in enumerate((both, slim, quarter)):
        found = slimbit.load(small.save(tmp_path / str(number)))
        same_bits(small, found) if small.plan else None
        with torch.no_grad():
            assert torch.equal(found.model(images()), small.model(images()))
        assert found.keep == small.keep
        assert found.cost.total == small.cost.total
    again = slimbit.load(slimbit.load(tmp_path / "0").save(tmp_path / "copy"))
    same_bits(again, both)
    for name in ("levels.bin", "state.safetensors", "plan.json", "cost.json", "keep.json"):
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "copy" / name).read_bytes(), name


def test_what_is_neither_is_not_saved(tmp_path: Path) -> None:
    whole = slimbit.prune(network(), images(1), keep=1.0)
    assert whole.keep.axes == ()
    small = slimbit.quantize(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), {"input": images(1)}, None, bits=4,
                             config=slimbit.QuantConfig(compensation=False, statistics="stored"))  # fmt: skip
    with pytest.raises(slimbit.InputError, match="origin of the network must be known to save it"):
        small.save(tmp_path / "net")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def frontier(tmp_path_factory: pytest.TempPathFactory, prepared: slimbit.PreparedNetwork) -> slimbit.Frontier:
    wanted = prepared.model(images()).argmax(1)

    def agreement(model: nn.Module) -> slimbit.Accuracy:
        with torch.no_grad():
            return slimbit.Accuracy.of((model(images()).argmax(1) == wanted).tolist())

    out = tmp_path_factory.mktemp("surface") / "run"
    config = slimbit.RunConfig(keep_ratios=(1.0, 0.5), baselines=False)
    return slimbit.trace_frontier(prepared, evaluate=agreement, out=out, points=4, config=config)


def test_the_best_point_within_budgets_is_that_of_a_loop(frontier: slimbit.Frontier) -> None:
    points = [p for p in frontier.points if p.state == "done"]
    for digital in sorted(p.costs["esn_digital"] for p in points):
        for analog in sorted(p.costs["esn_analog"] for p in points):
            within = {"esn_digital": digital, "esn_analog": analog}
            fits = [p for p in points if all(p.costs[name] <= amount for name, amount in within.items())]
            if fits:
                found = frontier.best(within)
                assert found in fits
                assert found.accuracy == max(p.accuracy for p in fits)
            else:
                with pytest.raises(slimbit.InputError, match="budget must be one that a point fits, got esn_digital"):
                    frontier.best(within)


def test_the_cheapest_point_is_that_of_a_loop(frontier: slimbit.Frontier) -> None:
    points = [p for p in frontier.points if p.state == "done"]
    for metric in ("esn_digital", "weight_bytes"):
        for accuracy in {p.accuracy for p in points}:
            found = frontier.cheapest(accuracy, metric)
            assert found.accuracy >= accuracy
            assert found.costs[metric] == min(p.costs[metric] for p in points if p.accuracy >= accuracy)
    with pytest.raises(slimbit.InputError, match="agreement must be one that a point reaches, got 101"):
        frontier.cheapest(101)
    with pytest.raises(slimbit.InputError, match=r"metric must be one of .* got 'esn'"):
        frontier.cheapest(50, "esn")


def test_every_point_is_loaded_saved_and_loaded_bit_for_bit(frontier: slimbit.Frontier, tmp_path: Path) -> None:
    later = slimbit.open_run(frontier.path)  # without the network
    assert later.points == frontier.points
    assert {p.keep_ratio for p in later.points} == {1.0, 0.5}
    for point in later.points:
        small, again = frontier.load(point), later.load(point)
        same_bits(small, again)
        shipped = slimbit.load(small.save(tmp_path / str(point.number)))
        same_bits(small, shipped)
        assert shipped.accuracy.value == point.accuracy
        assert (small.keep is None) == (point.keep_ratio == 1)
        assert {name: small.cost.total[name] for name in point.costs} == dict(point.costs)
        # what the run keeps of a point is what is shipped
        for name, role in (("levels.bin", "levels"), ("state.safetensors", "state"), ("plan.json", "plan")):
            kind = {"levels": "bin", "state": "safetensors"}.get(role, "json")
            assert (tmp_path / str(point.number) / name).read_bytes() == later.read_object(point.objects[role], kind)


def test_a_point_of_the_run_is_what_quantize_gives_at_its_price(
    frontier: slimbit.Frontier, prepared: slimbit.PreparedNetwork
) -> None:
    point = next(p for p in frontier.points if p.keep_ratio == 1 and p.policy == "optimal")
    same_bits(frontier.load(point), slimbit.quantize(prepared, price=point.price, metric=point.metric))


def test_points_keep_their_hits_and_are_compared_pairwise(frontier: slimbit.Frontier) -> None:
    for point in frontier.points:
        measured = point.measured()
        assert measured == point.accuracy
        assert sum(measured.right()) == round(point.accuracy * 64 / 100)
        assert point.accuracy_low <= point.accuracy <= point.accuracy_high


def test_the_report_is_one_file(frontier: slimbit.Frontier, tmp_path: Path) -> None:
    file = frontier.report(tmp_path / "report.html")
    assert file == tmp_path / "report.html"
    assert file.read_text().startswith("<!doctype html>")
    assert len(json.loads(json.dumps([point.to_dict() for point in frontier.points]))) == len(frontier.points)


def test_every_form_of_a_network_costs_the_same() -> None:
    """A masked module, what prepare makes of it, and the same weights counted layer by layer."""
    masked = network()
    for layer in (masked.layer1[0].conv1, masked.layer3[0].conv2):
        torch_prune.ln_structured(layer, "weight", 0.5, n=2, dim=0)
    for bits in (None, 1, 4):
        whole = slimbit.cost(masked, images(1), bits=bits)
        assert slimbit.cost(slimbit.prepare(masked, images(1), None), bits=bits).total == whole.total
    small = slimbit.quantize(network(), images(1), images(), bits=4)
    assert slimbit.cost(small).total == small.cost.total
    with pytest.raises(slimbit.InputError, match="must not be given for a quantized model, which has its own"):
        slimbit.cost(small, bits=2)
    slim = slimbit.prune(network(), images(1), keep=0.5)
    assert slimbit.cost(slim).total == slim.cost.total == slimbit.cost(slim.model, images(1)).total
    assert slimbit.cost("digits_resnet", bits=4).total == slimbit.cost(network(), images(1), bits=4).total
    assert "digits_resnet" in str(small.cost)


def test_a_pruning_within_budgets_keeps_what_fits_all_of_them() -> None:
    """Each budget alone is used up to the next filter; together the tighter one decides."""
    whole = slimbit.cost(network(), images(1), bits=8).total
    found = {}
    for name, budget in {
        "macs": {"macs": 0.6},
        "bits": {"esn_digital": 0.3},
        "both": {"macs": 0.6, "esn_digital": 0.3},
    }.items():
        slim = slimbit.prune(network(), images(1), config=slimbit.PruneConfig(budget=budget))
        found[name] = slimbit.cost(slim.model, images(1), bits=8).total
    assert 0.4 * whole.macs < found["macs"].macs <= 0.6 * whole.macs
    assert 0.2 * whole.esn_digital < found["bits"].esn_digital <= 0.3 * whole.esn_digital
    assert found["both"] == found["bits"]
    with pytest.raises(slimbit.InputError, match="one of keep and budget may be given, got both"):
        slimbit.prune(network(), images(1), keep=0.5, config=slimbit.PruneConfig(budget={"macs": 0.5}))
    with pytest.raises(slimbit.InputError, match="budget must not be given for a frontier"):
        slimbit.RunConfig(keep_ratios=(1, 0.5), prune=slimbit.PruneConfig(budget={"macs": 0.5}))


@pytest.mark.parametrize("way", ["quantized", "pruned"])
def test_what_was_measured_and_what_inputs_need_come_back_with_the_folder(way: str, tmp_path: Path) -> None:
    origin = NetworkOrigin(
        source="digits_resnet", input_shape=(1, 8, 8), data="digits", normalization=Normalization((0.3,), (0.4,))
    )
    prepared = slimbit.prepare(network(), images(1), images(), origin=origin)
    small = slimbit.quantize(prepared, bits=4) if way == "quantized" else slimbit.prune(prepared, keep=0.5)
    small = small.with_accuracy(lambda _: slimbit.Accuracy(75.0, 16), measured_on="sixteen images")
    again = slimbit.load(small.save(tmp_path / "small"))
    assert again.accuracy == small.accuracy
    assert again.accuracy.low < 75 < again.accuracy.high
    assert again.origin.normalization == origin.normalization
    assert again.origin.weights_digest == prepared.digest
    assert again.card() | {"data": "digits"} == small.card()
    assert small.card()["normalize"] == {"mean": [0.3], "std": [0.4]}
    assert way in repr(small)
    assert "accuracy 75.00" in repr(small)
    assert "64 calibration images" in repr(prepared)
    if way == "pruned":
        assert slimbit.zoo.read_card(tmp_path / "small/model.safetensors") == small.card()
        masked = small.masked(network(), images(1))
        assert torch.allclose(
            slimbit.prune(network(), images(1), keep=0.5).model(images()), masked(images()), atol=1e-4
        )
        assert slimbit.cost(masked, images(1), bits=4).total.macs == slimbit.cost(small, bits=4).total.macs
    else:
        with pytest.raises(slimbit.InputError, match="must be a pruned network to have masks"):
            small.masked(network(), images(1))
    for value in (True, float("nan"), "good"):
        with pytest.raises(slimbit.InputError, match="evaluate must return a finite number"):
            small.with_accuracy(lambda _, value=value: value)


def test_a_folder_of_something_else_says_what_is_needed(frontier: slimbit.Frontier, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path, message in (
        (tmp_path / "none", r"slimbit\.json .* or prune\.json .*, got nothing"),
        (tmp_path / "empty", "got one without"),
        (frontier.path, r"got a run: slimbit\.open_run opens it"),
    ):
        with pytest.raises(slimbit.InputError, match=message):
            slimbit.load(path)


def test_every_config_reads_toml_and_training_comes_with_recipes(tmp_path: Path) -> None:
    for config, text in (
        (slimbit.QuantConfig(skip=("fc",)), 'skip = ["fc"]'),
        (slimbit.PruneConfig(budget={"macs": 0.5}), "budget = {macs = 0.5}"),
        (slimbit.TuneConfig(epochs=3), "epochs = 3"),
        (slimbit.RunConfig(points=3), "points = 3"),
        (slimbit.TrainConfig(epochs=3), "epochs = 3"),
    ):
        file = tmp_path / "settings.toml"
        file.write_text(text)
        assert type(config).from_toml(file) == config
        file.write_text("unheard_of = 1")
        with pytest.raises(
            slimbit.InputError, match=r"settings\.toml: settings must hold only known keys, got unheard_of"
        ):
            type(config).from_toml(file)
    assert slimbit.TrainConfig.from_recipe("resnet20-quick").scale == "quick"
    with pytest.raises(
        slimbit.InputError, match="recipe must be one that comes with Slimbit, got 'resnet20-quik'; did you"
    ):
        slimbit.TrainConfig.from_recipe("resnet20-quik")
