"""`slimbit cost` on everything that NETWORK may be, as a user runs it."""

import csv
import io
import json
import re
import sys
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from typer.testing import CliRunner

import slimbit
from slimbit.cli import app, main
from slimbit.records.errors import InputError
from slimbit.records.terminal import quantity


def _json(*arguments):
    result = CliRunner().invoke(app, ["cost", *map(str, arguments), "--json"])
    assert result.exit_code == 0, result.exception
    return json.loads(result.stdout)


def test_a_python_callable(tmp_path, monkeypatch):
    (tmp_path / "my_nets.py").write_text(
        "from torch import nn\ndef build():\n    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten())\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    data = _json("my_nets:build", "--input", "1x5x5", "--bits", 3)
    assert data["total"]["macs"] == 9 * 4 * 9
    assert data["network"] == "my_nets:build"


def test_an_exported_program_counts_as_its_module(tmp_path):
    model = slimbit.network("resnet8").eval()
    program = torch.export.export(model, (torch.zeros(1, 3, 32, 32),))
    torch.export.save(program, tmp_path / "net.pt2")
    exported = _json(tmp_path / "net.pt2", "--bits", 4, "--allow-code")["total"]
    module = slimbit.cost(model, torch.zeros(1, 3, 32, 32), bits=4).total
    for metric in ("macs", "esn_analog", "esn_digital", "esn_filterwise", "parameters"):
        assert exported[metric] == module[metric]


def test_a_bare_weights_file_is_counted_per_parameter(tmp_path):
    model = slimbit.network("resnet8")
    save_file(model.state_dict(), tmp_path / "net.safetensors")
    bare = _json(tmp_path / "net.safetensors", "--bits", 2)
    module = slimbit.cost(model, torch.zeros(1, 3, 32, 32), bits=2, per="parameter").total
    assert bare["per"] == "parameter"
    assert bare["total"]["esn_digital"] == module.esn_digital
    assert bare["total"]["weight_bytes"] == module.weight_bytes
    refused = CliRunner().invoke(app, ["cost", str(tmp_path / "net.safetensors"), "--per", "mac"])
    assert "per must be parameter" in str(refused.exception)


def _onnx_with_integer_weights(path):
    """One 3x3 convolution whose int8 weights are dequantized per filter (QDQ)."""
    levels = torch.randint(-7, 8, (4, 3, 3, 3), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    scales = torch.tensor([0.1, 0.2, 0.3, 0.4])
    tensors = {"levels": levels, "scales": scales, "zeros": torch.zeros(4, dtype=torch.int8)}
    nodes = [
        helper.make_node("DequantizeLinear", ["levels", "scales", "zeros"], ["w"], axis=0),
        helper.make_node("Conv", ["x", "w"], ["y"], name="conv", kernel_shape=[3, 3]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 6, 6])],
        [numpy_helper.from_array(value.numpy(), name) for name, value in tensors.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    return levels


def test_integer_weights_of_an_onnx_file_are_the_levels(tmp_path):
    levels = _onnx_with_integer_weights(tmp_path / "net.onnx")
    data = _json(tmp_path / "net.onnx")
    # mid-tread: 0 costs nothing, +-1 two bits, +-2 and +-3 three, +-4 ... +-7 four
    bits = sum({0: 0, 1: 2, 2: 3, 3: 3}.get(abs(q), 4) for q in levels.flatten().tolist())
    assert data["total"]["esn_digital"] == 36 * bits
    assert data["total"]["esn_analog"] == 36 * int((levels.int() ** 2).sum())
    assert data["total"]["nonzero_macs"] == 36 * int((levels != 0).sum())
    refused = CliRunner().invoke(app, ["cost", str(tmp_path / "net.onnx"), "--bits", "4"])
    assert "integers already" in str(refused.exception)


def test_csv_has_a_line_per_layer_and_a_total():
    result = CliRunner().invoke(app, ["cost", "resnet8", "--bits", "4", "--csv"])
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert len(rows) == 11 + 1  # 1 + 3 x 2 + 3 shortcuts + 1 linear, total
    assert int(rows[-1]["macs"]) == sum(int(row["macs"]) for row in rows[:-1]) == 12_763_776


@pytest.mark.parametrize(
    "versus", [["--versus", "resnet20", "--versus", "resnet14"], ["--versus", "resnet20", "resnet14"]]
)
def test_versus_gives_ratios(versus):
    data = _json("resnet8", *versus, "--bits", 1)
    ratios = {entry["versus"]: entry["ratios"]["macs"] for entry in data["versus"]}
    assert ratios == pytest.approx({"resnet20": 41_075_328 / 12_763_776, "resnet14": 26_919_552 / 12_763_776})


def test_tables_name_the_layers_and_fit_80_columns():
    result = CliRunner().invoke(app, ["cost", "resnet20", "--bits", "4"], env={"COLUMNS": "80"})
    assert "layer3.2.conv2" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "…" not in result.stdout


def test_random_weights_are_the_same_each_time_and_say_so():
    first, second = (_json("resnet8", "--bits", 4) for _ in range(2))
    assert first == second
    assert any("random initialization" in note for note in first["notes"])


@pytest.fixture
def long_names(tmp_path):
    tensors = {f"encoder.stage{i}.block.with.a.long.name.weight": torch.randn(9, 8, 3, 3) for i in range(2)}
    save_file(tensors, tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"


@pytest.mark.parametrize("width", [36, 40, 60, 80, 120])
def test_numbers_are_never_cut(long_names, width):
    arguments = ["cost", str(long_names), "--bits", "4", "--hardware", "bit_fusion", "--activation-bits", "8"]
    wide, narrow = (CliRunner().invoke(app, arguments, env={"COLUMNS": str(c)}).stdout for c in (200, width))
    rows = [line.split() for line in narrow.splitlines() if line.startswith("encoder")]
    full = [line.split() for line in wide.splitlines() if line.startswith("encoder")]
    assert len(rows) == 2
    for row, whole in zip(rows, full, strict=True):
        assert all(cell in whole for cell in row[1:])
        assert len(row) >= 4  # name, MACs, bits, ESN_d
    assert max(map(len, narrow.splitlines())) <= width
    totals = [line.split()[1] for line in narrow.splitlines() if line.startswith(("esn_", "macs", "bit_op"))]
    assert len(totals) >= 6
    assert not any("…" in number for number in totals)


def test_control_characters_of_a_file_do_not_reach_the_terminal(tmp_path):
    save_file({"a\x1b[31m\nb.weight": torch.ones(2, 2), "c\x1b[0m": torch.ones(2)}, tmp_path / "n\x1b[1m.safetensors")
    result = CliRunner().invoke(app, ["cost", str(tmp_path / "n\x1b[1m.safetensors"), "--bits", "2"])
    assert result.exit_code == 0
    assert "\x1b" not in result.stdout
    assert "a\\x1b[31m\\nb" in result.stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--policy", "sigma"], "--policy sigma must be given with --bits"),
        (["--grid", "midtread"], "--grid midtread must be given with --bits"),
        (["--formula", "literal"], "--formula literal must be given with --bits"),
        (["--csv", "--versus", "resnet14"], "--csv must be given without --versus"),
        (["--csv", "--hardware", "bit_fusion"], "--csv must be given without --hardware"),
    ],
)
def test_no_option_is_ignored(options, said):
    with pytest.raises(InputError, match=said):
        CliRunner().invoke(app, ["cost", "resnet8", *options], catch_exceptions=False)


def test_a_name_too_long_for_a_path_is_a_wrong_name():
    result = CliRunner().invoke(app, ["cost", "a" * 300])
    assert isinstance(result.exception, InputError)
    assert "network name must be one that exists, got 'aaa" in str(result.exception)


def test_an_integer_file_takes_the_formula(tmp_path):
    _onnx_with_integer_weights(tmp_path / "net.onnx")
    assert CliRunner().invoke(app, ["cost", str(tmp_path / "net.onnx"), "--formula", "literal"]).exit_code == 0


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("raise SystemExit(7)", "must name an importable module, got '.*': SystemExit: 7"),
        ("def net():\n    raise SystemExit(3)", "must return a network .*, got SystemExit: 3"),
    ],
)
def test_user_code_cannot_end_the_command_silently(tmp_path, source, said):
    (tmp_path / "leaving.py").write_text(source)
    with pytest.raises(InputError, match=said):
        CliRunner().invoke(app, ["cost", f"{tmp_path / 'leaving.py'}:net"], catch_exceptions=False)


def test_a_terminal_without_the_bars_gets_the_numbers(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "argv", ["slimbit", "cost", "resnet8", "--bits", "2"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert b"12.76M MAC" in stream.buffer.getvalue()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_behind_the_output_is_one_sentence(monkeypatch, capsys):
    with Path("/dev/full").open("w") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        patch.setattr(sys, "argv", ["slimbit", "cost", "resnet8", "--json"])
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: the output must be usable, got No space left on device\n"


def test_versus_shows_hardware_of_every_network_and_says_when_images_differ():
    options = ["--hardware", "loom", "--hardware", "ideal_digital", "--bits", 2]
    data = _json("resnet8", "--versus", "resnet18", "--versus", "resnet14", *options)
    for entry in data["versus"]:
        for model in ("loom", "ideal_digital"):
            ratio = entry["hardware"][model]["total"] / data["hardware"][model]["total"]
            assert entry["ratios"][model] == pytest.approx(ratio)
    assert data["inputs"] == [[1, 3, 32, 32]]
    assert data["versus"][0]["inputs"] == [[1, 3, 224, 224]]
    said = "The ratios compare images of different sizes: resnet8 was counted on 3x32x32, resnet18 on 3x224x224."
    assert [entry["notes"] for entry in data["versus"]] == [[said], []]
    arguments = ["cost", "resnet8", "--versus", "resnet18", *map(str, options), "--no-layers"]
    shown = CliRunner().invoke(app, arguments, env={"COLUMNS": "120"}).stdout
    row = next(line.split() for line in shown.splitlines() if line.startswith("ideal_digital"))
    assert row[1:3] == [
        quantity(network["hardware"]["ideal_digital"]["total"]) for network in (data, data["versus"][0])
    ]
    assert said in shown.replace("\n", " ").replace("  ", " ")


@pytest.fixture
def two_inputs(tmp_path):
    nodes = [
        helper.make_node("Concat", ["a", "b"], ["m"], axis=2),
        helper.make_node("Conv", ["m", "w"], ["y"], name="conv"),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 3, s, 5]) for n, s in (("a", "h"), ("b", "k"))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(torch.ones(2, 3, 1, 1).numpy(), "w")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "two.onnx")
    return tmp_path / "two.onnx"


def test_inputs_by_name_and_the_batch(two_inputs):
    sizes = ["--input", "a=4x3x4x5", "--input", "b=4x3x2x5"]
    assert _json(two_inputs, *sizes)["total"]["macs"] == 6 * 5 * 6
    assert _json(two_inputs, *sizes, "--batch", 1)["total"]["macs"] == 4 * 6 * 5 * 6


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["resnet8", "--input", "x=1x3x32x32"], "--input NAME=SIZES must be given for an ONNX file, got resnet8"),
        (["resnet8", "--batch", "2"], "--batch must be given for an ONNX or .pt2 file, got resnet8"),
        (["two.onnx", "--input", "3x4x5", "--input", "b=1x3x2x5"], "--input must be given once, or for every input as"),
        (["two.onnx", "--input", "c=1x3x2x5"], "input must be one of a, b, got 'c'"),
        (["net.safetensors", "--batch", "2"], "--batch must not be given for .safetensors files"),
        (["net.safetensors", "--input", "x=3x2"], "--input must not be given for .safetensors files, which"),
    ],
)  # fmt: skip
def test_inputs_that_do_not_fit_are_refused(two_inputs, monkeypatch, arguments, said):
    save_file({"a.weight": torch.ones(2, 2)}, two_inputs.parent / "net.safetensors")
    monkeypatch.chdir(two_inputs.parent)
    with pytest.raises(InputError, match=re.escape(said)):
        CliRunner().invoke(app, ["cost", *arguments], catch_exceptions=False)
