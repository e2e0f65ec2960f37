"""Parts of a run one by one: intervals, levels files, selection, places, likeness."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from slimbit.records.accuracy import is_near_chance, wilson_interval
from slimbit.frontier.levels import StoredPoint, pack_levels, unpack_levels
from slimbit.frontier.price_range import _bracket, fidelity_of, kappa_of
from slimbit.frontier.spacing import refinement_prices
from slimbit.compress.prepared import digest_of

from slimbit.frontier.select import best_within, cheapest_at_accuracy, pareto_front
from slimbit.records.errors import InputError
from slimbit.records.point import FrontierPoint


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


def stored() -> StoredPoint:
    return StoredPoint(
        {"b": np.array([[0.5, -7.5]], np.float32), "a": np.array([[0.0], [3.0]], np.float32)},
        {"b": np.float32(0.25), "a": np.array([0.5, 1.0], np.float32)},
        {"b": "midrise", "a": "midtread"},
        {"bn.running_mean": np.array([1.5], np.float32)},
    )


def test_levels_file_gives_back_what_went_in() -> None:
    found = unpack_levels(pack_levels(stored()))
    assert found.levels["b"].tolist() == [[0.5, -7.5]]
    assert found.levels["a"].tolist() == [[0.0], [3.0]]
    assert found.steps["b"].shape == ()
    assert found.steps["a"].tolist() == [0.5, 1.0]
    assert dict(found.grids) == {"a": "midtread", "b": "midrise"}
    assert found.state["bn.running_mean"].tolist() == [1.5]


def test_levels_file_has_the_same_bytes_in_every_process() -> None:
    # the library orders metadata by a hash that is seeded anew in each process
    code = (
        "import numpy as np, hashlib; from slimbit.frontier.levels import *; "
        "p = StoredPoint({'b': np.array([0.5])}, {'b': np.float32(0.25)}, {'b': 'midrise'}); "
        "print(hashlib.sha256(pack_levels(p)).hexdigest())"
    )
    here = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    assert len({run.stdout for run in here}) == 1
    header = pack_levels(stored())[8:].split(b"}}")[0]
    assert header.index(b'"__metadata__"') < header.index(b'"a/levels"')


def test_levels_that_do_not_fit_are_refused() -> None:
    for bad, said in ((np.array([16384.0]), "at most 16383.5"), (np.array([0.25]), "multiples of 0.5"),
                      (np.array([np.nan]), "at most")):  # fmt: skip
        with pytest.raises(InputError, match=f"layer 'fc' must be {said}"):
            pack_levels(StoredPoint({"fc": bad}, {"fc": np.float32(1)}, {"fc": "midrise"}))


def point(number: int, accuracy: float | None, cost: float | None, *, state: str = "done") -> FrontierPoint:
    return FrontierPoint(
        number=number, state=state, policy="optimal", setting=f"price {number}", accuracy=accuracy,
        costs={"esn_digital": cost},
    )  # fmt: skip


def test_failed_points_are_never_chosen() -> None:
    points = [point(0, None, 1.0, state="failed"), point(1, 80.0, 10.0), point(2, 70.0, None)]
    assert [p.number for p in pareto_front(points, "esn_digital")] == [1]
    assert best_within_budget(points, "esn_digital", 1e9).number == 1


def test_nothing_fits_names_what_comes_closest() -> None:
    points = [point(3, 80.0, 10.0), point(4, 90.0, 20.0)]
    with pytest.raises(
        InputError, match=r"cheapest is point 3 \(optimal, price 3\) with esn_digital 10 at accuracy 80"
    ):
        best_within_budget(points, "esn_digital", 9.0)
    with pytest.raises(InputError, match="most accurate is point 4"):
        cheapest_at_accuracy(points, "esn_digital", 90.1)
    with pytest.raises(InputError, match="must hold a measured point"):
        best_within_budget([], "esn_digital", 1.0)
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
        "import sys, slimbit.frontier.store, slimbit.frontier.select, slimbit.frontier.levels, slimbit.cli.frontier, "
        "slimbit.cli.points, slimbit.records.config; print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_point_data_is_flat_json() -> None:
    data = point(1, 80.0, 10.0).to_dict()
    assert data["esn_digital"] == 10.0
    assert json.loads(json.dumps(data)) == data
