"""Parts of a run one by one: intervals, packed levels, selection, refinement, output fidelity."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from slimbit.artifacts.packed import pack_model, unpack_model
from slimbit.compress.prepared import digest_of
from slimbit.frontier.price_range import _bracket, kappa_of
from slimbit.frontier.select import best_within, cheapest_at_accuracy, pareto_front
from slimbit.frontier.spacing import refinement_prices
from slimbit.numerics.fidelity import fidelity_of
from slimbit.numerics.levels import LayerLevels
from slimbit.records.accuracy import is_near_chance, wilson_interval
from slimbit.records.errors import InputError
from slimbit.records.point import FrontierPoint
from slimbit.records.setting import Price
from slimbit.survey.module import survey_network


def test_wilson_interval_by_hand() -> None:
    # p = 0.5, n = 4, z^2 = 3.8415: centre 0.5 + 3.8415/8 = 0.98018, spread 1.95996 sqrt(0.0625 + 3.8415/64) = 0.68604,
    # over 1 + 3.8415/4 = 1.96036: 0.15004 and 0.84996
    assert wilson_interval(50.0, 4) == pytest.approx((15.004, 84.996), abs=1e-3)
    assert wilson_interval(100.0, 10)[1] == 100.0
    assert wilson_interval(100.0, 10)[0] == pytest.approx(100 / (1 + 3.84146 / 10), abs=1e-3)


def test_chance_is_relative_to_the_classes() -> None:
    assert is_near_chance(18.9, 10)  # (18.9 - 10) / 90 = 0.099
    assert not is_near_chance(19.1, 10)
    assert is_near_chance(1.0, 1000)
    assert not is_near_chance(12.0, 1000)
    assert not is_near_chance(0.0, 1)  # one class: nothing can be said


class Tiny(nn.Module):
    """Two layers, one with a step per filter, and a BatchNorm whose statistics are not packed as levels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn, self.b = nn.Linear(1, 2, bias=False), nn.BatchNorm1d(2), nn.Linear(2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.bn(self.a(x)))


def quantized() -> tuple[nn.Module, dict[str, LayerLevels]]:
    layers = {
        "b": LayerLevels(torch.tensor([[0.5, -7.5]]), torch.tensor(0.25), "midrise"),
        "a": LayerLevels(torch.tensor([[0.0], [3.0]]), torch.tensor([0.5, 1.0]), "midtread"),
    }
    model = Tiny().eval()
    model.bn.running_mean.fill_(1.5)
    for name, layer in layers.items():
        getattr(model, name).weight.data = layer.weights()
    return model, layers


SPEC = survey_network(Tiny(), torch.zeros(1, 1)).spec


def test_packed_levels_give_back_what_went_in() -> None:
    model, layers = quantized()
    network, found = unpack_model(pack_model(model, layers, SPEC), Tiny())
    assert found["b"].levels.tolist() == [[0.5, -7.5]]
    assert found["a"].levels.tolist() == [[0.0], [3.0]]
    assert found["b"].steps.shape == ()
    assert found["a"].steps.tolist() == [0.5, 1.0]
    assert {name: layer.grid for name, layer in found.items()} == {"a": "midtread", "b": "midrise"}
    assert network.bn.running_mean.tolist() == [1.5, 1.5]
    for (key, before), after in zip(model.state_dict().items(), network.state_dict().values(), strict=True):
        assert torch.equal(before, after), key


def test_packed_levels_have_the_same_bytes_in_every_process() -> None:
    # the library orders metadata by a hash that is seeded anew in each process
    code = (
        f"import sys, hashlib; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_frontier_parts import *\n"
        "from slimbit.records.codec import canonical\n"
        "p = pack_model(*quantized(), SPEC)\n"
        "print(hashlib.sha256(canonical(list(p.entries)) + p.levels + p.state).hexdigest())"
    )
    here = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    assert len({run.stdout for run in here}) == 1
    model, layers = quantized()
    backwards = dict(reversed(layers.items()))
    assert pack_model(model, backwards, SPEC) == pack_model(model, layers, SPEC)


@pytest.mark.parametrize(
    ("level", "said"),
    [
        (40000.5, "layer 'b': levels must be from -32767.5 to 32767.5, got 40000.5"),
        (0.25, "levels of layer 'b' must be whole or half numbers, got others"),
        (math.nan, "weights of layer 'b' must be exactly step"),
        (math.inf, "levels of layer 'b' must be whole or half numbers, got others"),
    ],
)
def test_levels_that_do_not_fit_are_refused(level: float, said: str) -> None:
    model, layers = quantized()
    layers["b"] = LayerLevels(torch.tensor([[0.5, level]]), torch.tensor(0.25), "midrise")
    model.b.weight.data = layers["b"].weights()
    with pytest.raises(InputError, match=said):
        pack_model(model, layers, SPEC)


def test_weights_that_were_changed_afterwards_are_refused() -> None:
    model, layers = quantized()
    model.a.weight.data += 1e-6
    with pytest.raises(InputError, match=r"weights of layer 'a' must be exactly step \* levels, got others"):
        pack_model(model, layers, SPEC)


def point(number: int, accuracy: float | None, cost: float | None, *, state: str = "done") -> FrontierPoint:
    return FrontierPoint(
        number=number, state=state, policy="optimal", setting=Price(float(number or 1), "esn_digital"),
        accuracy=accuracy, costs={"esn_digital": cost},
    )  # fmt: skip


def test_failed_points_are_never_chosen() -> None:
    points = [point(0, None, 1.0, state="failed"), point(1, 80.0, 10.0), point(2, 70.0, None)]
    assert [p.number for p in pareto_front(points, "esn_digital")] == [1]
    assert best_within(points, {"esn_digital": 1e9}).number == 1


def test_nothing_fits_names_what_comes_closest() -> None:
    points = [point(3, 80.0, 10.0), point(4, 90.0, 20.0)]
    with pytest.raises(
        InputError, match=r"cheapest is point 3 \(optimal, price 3\) with esn_digital 10 at accuracy 80"
    ):
        best_within(points, {"esn_digital": 9.0})
    with pytest.raises(InputError, match="most accurate is point 4"):
        cheapest_at_accuracy(points, "esn_digital", 90.1)
    with pytest.raises(InputError, match="must hold a measured point"):
        best_within([], {"esn_digital": 1.0})
    with pytest.raises(InputError, match="did you mean esn_digital"):
        pareto_front(points, "esn_digitl")


def test_refinement_goes_where_the_curve_bends() -> None:
    # flat from 16 to 4, then down 8 points per octave: the bend is at cost 4, price 3
    points = [(16.0, 90.0, 1.0), (8.0, 90.0, 2.0), (4.0, 90.0, 3.0), (2.0, 82.0, 4.0), (1.0, 74.0, 5.0)]
    first, second = refinement_prices(points, 2)
    assert 2.0 < first < 3.0 < second < 4.0
    assert refinement_prices(points[:1], 2) == []


def test_fidelity_and_kappa_by_hand() -> None:
    wanted = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0], [0.0, 2.0]])
    assert fidelity_of(wanted, wanted) == 1.0
    assert fidelity_of(torch.full_like(wanted, 1.0), wanted) == 0.0
    assert fidelity_of(torch.full_like(wanted, float("nan")), wanted) == -float("inf")
    half = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0], [2.0, 0.0]])
    # 3 of 4 agree; chance 3/4 * 1/2 + 1/4 * 1/2 = 1/2; (3/4 - 1/2) / (1 - 1/2) = 1/2
    assert kappa_of(half, wanted) == pytest.approx(0.5)
    assert kappa_of(wanted, torch.ones(3, 1)) is None


def test_bracket_holds_all_useful_prices() -> None:
    def bits(price: float) -> float:
        # half a bit less per doubling of the price, 8 bits at price 2^-40, none left at 2^-24
        return max(0.0, 8.0 - 0.5 * (math.log2(price) + 40))

    low, high = _bracket(bits)
    assert 2.0**-44 < low <= 2.0**-40
    assert 2.0**-24.1 < high <= 2.0**-20


def test_digest_sees_names_shapes_types_and_values() -> None:
    one = torch.arange(4.0)
    different = [{"a": one}, {"b": one}, {"a": one.reshape(2, 2)}, {"a": one.double()}, {"a": one + 1}, [one]]
    assert len({digest_of(value) for value in different}) == len(different)
    assert digest_of({"a": one, "b": one}) == digest_of({"b": one.clone(), "a": one})
    assert digest_of(one.bfloat16()) != digest_of(one.half())


def test_reading_a_run_does_not_import_torch() -> None:
    code = (
        "import sys, slimbit.frontier.store, slimbit.frontier.select, slimbit.frontier.frontier, slimbit.cli.frontier, "
        "slimbit.cli.points, slimbit.records.config; print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_point_data_is_flat_json() -> None:
    data = point(1, 80.0, 10.0).to_dict()
    assert data["esn_digital"] == 10.0
    assert json.loads(json.dumps(data)) == data
