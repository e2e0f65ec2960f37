"""`slimbit signal`: what it reads, computes, prints and draws."""

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
import typer
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[2]))
from signal_case import layer_signal, write_signal
from slimbit.cli.signal import signal
from slimbit.numerics.walk import predicted_signal_to_noise
from slimbit.records.errors import InputError
from slimbit.records.signal import EpochSignal
from slimbit.records.training_run import read_training_run
from slimbit.report.signal_figures import FIGURES, log_axis, signal_figures, signal_templates
from slimbit.report.signal_frames import json_data, training_data
from slimbit.report.signal_page import signal_contents, signal_page, write_signal_page

RATES = [0.1] * 3 + [0.01] * 3
RATIOS = [4.0, 4.4, 4.5, 370.0, 340.0, 320.0]
ACCURACY = [50.0, 60.0, 64.0, None, 80.0, 81.0]
HOSTILE = '</script><img src=x onerror="window.injected=1">[bold]%{x}'
app = typer.Typer()
app.command()(signal)


def epochs(positions: int | None = 100, name: str = "conv1") -> list[EpochSignal]:
    """Two layers of 8 and 4 filters; three filters of the first die when the learning rate falls."""
    found = []
    for number, ratio in enumerate(RATIOS, 1):
        dead = 3 if number > 3 else 0
        shared: dict[str, Any] = {"positions": positions, "epoch": number}
        layers = (
            layer_signal(name, ratio, weights=600, filters=8, dead=dead, **shared),
            layer_signal("fc", 2 * ratio, weights=40, filters=4, **shared),
        )
        found.append(EpochSignal(epoch=number, iterations=200, layers=layers))
    return found


def trained(folder: Path, signals: list[EpochSignal], network: str = "resnet8") -> Path:
    """A run as `slimbit train` leaves it."""
    write_signal(folder, signals)
    rows = [
        {"epoch": i, "loss": 2.0 / i, "accuracy": a, "learning_rate_first": r, "learning_rate_last": r,
         "iterations": 200, "seconds": 3.0, "signal_to_noise": s}
        for i, (a, r, s) in enumerate(zip(ACCURACY, RATES, RATIOS, strict=True), 1)
    ]  # fmt: skip
    (folder / "epochs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {"network": network, "optimizer": {"learning_rate": 0.1, "momentum": 0.9, "weight_decay": 5e-4},
              "schedule": {"name": "step", "milestones": []}, "weights": None}  # fmt: skip
    (folder / "train.json").write_text(json.dumps({"slimbit": "0.1.0", "config": config}))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return trained(tmp_path / "run", epochs())


def test_epochs_by_hand(run: Path) -> None:
    data = training_data(read_training_run(run))
    assert data.network == "resnet8"
    first, second, third, fourth, *_ = data.epochs
    # conv1: 100 * 600 * 4 / 12, fc: 100 * 40 * 8 / 12
    assert first.esn_analog_estimate == pytest.approx(20_000 + 8_000 / 3)
    assert first.esn_analog_estimate_plus == pytest.approx(first.esn_analog_estimate + 100 * 640 / 12)
    # of all weights: signal 8 + 4 over noise 8 / 4 + 4 / 8
    assert first.signal_to_noise == pytest.approx(12 / 2.5)
    assert [first.accuracy_mean, second.accuracy_mean, third.accuracy_mean] == pytest.approx([55, 58, 62])
    assert (fourth.accuracy, fourth.accuracy_mean) == (None, None)
    assert data.epochs[4].accuracy_mean == pytest.approx(80.5)
    assert [epoch.dead for epoch in data.epochs] == [(0, 0, 0, 0)] * 3 + [(3, 3, 0, 0)] * 3  # 0.01 of the others' norm
    assert [(x.name, x.signal_to_noise[0]) for x in data.layers] == [("conv1", 4.0), ("fc", 8.0)]


def test_closed_form_beside_the_measurement(run: Path) -> None:
    data = training_data(read_training_run(run))
    wanted = predicted_signal_to_noise(RATES, 200, weight_decay=5e-4, momentum=0.9)
    assert [epoch.predicted_signal_to_noise for epoch in data.epochs] == pytest.approx(wanted)
    assert data.epochs[3].predicted_esn_analog == pytest.approx(100 * 640 * wanted[3] / 12)


@pytest.mark.parametrize("missing", ["train.json", "epochs.jsonl", "both", "first epoch", "weight decay"])
def test_what_the_trainer_did_not_leave_is_not_made_up(run: Path, missing: str) -> None:
    for name in ("train.json", "epochs.jsonl"):
        if missing in (name, "both"):
            (run / name).unlink()
    if missing == "first epoch":
        lines = (run / "epochs.jsonl").read_text().splitlines(keepends=True)
        (run / "epochs.jsonl").write_text("".join(lines[1:]))
    if missing == "weight decay":
        (run / "train.json").write_text(json.dumps({"config": {"optimizer": {"momentum": 0.9, "weight_decay": 0.0}}}))
    data = training_data(read_training_run(run))
    assert {epoch.predicted_signal_to_noise for epoch in data.epochs} == {None}
    assert any("closed form is not drawn" in note for note in data.notes)
    assert (data.epochs[1].loss is None) == (missing in ("epochs.jsonl", "both"))
    assert json.loads(json.dumps(signal_contents(data), allow_nan=False))


def test_a_signal_file_alone_is_enough(run: Path) -> None:
    data = training_data(read_training_run(run / "signal.jsonl"))
    assert len(data.epochs) == 6
    assert write_signal_page(read_training_run(run / "signal.jsonl")) == run / "signal.html"


def test_unknown_positions_show_the_ratio_instead(tmp_path: Path) -> None:
    data = training_data(read_training_run(trained(tmp_path / "run", epochs(positions=None))))
    assert {epoch.esn_analog_estimate for epoch in data.epochs} == {None}
    figure = signal_figures(data)["cost"]
    assert figure["layout"]["yaxis"]["title"]["text"].startswith("S/N")
    assert figure["data"][0]["y"] == [epoch.signal_to_noise for epoch in data.epochs]
    assert any("ESN_a is not known" in note for note in data.notes)


def test_layers_that_come_and_go_and_numbers_that_are_none(tmp_path: Path) -> None:
    signals = epochs()
    signals[0] = replace(signals[0], layers=signals[0].layers[1:])  # frozen in the first epoch
    still = layer_signal("fc", math.inf, weights=40, positions=100, filters=4, epoch=2)
    gone = replace(signals[2].layers[1], filter_noise=(math.nan,) * 4)
    signals[1] = replace(signals[1], layers=(signals[1].layers[0], still))
    run = trained(tmp_path / "run", signals)
    text = (run / "signal.jsonl").read_text().splitlines()
    text[2] = json.dumps(replace(signals[2], layers=(signals[2].layers[0], gone)).to_dict())
    (run / "signal.jsonl").write_text("\n".join(text).replace("NaN", "null") + "\n")
    data = training_data(read_training_run(run))
    series = {layer.name: layer.signal_to_noise[:3] for layer in data.layers}
    assert series == {"fc": (8.0, None, None), "conv1": (None, 4.4, 4.5)}
    assert data.epochs[1].esn_analog_estimate is None  # infinite
    assert json.dumps(signal_contents(data), allow_nan=False)
    assert json.dumps(json_data(read_training_run(run)), allow_nan=False)


def test_figures_hold_the_data_and_plotly_accepts_them(run: Path) -> None:
    data = training_data(read_training_run(run))
    figures = signal_figures(data)
    assert tuple(figures) == FIGURES
    for theme in ("light", "dark"):
        templates = signal_templates(data, theme)
        for name, figure in figures.items():
            drawn = go.Figure({**figure, "layout": {**figure["layout"], "template": templates[name]}})
            assert len(drawn.data) == len(figure["data"])  # go.Figure refuses any property that Plotly does not have
    measured, form, accuracy = figures["cost"]["data"]
    assert measured["y"] == [epoch.esn_analog_estimate for epoch in data.epochs]
    assert form["y"] == [epoch.predicted_esn_analog for epoch in data.epochs]
    assert (accuracy["y"][1], accuracy["yaxis"]) == (58.0, "y2")
    assert [trace["name"] for trace in figures["layers"]["data"]] == ["conv1", "fc", "closed form"]
    assert [trace["y"] for trace in figures["dead"]["data"]][1] == [0, 0, 0, 3, 3, 3]
    assert figures["map"]["data"][0]["z"][0][0] == pytest.approx(10 * math.log10(4), abs=0.01)


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([4.504e6, 5.148e6], ["4.5M", "5M", "5.5M"]),
        ([7.0, 68.0], ["10", "20", "50"]),
        ([3e3, None, 4e7], ["10k", "100k", "1M", "10M"]),
        ([100.0, 102.0], ["92", "93", "94", "95", "96", "97", "98", "99", "100", "110"]),
    ],
)
def test_ticks_of_a_log_axis_are_whole_numbers(values: list[float | None], shown: list[str]) -> None:
    axis = log_axis(values)
    assert axis["ticktext"] == shown
    known = [value for value in values if value]
    assert all(10 ** axis["range"][0] < value < 10 ** axis["range"][1] for value in known)


def test_few_layers_are_named_in_the_legend_and_many_have_shades(tmp_path: Path) -> None:
    data = training_data(read_training_run(trained(tmp_path / "run", epochs())))
    many = replace(data, layers=tuple(replace(data.layers[0], name=f"conv{i}") for i in range(30)))
    few, shaded = (signal_figures(one)["layers"]["data"] for one in (data, many))
    assert all(trace["showlegend"] for trace in few[:-1])
    assert not any(trace["showlegend"] for trace in shaded[:-1])
    for theme in ("light", "dark"):
        styles = [signal_templates(one, theme)["layers"]["data"]["scatter"][:-1] for one in (data, many)]
        assert [len({style["line"]["color"] for style in found}) for found in styles] == [len(data.layers), 30]


def test_the_command_prints_and_writes(run: Path) -> None:
    result = CliRunner().invoke(app, [str(run)], env={"COLUMNS": "100"}, catch_exceptions=False)
    assert result.exit_code == 0
    row = next(line for line in result.stdout.splitlines() if re.match(r"\s*5 ", line)).split()
    # S/N of all weights: 5 + 3 * 1e-4 + 4 over (5 + 3 * 1e-4) / 340 + 4 / 680
    assert row[:5] == ["5", "0.01", "0.400", "80.00", "437.1"]
    assert row[-1] == "3"
    assert (run / "signal.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize("width", [30, 50, 80, 200])
def test_a_number_is_never_cut(run: Path, width: int) -> None:
    result = CliRunner().invoke(app, [str(run)], env={"COLUMNS": str(width)}, catch_exceptions=False)
    table = result.stdout.split("ESN_a of an epoch")[0]
    assert "437.1" in table
    assert "…" not in table


def test_one_layer(run: Path) -> None:
    arguments = [str(run), "--layer", "fc", "--json"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    data = json.loads(result.stdout)
    assert (data["schema"], data["layer"], len(data["epochs"])) == (1, "fc", 6)
    assert data["epochs"][0]["signal_to_noise"] == 8.0
    assert [row["layer"] for row in data["epochs"][0]["layers"]] == ["fc"]
    assert data["epochs"][0]["dead_filters"] == {"0.1": 0, "0.05": 0, "0.01": 0, "0.001": 0}
    assert not (run / "signal.html").exists()
    with pytest.raises(InputError, match="--layer must be a layer of the run, got 'conv2'; did you mean conv1"):
        CliRunner().invoke(app, [str(run), "--layer", "conv2"], catch_exceptions=False)


def test_the_page_is_the_same_every_time(run: Path) -> None:
    text = signal_page(training_data(read_training_run(run)))
    assert text == signal_page(training_data(read_training_run(run)))
    inside = text.split('id="data">')[1].split("</script>")[0]
    assert json.loads(inside)["report"]["network"] == "resnet8"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("signal.jsonl", None, "RUN must be a folder with a signal.jsonl or such a file"),
        ("signal.jsonl", "", "signal.jsonl must hold at least one epoch, got none"),
        ("signal.jsonl", "{}\n", "line 1 of .*signal.jsonl must hold epoch, got none"),
        ("epochs.jsonl", "{\n", "line 1 of .*epochs.jsonl must be complete JSON"),
        ("epochs.jsonl", "3\n", "line 1 of .*epochs.jsonl must be .*got 3"),
        ("epochs.jsonl", '{"epoch": "one"}\n', "epoch of line 1 of .*epochs.jsonl must be a valid integer"),
        ("epochs.jsonl", '{"epoch": 1}\n', "line 1 of .*epochs.jsonl must hold loss, got none"),
        ("train.json", "{", "train.json must be complete JSON"),
        ("train.json", '{"config": 3}', "train.json must hold a table config, got int"),
        ("train.json", "[]", "train.json must hold a table config"),
    ],
)
def test_damaged_runs_are_named(run: Path, name: str, content: str | None, said: str) -> None:
    (run / name).unlink()
    if content is not None:
        (run / name).write_text(content)
    with pytest.raises(InputError, match=said):
        CliRunner().invoke(app, [str(run)], catch_exceptions=False)


def test_a_line_that_is_being_written_is_left_alone(run: Path) -> None:
    for name in ("epochs.jsonl", "signal.jsonl"):
        with (run / name).open("a") as stream:
            stream.write('{"epoch": 7, "lo')
    assert len(training_data(read_training_run(run)).epochs) == 6


def test_a_page_that_cannot_be_written(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must be a file that can be replaced, got a folder"):
        write_signal_page(read_training_run(run), tmp_path)
    with pytest.raises(InputError, match=r"signal file must exist, got none at .*none"):
        read_training_run(tmp_path / "none")


def test_neither_table_nor_page_needs_torch() -> None:
    code = "import sys, slimbit.report.signal_page, slimbit.cli.signal; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", epochs(name=HOSTILE), network=HOSTILE)
    text = signal_page(training_data(read_training_run(run)))
    assert "<img" not in text.split('id="data">')[1].split("</script>")[0]
    result = CliRunner().invoke(app, [str(run), "--layer", HOSTILE], env={"COLUMNS": "200"}, catch_exceptions=False)
    assert "[bold]" in result.stdout


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_in_a_browser(browser: Any, tmp_path: Path, width: int, scheme: str) -> None:
    run = trained(tmp_path / "run", epochs(name=HOSTILE), network=HOSTILE)
    file = write_signal_page(read_training_run(run))
    shown = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    complaints: list[str] = []
    shown.on("console", lambda message: complaints.append(message.text))
    shown.on("pageerror", lambda error: complaints.append(str(error)))
    shown.on("request", lambda asked: complaints.append(asked.url) if asked.url != file.as_uri() else None)
    shown.goto(file.as_uri())
    for name in ("cost", "layers", "dead"):
        shown.wait_for_selector(f"#{name} .scatterlayer .trace", state="attached")
    shown.wait_for_selector("#map .heatmaplayer image", state="attached")
    assert shown.locator("#cost .scatterlayer .trace").count() == 3
    assert shown.locator("#epochs-body tr").count() == 6
    assert shown.locator("#network").inner_text() == HOSTILE
    assert "best held-out accuracy 81.00 % after epoch 6" in shown.locator("#summary").inner_text()
    assert shown.evaluate("document.documentElement.scrollWidth <= innerWidth")
    before = shown.evaluate("document.querySelector('#cost .xtick text').style.fill")
    shown.locator("#theme").click()
    assert shown.evaluate("document.querySelector('#cost .xtick text').style.fill") != before
    assert shown.evaluate("window.injected") is None
    assert shown.locator("main img").count() == 0
    assert complaints == []
    shown.close()
