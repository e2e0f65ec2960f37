"""`slimbit frontier --signal` on the embedded digits network."""

import json
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1]))
import slimbit.cli
from signal_case import epoch_signal, write_signal
from slimbit import zoo
from slimbit.records.errors import InputError
from slimbit.survey.module import survey_network

pytest.importorskip("sklearn")
OPTIONS = ["digits_resnet", "--data", "digits", "--points", "1", "--no-baselines", "--calibration-images", "50",
           "--evaluate-images", "100"]  # fmt: skip


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of eighteen epochs, its S/N rising; the first layer out of reach in the second epoch."""
    spec = survey_network(zoo.network("digits_resnet"), torch.zeros(1, *zoo.default_input("digits_resnet"))).spec
    first = spec.layers[0].name
    folder = tmp_path_factory.mktemp("training")
    epochs = [epoch_signal(spec, 5.0 * n, epoch=n, but={first: 1.0} if n == 2 else {}) for n in range(1, 19)]
    write_signal(folder, epochs)
    return folder


def invoke(arguments: list[str]) -> str:
    result = CliRunner().invoke(slimbit.cli.app, arguments, env={"COLUMNS": "120"}, catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_named_epochs_are_measured_shown_and_reported(training: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    printed = invoke(["frontier", *OPTIONS, "--signal", str(training), "--signal-epochs", "2,12", "--out", str(out)])
    assert "signal, epoch 2 (1 layer clamped)" in printed
    assert "signal, epoch 12" in printed
    assert "signal, epoch 2 (1 layer clamped): no step reaches the target of conv1; the nearest was taken" in printed
    points = {p["key"]: p for p in json.loads(invoke(["points", str(out), "--json"]))["points"]}
    assert points.keys() == {"sweep-00", "signal-2", "signal-12"}
    assert (points["signal-2"]["policy"], len(points["signal-2"]["clamped"])) == ("signal", 1)
    assert points["signal-2"]["esn_analog"] < points["signal-12"]["esn_analog"]
    assert points["signal-12"]["accuracy"] > 90
    rows = invoke(["points", str(out), "--csv"]).splitlines()
    assert rows[0].endswith(",clamped")
    assert [row.rsplit(",", 1)[1] for row in rows if ",epoch 2," in row] == points["signal-2"]["clamped"]
    invoke(["report", str(out)])
    page = (out / "report.html").read_text()
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert {p["setting"]: p["kind"] for p in data["report"]["points"]}["epoch 12"] == "signal"
    with pytest.raises(InputError, match=r"training epochs \(signal\) of run .* must be 2, 12 as when it began, got 3"):
        invoke(["frontier", *OPTIONS, "--signal", str(training), "--signal-epochs", "3", "--out", str(out)])


def test_eight_epochs_are_taken_by_default_and_settings_may_stand_in_a_file(training: Path, tmp_path: Path) -> None:
    (tmp_path / "slimbit.toml").write_text(
        f'signal = "{training / "signal.jsonl"}"\nnetwork = "digits_resnet"\ndata = "digits"\npoints = 1\n'
        "baselines = false\ncalibration_images = 50\nevaluate_images = 100\n"
    )
    invoke(["frontier", "--config", str(tmp_path / "slimbit.toml"), "--out", str(tmp_path / "run")])
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert info["signal_epochs"] == [2, 4, 6, 9, 11, 13, 15, 18]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--signal-epochs", "3"], r"signal \(--signal RUN\) must be given with signal_epochs, got none"),
        (["--signal", "RUN", "--signal-epochs", "3,x"], "--signal-epochs must be whole numbers with commas"),
        (["--signal", "RUN", "--signal-epochs", "3,19"], "signal_epochs must be epochs of .*, from 1 to 18, got 19"),
        (["--signal", "RUN", "--signal-epochs", "3,3"], r"signal_epochs must name each epoch once, got \[3, 3\]"),
        (["--signal", "nowhere"], "signal file must exist, got none at nowhere"),
        (["--signal", "EMPTY"], "RUN must be a folder with a signal.jsonl or such a file, got .* without one"),
    ],
)
def test_wrong_commands(training: Path, tmp_path: Path, options: list[str], said: str) -> None:
    (tmp_path / "empty").mkdir()
    places = {"RUN": str(training), "EMPTY": str(tmp_path / "empty")}
    given = [places.get(option, option) for option in options]
    with pytest.raises(InputError, match=said):
        invoke(["frontier", *OPTIONS, *given, "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_a_signal_of_another_network_is_refused(training: Path, tmp_path: Path) -> None:
    record = json.loads((training / "signal.jsonl").read_text().splitlines()[0])
    record["layers"][0]["layer"] = "features.0"
    (tmp_path / "signal.jsonl").write_text(json.dumps(record) + "\n")
    with pytest.raises(InputError, match=r"signal of epoch 1 must be of layers of digits_resnet, got 'features\.0'"):
        invoke(["frontier", *OPTIONS, "--signal", str(tmp_path), "--out", str(tmp_path / "run")])
