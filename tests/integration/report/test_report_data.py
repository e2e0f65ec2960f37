"""Data behind a report: headline, fronts, layers, histogram; figures that Plotly accepts."""

import dataclasses
import json
import subprocess
import sys

import plotly.graph_objects as go
import pytest

from slimbit.records.accuracy import Accuracy
from slimbit.records.errors import InputError
from slimbit.records.setting import Epoch
from slimbit.records.terminal import quantity
from slimbit.report.figures import accuracy_figure, histogram_figure, template
from slimbit.report.frames import report_data
from slimbit.report.headline import cost_at_accuracy
from slimbit.report.html import embedded
from slimbit.report.page import contents, page


def data_of(run):
    return report_data(run.about, run.points, run.read_cost)


def test_cost_between_two_points_is_interpolated_on_a_log_scale():
    # A quarter of the way from 80 to 84 %: 10^6 * 100^(1/4) = 10^6.5
    reached, cost = cost_at_accuracy([(1e8, 84.0), (1e6, 80.0), (1e7, 70.0)], 81.0)
    assert reached == "exact"
    assert cost == pytest.approx(10**6.5)


@pytest.mark.parametrize(
    ("accuracy", "expected"),
    [(79.0, ("at_least", 2.0)), (80.0, ("exact", 2.0)), (90.0, ("exact", 8.0)), (90.1, ("not_reached", None))],
)
def test_ends_of_the_front(accuracy, expected):
    reached, cost = cost_at_accuracy([(2.0, 80.0), (2.0, 80.0), (8.0, 90.0)], accuracy)
    assert (reached, cost) == (expected[0], None if expected[1] is None else pytest.approx(expected[1]))


def test_no_points_no_cost():
    assert cost_at_accuracy([], 50.0) == ("no_cost", None)


def at(data, drop):
    """The headline at so many points below float."""
    return next(found for found in data.headlines if found.drop == drop)


def test_headline_compares_with_eight_bits_one_point_below_float(invented_run):
    data = data_of(invented_run)
    assert [found.drop for found in data.headlines] == [0.5, 1.0, 2.0, 3.0, 5.0]
    found = at(data, 1.0)
    factor = found.factors[0]
    # 91.73 - 1 = 90.73 lies between points 11 (90.8 %) and 12 (90.0 %): 0.73 / 0.8 of the way up in log cost
    cheap, dear = (invented_run.points[i].costs["esn_digital"] for i in (12, 11))
    expected = invented_run.points[0].costs["esn_digital"] / (cheap * (dear / cheap) ** (0.73 / 0.8))
    assert (factor.metric, factor.reached) == ("esn_digital", "exact")
    assert factor.factor == pytest.approx(expected)
    weights = sum(layer["weights"] for layer in invented_run.read_cost(invented_run.points[0])["layers"])
    size = 4 * weights / invented_run.points[11].costs["weight_bytes"]  # the cheapest point of at least 90.73 %
    assert found.text == (
        f"Within 1 point of float (90.73 % or more): {expected:.1f}\N{MULTIPLICATION SIGN} cheaper than 8 bits, "
        f"weights {size:.1f}\N{MULTIPLICATION SIGN} smaller than float32"
    )


@pytest.mark.parametrize("metric", ["esn_filterwise", "bit_operations", "weight_bytes"])
def test_headline_compares_the_costs_that_the_tables_show(invented_run, metric):
    points = invented_run.points
    factors = {factor.metric: factor.factor for factor in at(data_of(invented_run), 1.0).factors}
    cheap, dear = (points[i].costs[metric] for i in (12, 11))
    assert factors[metric] == pytest.approx(points[0].costs[metric] / (cheap * (dear / cheap) ** (0.73 / 0.8)))


def test_headline_says_when_the_accuracy_is_not_reached(invented_run):
    keep = [p for p in invented_run.points if p.baseline or (p.accuracy or 0) < 80]
    data = report_data(invented_run.about, keep, invented_run.read_cost)
    for found in data.headlines:
        assert found.factors == ()
        assert found.text.endswith("no point of the sweep reaches that; the best one, B, has 78.90 %.")


def test_headline_without_baselines(invented_run):
    ours = [p for p in invented_run.points if not p.baseline]
    for found in report_data(invented_run.about, ours, invented_run.read_cost).headlines:
        assert found.factors == ()
        assert found.text.endswith("this run has no 8-bit network to compare with.")


def test_headline_compares_pairwise_where_hits_are_known(invented_run):
    def seen(point, right):
        measured = Accuracy.of(right)
        known = {"accuracy": float(measured), "images": measured.images, "hits": measured.hits}
        return dataclasses.replace(point, **known)

    # of 1,000 images the 8-bit network gets 915 right; point 11, the cheapest within a point, 5 others, not 8 of them
    eight = [True] * 915 + [False] * 85
    cheapest = [False] * 8 + [True] * 907 + [True] * 5 + [False] * 80
    points = [
        seen(p, eight) if p.number == 0 else seen(p, cheapest) if p.number == 11 else p for p in invented_run.points
    ]
    notes = at(report_data(invented_run.about, points, invented_run.read_cost), 1.0).notes
    # 2 * P(X <= 5), X of 13 images: 2 * (1 + 13 + 78 + 286 + 715 + 1287) / 2^13 = 0.58
    assert notes[-1] == (
        "Pairwise on 1,000 images: point G is right on 5 that the 8-bit network gets wrong, and wrong on 8 that it "
        "gets right (McNemar p = 0.58)."
    )


def test_every_baseline_has_a_curve_of_its_own(invented_run):
    points = [dataclasses.replace(p, policy="aciq") if p.baseline and p.number % 2 else p for p in invented_run.points]
    data = report_data(invented_run.about, points, invented_run.read_cost)
    _, _, plain, aciq, _, _, selected = traces = accuracy_figure(data, "esn_digital")["data"]
    assert (plain["name"], aciq["name"]) == ("baseline: max_abs", "baseline: aciq")
    assert {p % 2 for p in plain["customdata"]} == {0}
    assert {p % 2 for p in aciq["customdata"]} == {1}
    assert plain["mode"] == aciq["mode"] == "lines+markers"
    assert selected["name"] == "selected"
    for styles in contents(data)["templates"].values():
        assert len(styles["data"]["scatter"]) == len(traces)
    drop = at(data, 1.0)
    assert drop.factors[0].factor is not None  # compared with max_abs, the paper's, of those near 8 bits


def test_metrics_start_with_the_sweep_and_leave_out_what_never_changes(invented_run):
    about = dataclasses.replace(invented_run.about, metric="esn_analog")
    names = [metric.name for metric in report_data(about, invented_run.points, invented_run.read_cost).metrics]
    assert names[:2] == ["esn_analog", "esn_digital"]
    assert "parameters" not in names


def test_steps_from_training_are_a_series_of_their_own(invented_run):
    chosen = {"policy": "signal", "setting": Epoch(12), "baseline": True, "clamped": ("conv1",)}
    points = [dataclasses.replace(p, **chosen) if p.number == 3 else p for p in invented_run.points]
    data = report_data(invented_run.about, points, invented_run.read_cost)
    *_, baselines, signals, _, _ = accuracy_figure(data, "esn_digital")["data"]
    assert signals["customdata"] == [3]
    assert 3 not in baselines["customdata"]
    assert "signal, epoch 12" in signals["hovertext"][0]
    assert "clamped: 1 of the layers" in signals["hovertext"][0]
    assert (data.point(3).kind, data.point(3).clamped) == ("signal", ("conv1",))
    signals = [dataclasses.replace(p, **chosen) if p.number == 0 else p for p in invented_run.points]
    six = at(report_data(invented_run.about, signals, invented_run.read_cost), 1.0).factors[0].factor
    eight = at(data, 1.0).factors[0].factor
    costs = [p.costs["esn_digital"] for p in invented_run.points[:2]]
    assert six / eight == pytest.approx(costs[1] / costs[0])  # 6 bits are the widest baseline then
    assert 3 not in data.metric("esn_digital").front  # 86.35 % for far more bits than others need


def test_front_leaves_out_dominated_points(invented_run):
    front = data_of(invented_run).metric("esn_digital").front
    # point 7 has 91.90 %, the cheaper point 8 has 91.95 %
    assert 7 not in front
    assert 8 in front
    costs = [invented_run.points[i].costs["esn_digital"] for i in front]
    assert costs == sorted(costs)


def test_layers_of_a_point(invented_run):
    layers = data_of(invented_run).layers[3]
    assert sum(layers.filters) == 16 * 7 + 32 * 6 + 64 * 6 + 10  # every filter once
    assert layers.decibels[0] == pytest.approx(22.83, abs=0.01)  # 10 log10(3 * 4^3)
    assert sum(layers.shares["esn_digital"]) == pytest.approx(1, abs=1e-3)
    assert sum(layers.shares["mean_bits"]) == pytest.approx(1, abs=1e-3)


def test_float_layers_have_no_analog_share_and_no_width_in_the_headline(invented_run):
    def with_float_layer(point):
        report = invented_run.read_cost(point)
        report["layers"][0] |= {"grid": "float32", "weight_bits": 32, "esn_analog": None, "signal_to_noise": None}
        return report

    data = report_data(invented_run.about, invented_run.points, with_float_layer)
    assert at(data, 1.0).text == at(data_of(invented_run), 1.0).text
    assert "esn_analog" not in data.layers[3].shares
    assert data.layers[3].decibels[0] is None


def test_a_report_opens_with_the_point_of_its_headline(invented_run):
    data = data_of(invented_run)
    assert (data.start, data.point(data.start).kind) == (11, "ours")  # 91.73 - 1 = 90.73: 11 has 90.8, 12 has 90.0
    assert at(data, 1.0).point == 11
    assert at(data, 2.0).point == 12  # 89.73
    cost = quantity(data.point(11).costs["esn_digital"])
    assert f"is {data.point(11).name}: 90.80 % at {cost} bit, " in at(data, 1.0).notes[0]


def test_a_report_never_opens_with_a_baseline(invented_run):
    below = [p for p in invented_run.points if p.baseline or (p.accuracy or 100) < 90]  # baselines reach 91.6
    data = report_data(invented_run.about, below, invented_run.read_cost)
    assert data.point(data.start).accuracy == 89.1  # the best of the sweep, too low for any headline up to 2 points
    assert "the best one, E, has 89.10 %" in at(data, 1.0).text
    baselines = report_data(invented_run.about, [p for p in below if p.baseline], invented_run.read_cost)
    assert baselines.point(baselines.start).accuracy == 91.6


def test_failed_points_keep_their_reason(invented_run):
    failed = data_of(invented_run).points[-1]
    assert (failed.kind, failed.error, failed.accuracy_text) == ("failed", "accuracy is NaN", "-")


def test_assumptions_depend_on_the_grids(invented_run):
    assert any("skips zeros" in text for text in data_of(invented_run).assumptions)
    baselines = [p for p in invented_run.points if p.baseline]
    data = report_data(invented_run.about, baselines, invented_run.read_cost)
    assert not any("skips zeros" in text for text in data.assumptions)
    assert "Layer names come from the module." in data.assumptions


def test_equal_costs_of_unequal_accuracy_are_explained(invented_run):
    told = {"statistics": {"max_abs": "absolute", "prune_only": "stored"}, "trained": "3 epochs"}
    about = dataclasses.replace(invented_run.about, **told)
    texts = report_data(about, invented_run.points, invented_run.read_cost).assumptions
    (same,) = (text for text in texts if text.startswith("max_abs and prune_only round to the same 8 bits"))
    assert "max_abs averages them anew" in same
    assert "prune_only keeps those that are in the network" in same
    assert any("slimbit prune NETWORK --keep 1 --tune-epochs N" in text for text in texts)
    assert not any("prune_only" in text or "--keep 1" in text for text in data_of(invented_run).assumptions)


def test_a_run_in_integers_says_so(invented_run):
    assert data_of(invented_run).assumptions[0].startswith("Weights only. Activations, biases")
    about = dataclasses.replace(invented_run.about, activation_bits=4)
    text = report_data(about, invented_run.points, invented_run.read_cost).assumptions[0]
    assert text.startswith("Activations 4 bits, integer arithmetic.")
    assert "Weights only" not in text


def test_a_run_without_finished_points_is_refused(invented_run):
    with pytest.raises(InputError, match="at least one finished point"):
        report_data(invented_run.about, invented_run.points[-1:], invented_run.read_cost)


def test_a_cost_report_of_another_network_is_refused(invented_run):
    def other(point):
        report = invented_run.read_cost(point)
        return {**report, "layers": report["layers"][1:]} if point.number == 5 else report

    with pytest.raises(InputError, match="cost report of point 5 must list the same layers"):
        report_data(invented_run.about, invented_run.points, other)


def test_a_cost_report_of_another_schema_is_refused(invented_run):
    with pytest.raises(InputError, match="must have schema 1, got 2"):
        report_data(invented_run.about, invented_run.points, lambda p: {**invented_run.read_cost(p), "schema": 2})


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_figures_are_figures_of_plotly(invented_run, theme):
    data = data_of(invented_run)
    for figure in (*(accuracy_figure(data, metric.name) for metric in data.metrics), histogram_figure(data)):
        drawn = go.Figure({**figure, "layout": {**figure["layout"], "template": template(theme)}})
        assert len(drawn.data) == len(figure["data"])  # go.Figure refuses any property that Plotly does not have


def test_accuracy_figure_shows_every_finished_point_with_its_interval(invented_run):
    others, front, baselines, *_ = accuracy_figure(data_of(invented_run), "esn_digital")["data"]
    numbers = {*others["customdata"], *front["customdata"], *baselines["customdata"]}
    assert numbers == set(range(18))
    i = baselines["customdata"].index(3)
    # 1.96 * sqrt(86.35 * 13.65 / 10,000) = 0.6729
    assert baselines["error_y"]["array"][i] == pytest.approx(0.6729, abs=1e-4)


def test_first_view_counts_what_it_leaves_out(invented_run):
    meta = accuracy_figure(data_of(invented_run), "esn_digital")["layout"]["meta"]
    assert meta["hidden"] == 2  # 21.3 and 61.0 are below 0.75 * 91.73 = 68.8
    assert meta["ranges"]["all"]["y"][0] < 21.3 < meta["ranges"]["useful"]["y"][0]


def test_page_is_the_same_every_time_and_json_survives(invented_run):
    data = data_of(invented_run)
    text = page(data)
    assert text == page(data_of(invented_run))
    inside = text.split('id="data">')[1].split("</script>")[0]
    assert json.loads(inside) == json.loads(json.dumps(contents(data)))


def test_embedded_json_cannot_end_its_element():
    text = embedded({"name": "</script><!--<script>&\u2028"})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"name": "</script><!--<script>&\u2028"}


def test_report_is_readable_without_torch():
    code = "import sys, slimbit.report.page; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture
def joint(invented_run):
    """Every other point of the sweep with half of every layer's filters gone; one pruned only."""
    pruned = {p.number for p in invented_run.points if p.policy == "optimal" and p.number % 2} | {0}
    points = [dataclasses.replace(p, keep_ratio=0.5) if p.number in pruned else p for p in invented_run.points]
    points[0] = dataclasses.replace(points[0], policy="prune_only")

    def read(point):
        report = invented_run.read_cost(point)
        if point.keep_ratio != 1:
            for layer in report["layers"]:
                layer["filter_bits"] = layer["filter_bits"][::2]
        return report

    return report_data(invented_run.about, points, read)


def test_every_keep_ratio_has_a_curve_of_its_own(joint):
    whole, half, alone, narrow, others, front, baselines, signals, _, selected = accuracy_figure(joint, "esn_digital")[
        "data"
    ]
    names = [trace["name"] for trace in (whole, half, alone, narrow)]
    assert names == ["quantize only", "prune to 0.5, then quantize", "prune only, 8 bits", "prune, then max_abs"]
    assert all(joint.point(n).keep_ratio == 1 for n in whole["customdata"])
    assert all(joint.point(n).keep_ratio == 0.5 for n in half["customdata"])
    assert set(whole["customdata"]) | set(half["customdata"]) >= set(front["customdata"]) - {0}
    assert (alone["customdata"], narrow["customdata"], others["customdata"]) == ([0], [], [])
    assert 0 not in baselines["customdata"]
    assert (signals["x"], selected["x"]) == ([], [])
    assert narrow["visible"] == "legendonly"
    for theme in ("light", "dark"):
        styles = template(theme, ways=2)["data"]["scatter"]
        assert len(styles) == 10  # one for each trace, in their order
        assert styles[-1]["marker"]["symbol"] == "circle-open"
        go.Figure(accuracy_figure(joint, "esn_digital")).update_layout(template=template(theme, ways=2))


def test_removed_filters_are_counted_as_pruned(joint):
    whole = 16 * 7 + 32 * 6 + 64 * 6 + 10
    assert {sum(layers.filters) for layers in joint.layers.values()} == {whole}
    assert joint.layers[0].filters[0] == whole // 2
    assert joint.layers[3].filters[0] == 0


def test_a_pruned_network_is_no_baseline_of_the_headline(joint):
    assert (joint.point(0).kind, joint.point(0).label) == ("pruned", "keep 0.5, prune_only, 8 bits")
    ours = [p for p in joint.points if p.kind == "ours"]
    six, found = joint.point(1).costs["esn_digital"], at(joint, 1.0).factors[0]
    assert six / found.factor < max(p.costs["esn_digital"] for p in ours)
    assert found.detail.startswith(quantity(float(f"{six:.3g}")))
    assert joint.answers[0].metric == "esn_digital"
    assert {stretch.keep_ratio for answer in joint.answers for stretch in answer.stretches} <= {1.0, 0.5}
    assert "answer" in page(joint)


def test_one_keep_ratio_asks_nothing(invented_run):
    data = data_of(invented_run)
    assert data.answers == ()
    assert len(accuracy_figure(data, "esn_digital")["data"]) == len(template("light")["data"]["scatter"]) == 6


def test_points_of_the_sweep_are_letters_from_the_cheapest(invented_run):
    names = {point.number: point.name for point in data_of(invented_run).points}
    # points 6 to 17 are the sweep, 17 the cheapest; 0 to 5 are 8 to 2 bits for comparison; 18 failed
    assert [names[17], names[16], names[6]] == ["A", "B", "L"]
    assert (names[0], names[18]) == ("max_abs, 8 bits", "optimal, price 1e-05")


def test_the_float_network_stands_on_the_cost_axis(invented_run):
    data = data_of(invented_run)
    weights = 16 * 27 + 6 * 16 * 144 + 6 * 32 * 288 + 6 * 64 * 576 + 640  # as in conftest's SHAPES
    macs = 1024 * (16 * 27 + 6 * 16 * 144) + 256 * 6 * 32 * 288 + 64 * 6 * 64 * 576 + 640
    costs = {metric.name: metric.float_cost for metric in data.metrics}
    assert costs["esn_digital"] == costs["esn_filterwise"] == 32 * macs
    assert costs["bit_operations"] == 32 * 32 * macs
    assert costs["weight_bytes"] == 4 * weights
    assert costs["esn_analog"] is None  # a float has no level
    layout = accuracy_figure(data, "esn_digital")["layout"]
    eight, whole = layout["annotations"][1:]
    assert 10 ** eight["x"] == pytest.approx(invented_run.points[0].costs["esn_digital"])
    assert 10 ** whole["x"] == pytest.approx(32 * macs)
    assert layout["xaxis"]["range"][1] > whole["x"]
    assert [one["text"][2:] for one in accuracy_figure(data, "esn_analog")["layout"]["annotations"][1:]] == ["8 bits"]


def test_machines_of_the_cost_reports_are_a_table(invented_run):
    def on_machine(point):
        found = {"model": "npu", "unit": "cycles", "total": 1e6 / (point.number + 1), "layers": [], "source": "ours"}
        return {**invented_run.read_cost(point), "hardware": {} if point.number == 5 else {"npu": found}}

    (machine,) = report_data(invented_run.about, invented_run.points, on_machine).machines
    assert (machine.name, machine.unit, machine.text) == ("npu", "cycles", "ours")
    assert (machine.costs[0], machine.texts[1]) == (1e6, "500k")
    assert 5 not in machine.costs


def test_sensitivity_is_that_of_the_keep_ratio(invented_run):
    points = [dataclasses.replace(p, keep_ratio=0.5) if p.number == 10 else p for p in invented_run.points]
    data = report_data(invented_run.about, points, invented_run.read_cost, {1.0: {"conv1": 1.23456e-3, "linear": 2.0}})
    assert data.layers[9].sensitivity[0] == 1.235e-3
    assert (data.layers[9].sensitivity[1], data.layers[9].sensitivity[-1]) == (None, 2.0)
    assert data.layers[10].sensitivity == ()


def test_without_scripts_a_figure_and_the_table_are_left(run_of):
    hostile = "</noscript><script>alert(1)</script>"
    run = run_of(hostile)
    about = dataclasses.replace(run.about, missing="Not finished.")
    text = page(report_data(about, run.points, run.read_cost))
    assert text.lower().count("</noscript>") == 1
    still = text.split("<noscript>")[1].split("</noscript>")[0]
    assert "&lt;/noscript&gt;&lt;script&gt;" in still
    assert "<script" not in still
    assert "Not finished." in still
    assert still.count("<circle") == 16  # of 18 points those of at least three quarters of the float accuracy
    assert still.count("<tr>") == 20  # a head and 19 points, the failed one among them
