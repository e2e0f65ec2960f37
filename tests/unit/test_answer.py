"""Prune or quantize? The sentence, from points with invented numbers."""

from dataclasses import replace

import pytest

from slimbit.records.point import FrontierPoint
from slimbit.records.setting import Price
from slimbit.report.answer import PLACES, accuracy_at, answer, front_of

METRIC = "esn_digital"
ONE_PLACE = 10 ** (2.2 / PLACES) - 1
"""Two decades and a tenth more, cut into places."""


def point(keep_ratio: float, cost: float, accuracy: float, **rest: object) -> FrontierPoint:
    settings = {
        "policy": "optimal",
        "setting": Price(1.0, METRIC),
        "state": "done",
        "number": 0,
        "costs": {METRIC: cost},
    }
    return FrontierPoint(**{**settings, "keep_ratio": keep_ratio, "accuracy": accuracy, **rest})


WHOLE = [point(1.0, 1e6, 50.0), point(1.0, 1e8, 90.0)]  # 20 points a decade
HALF = [point(0.5, 1e6, 55.0), point(0.5, 1e7, 80.0), point(0.5, 1e8, 80.0)]  # crosses at 10^7.5


def test_the_crossing_is_where_the_curves_cross() -> None:
    found = answer([*WHOLE, *HALF], METRIC, float_accuracy=70.0)
    assert [stretch.keep_ratio for stretch in found.stretches] == [0.5, 1.0]
    assert found.stretches[0].high == found.stretches[1].low == pytest.approx(10**7.5, rel=ONE_PLACE)
    assert "Below 32M bits: prune to 0.5 first, then quantize; above 32M bits: quantize only." in found.text
    # most is gained up to the bend at 10^7: 80 instead of 70
    assert "gives 79.9" in found.text or "gives 80.0" in found.text


def test_what_is_within_the_noise_is_no_reason_to_prune() -> None:
    noisy = [replace(p, accuracy_low=p.accuracy - 30.0, accuracy_high=p.accuracy + 30.0) for p in [*WHOLE, *HALF]]
    found = answer(noisy, METRIC, float_accuracy=70.0)
    assert found.text == "Quantize only, at every cost that was measured."
    assert [stretch.keep_ratio for stretch in found.stretches] == [1.0]


def test_a_cost_that_only_the_pruned_network_reaches_is_its_own() -> None:
    found = answer([point(1.0, 1e7, 90.0), point(0.5, 1e6, 85.0)], METRIC, float_accuracy=90.0, unit="%")
    assert next((s.keep_ratio, round(s.low)) for s in found.stretches) == (0.5, 1_000_000)
    assert found.stretches[-1].keep_ratio == 1.0
    assert "instead of" not in found.text  # the whole network has nothing to compare with there


def test_the_gain_is_that_of_the_keep_ratio_that_is_advised() -> None:
    spike = [point(0.25, 1.02e6, 75.0)]  # clearly better, along too short a stretch to be advised
    peak = [point(0.25, 1.01e6, 54.0), *spike, point(0.25, 1.03e6, 75.1)]
    steep = [point(0.5, 1e6, 55.0), point(0.5, 1.04e6, 80.0), point(0.5, 1e8, 80.0)]
    found = answer([*WHOLE, *steep, *peak], METRIC, float_accuracy=70.0)
    assert [stretch.keep_ratio for stretch in found.stretches] == [0.5, 1.0]
    assert "gives 80.00 instead of 50" in found.text


def test_useless_accuracies_are_left_out() -> None:
    found = answer([*WHOLE, point(0.5, 1e3, 10.0), point(0.5, 1e4, 20.0)], METRIC, float_accuracy=90.0)
    assert {stretch.keep_ratio for stretch in found.stretches} == {1.0}
    assert found.stretches[0].low > 1e7


def test_pruning_alone_is_compared_at_equal_accuracy() -> None:
    alone = [
        point(1.0, 9e8, 90.0, policy="prune_only", baseline=True),
        point(0.5, 1e8, 70.0, policy="prune_only", baseline=True),
    ]
    text = answer([*WHOLE, *HALF, *alone], METRIC, float_accuracy=70.0).text
    # 70 % on the curve of half the filters from (1e6, 55) to (1e7, 80) is at 10^6.6: 10^1.4 = 25.1 times cheaper
    assert text.endswith("Pruning alone, at 8 bits, costs 25.1 times as much at equal accuracy.")


def test_one_keep_ratio_has_no_question() -> None:
    assert answer(WHOLE, METRIC, float_accuracy=90.0) is None
    assert answer([*WHOLE, *HALF], "esn_analog", float_accuracy=90.0) is None


def test_a_short_stretch_is_noise() -> None:
    spike = [*HALF, point(1.0, 1.02e6, 55.6)]  # the whole network is ahead for a few percent of cost only
    found = answer([*WHOLE, *spike], METRIC, float_accuracy=70.0)
    assert [stretch.keep_ratio for stretch in found.stretches] == [0.5, 1.0]


def test_fronts_leave_out_what_is_dominated() -> None:
    assert front_of([*HALF, point(0.5, 2e7, 70.0)], METRIC) == [(1e6, 55.0), (1e7, 80.0)]
    assert accuracy_at([(1e6, 60.0), (1e7, 80.0)], 1e9) == 80.0


def test_training_that_only_pruned_networks_had_is_said() -> None:
    settings = {"float_accuracy": 70.0, "trained": "4 epochs"}
    found = answer([*WHOLE, *HALF], METRIC, **settings)
    assert found.text.endswith(
        "Pruned networks were trained for 4 epochs after the cut, the whole network was not trained further: a part of "
        "what they gain is due to training."
    )
    assert "trained" not in answer([*WHOLE, *HALF], METRIC, float_accuracy=70.0).text
    worse = [replace(p, accuracy=p.accuracy - 10) for p in HALF]
    assert "trained" not in answer([*WHOLE, *worse], METRIC, **settings).text  # nothing was gained
