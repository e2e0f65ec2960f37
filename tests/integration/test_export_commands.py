"""From a run to a verified file, as a user types it."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from typer.testing import CliRunner

import slimbit
from slimbit.cli import app
from slimbit.records.codec import canonical, digest, sha256
from slimbit.records.errors import InputError
from slimbit.records.files import StoreError

COMMAND = ("frontier", "digits_resnet", "--data", "digits", "--points", "2", "--calibration-images", "40")


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with quantized activations, and its cheapest point at most two points below float with its file."""
    out = tmp_path_factory.mktemp("export")
    run(*COMMAND, "--select-images", "100", "--no-baselines", "--activation-bits", "8", "--out", out / "run")
    told = run("pick", out / "run", "--max-drop", "5", "--out", out / "small", "--export", out / "small.onnx")
    assert "exact: of 50 images, 50 are equal bit for bit" in told
    assert re.search(r"point \d+ .*: accuracy \S+ on the 100 images that chose it, float network \S+\n", told)
    images = "top-1 on the 400 of 500 test images of digits that did not choose it"
    quoted = rf"accuracy \S+ \(\S+\), float network (\S+): {images}"
    assert (said := re.search(quoted, told))
    model, (_, quote) = slimbit.network("digits_resnet", weights="shipped"), slimbit.open_data("digits").selection(100)
    assert f"{float(quote(model)):.2f}" == said[1]
    assert re.search(r"accuracy in the runtime \S+, in the reference \S+ on these 50 images", told)
    return out


def test_where_the_float_weights_are_gone_the_command_says_so(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "run", tmp_path / "run")
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    about["origin"]["weights"] = str(tmp_path / "gone.safetensors")
    (tmp_path / "run" / "run.json").write_text(json.dumps(about))
    told = run("pick", tmp_path / "run", "--max-drop", "5", "--out", tmp_path / "small")
    assert "float network: its weights are not where they were" in told


def test_a_loaded_model_gives_what_the_file_gives(folder: Path) -> None:
    small = slimbit.load(folder / "small")
    assert small.program is not None
    x = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    found = slimbit.verify(folder / "small.onnx", small, x)
    assert found.is_exact
    assert found.equal_to_network == 8
    point = slimbit.open_run(folder / "run").cheapest(max_drop=5)
    assert torch.equal(slimbit.open_run(folder / "run").load(point).model(x), small.model(x))
    widths = {layer.activation_bits for layer in small.cost.layers}
    assert widths == {8}


def test_banner_is_a_baseline_with_integers(tmp_path: Path) -> None:
    few = ("--points", "1", "--select-images", "40", "--calibration-images", "20")
    told = run(*COMMAND, *few, "--activation-bits", "4", "--baselines", "aciq", "--out", tmp_path / "run")
    assert "aciq, 4 bits" in told
    frontier = slimbit.open_run(tmp_path / "run")
    assert frontier.info.baselines == ("aciq",)
    assert [p.key for p in frontier.points if p.baseline] == [f"aciq-{bits}" for bits in range(8, 1, -1)]
    eight = next(p for p in frontier.points if p.key == "aciq-8")
    small = frontier.load(eight)
    assert small.plan is not None
    assert small.plan.config.activation_range == "aciq_laplace"
    assert {layer.activation_bits for layer in small.cost.layers} == {4, 8}
    images = torch.rand(5, 1, 8, 8)
    assert slimbit.verify(small.export(tmp_path / "aciq.onnx"), small, images).is_exact  # eight bits fit: mid-tread
    faults = CliRunner().invoke(app, ["frontier", "--baselines", "aciq", "--no-baselines", "--out", str(tmp_path)])
    assert "--baselines must not be given with --no-baselines" in str(faults.exception)


def test_a_folder_from_before_a_setting_was_added_is_read(folder: Path, tmp_path: Path) -> None:
    older = tmp_path / "older"
    shutil.copytree(folder / "small", older)
    plan = json.loads((older / "plan.json").read_text())
    del plan["config"]["activation_codes"], plan["config"]["bit_allocation"]
    content = canonical(plan)
    (older / "plan.json").write_bytes(content)
    data = json.loads((older / "slimbit.json").read_text())
    del data["digest"]
    data["plan"]["digest"] = sha256(content)
    data["files"]["plan.json"] = {"bytes": len(content), "sha256": sha256(content)}
    (older / "slimbit.json").write_text(json.dumps({**data, "digest": digest(data)}))
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(slimbit.load(older).model(x), slimbit.load(folder / "small").model(x))


def test_the_file_says_where_it_comes_from(folder: Path) -> None:
    small = slimbit.load(folder / "small")
    stored = {entry.key: entry.value for entry in onnx.load(str(folder / "small.onnx")).metadata_props}
    assert small.plan is not None
    assert stored["slimbit.plan"] == small.plan.digest()
    assert json.loads(stored["slimbit.cost"])["esn_digital"] == small.cost.total.esn_digital


def test_show_and_cost_of_everything_that_is_written(folder: Path) -> None:
    small = slimbit.load(folder / "small")
    assert small.plan is not None
    assert small.accuracy is not None
    plan, esn = small.plan.digest()[:16], small.cost.total.esn_digital
    small.export(folder / "whole.onnx", as_float=True)
    told = {
        name: json.loads(run("show", folder / name, "--json")) for name in ("run", "small", "small.onnx", "whole.onnx")
    }
    assert {name: one["kind"] for name, one in told.items()} == {
        "run": "run", "small": "model", "small.onnx": "onnx", "whole.onnx": "onnx",
    }  # fmt: skip
    assert told["small"]["plan digest"] == told["small.onnx"]["plan digest"] == plan
    assert told["small"]["accuracy"] == told["small.onnx"]["accuracy"]
    assert told["small"]["accuracy"].startswith(f"{small.accuracy.value:.2f} (")
    assert told["small"]["esn_digital"] == told["small.onnx"]["esn_digital"]
    assert told["whole.onnx"]["form"] == "floats"
    assert "esn_digital" not in told["whole.onnx"]  # its weights are floats, whatever they were before
    assert told["whole.onnx"]["accuracy"] == "not measured"
    assert told["run"]["exported files"].startswith("small.onnx of point ")
    assert told["small.onnx"]["inputs"] == "x 1x8x8, batches of any size"
    assert told["small.onnx"]["next"][0] == f"slimbit verify {folder / 'small.onnx'} DIR"
    assert "next: slimbit export" in run("show", folder / "small")
    assert re.search(r"float accuracy +\S+ \(\S+\) on 100 images", run("show", folder / "run"))
    for name in ("small", "small.onnx"):
        assert json.loads(run("cost", folder / name, "--json"))["total"]["esn_digital"] == esn
    assert json.loads(run("cost", folder / "small", "--json", "--hardware", "loom"))["hardware"]["loom"]["total"] > 0
    assert json.loads(run("cost", folder / "run", "--json")) == json.loads(run("points", folder / "run", "--json"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("show", "nowhere"), "PATH must be a run, a folder of slimbit pick or prune, or an exported .onnx file"),
        (("cost", "{small}", "--bits", "4"), "--bits must not be given for folder .*, which holds its cost"),
        (("cost", "{run}", "--hardware", "loom"), "--hardware must not be given for run .*, whose points are counted"),
    ],
)
def test_what_show_and_cost_refuse(folder: Path, arguments: tuple[str, ...], said: str) -> None:
    named = [text.format(small=folder / "small", run=folder / "run") for text in arguments]
    with pytest.raises(InputError, match=said):
        CliRunner().invoke(app, named, catch_exceptions=False)


def test_pick_keeps_the_proof_in_the_run_and_in_json(folder: Path, tmp_path: Path) -> None:
    arguments = ("--max-drop", "5", "--out", tmp_path / "again", "--export", tmp_path / "again.onnx", "--json")
    data = json.loads(run("pick", folder / "run", *arguments))
    proof = data["export"]["verification"]
    assert proof["is_exact"]
    assert proof["images"] == proof["equal_to_reference"] == 50
    assert proof["accuracy"] == proof["reference_accuracy"] > 50  # of images that did not choose the point
    (kept,) = slimbit.open_run(folder / "run").exported()
    assert (kept.point, kept.verification.file) == (data["point"]["number"], "again.onnx")
    assert kept.bytes == data["export"]["bytes"] == (tmp_path / "again.onnx").stat().st_size
    page = slimbit.open_run(folder / "run").report(tmp_path / "report.html").read_text(encoding="utf-8")
    assert "again.onnx: point" in page
    run("pick", folder / "run", *arguments[:3], folder / "small", "--export", folder / "small.onnx")
    with pytest.raises(InputError, match="point of an exported file must be one of the run's, got 99"):
        slimbit.open_run(folder / "run").add_exported(dataclasses.replace(kept, point=99))


def test_commands_from_the_picked_folder(folder: Path) -> None:
    told = run("export", folder / "small", "--out", folder / "again.onnx", "--data", "digits", "--images", "60")
    assert "exact: of 60 images, 60 are equal" in told
    assert "accuracy in the runtime" in told
    assert (folder / "again.onnx").read_bytes() == (folder / "small.onnx").read_bytes()
    data = json.loads(run("verify", folder / "small.onnx", folder / "small", "--images", "20", "--json"))
    assert (data["images"], data["is_exact"], data["accuracy"]) == (20, True, None)
    run("export", folder / "small", "--format", "qonnx", "--out", folder / "small.qonnx.onnx")
    run("export", folder / "small", "--float", "--out", folder / "float.onnx")
    assert (folder / "small.onnx").stat().st_size < (folder / "float.onnx").stat().st_size
    files = (folder / "small.onnx", folder / "float.onnx")
    timed = json.loads(run("latency", *files, "--threads", "1", "--seconds", "0.05", "--json"))["latencies"]
    assert [row["file"] for row in timed] == ["small.onnx", "float.onnx"]
    assert all(row["median_seconds"] > 0 for row in timed)


def test_a_run_gets_a_table_of_times_that_points_are_picked_by(folder: Path) -> None:
    table = folder / "cpu.toml"
    told = run("latency", folder / "run", "--table", table, "--seconds", "0.05")
    assert "width-1-int8.onnx" in told
    assert "times of 11 layers" in told
    rows = json.loads(run("points", folder / "run", "--hardware", table, "--json"))["points"]
    times = {row["hardware:cpu"] for row in rows}
    read = json.loads(
        run("latency", folder / "small.onnx", "--table", folder / "one.toml", "--seconds", "0.05", "--json")
    )
    assert len(times) == 1  # every width up to 8 bits runs as bytes
    assert times.pop() > 0
    assert (read["threads"], read["batch"], [file["arithmetic"] for file in read["file"]]) == (1, 1, ["int8"])
    run("pick", folder / "run", "--budget", f"{table}=1000", "--out", folder / "by-time")
    for arguments, said in (
        (("--threads", "1", "--threads", "2"), "--threads must be given once with --table, got 2"),
        (("--runtime", "openvino"), "runtime must be onnxruntime for --table"),
    ):
        result = CliRunner().invoke(app, ["latency", str(folder / "run"), "--table", str(table), *arguments])
        assert said in str(result.exception)


def test_a_changed_file_is_found_out(folder: Path) -> None:
    model = onnx.load(str(folder / "small.onnx"))
    stored = next(t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 4)
    values = numpy_helper.to_array(stored).copy()
    values.reshape(-1)[0] += 1
    stored.CopyFrom(numpy_helper.from_array(values.astype(np.int8), stored.name))
    onnx.save(model, str(folder / "changed.onnx"))
    result = CliRunner().invoke(app, ["verify", str(folder / "changed.onnx"), str(folder / "small"), "--images", "20"])
    assert result.exit_code == 1
    assert "NOT exact" in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--format", "tflite"), "--format must be one of onnx, qonnx"),
        (("--target", "tensorrt"), "must be signed codes of 8 bits around zero for tensorrt, got unsigned"),
        (("--target", "openvno"), "did you mean openvino"),
        (("--target", "finn"), "--target finn must be given with --format qonnx, got --format onnx"),
        (("--target", "openvino", "--int4"), "--int4 must be given for a runtime that stores weights in four bits"),
        (("--data", "npz:/no/such.npz"), "no/such.npz"),
        (("--data", "tests.integration.test_export_commands:wide_images"), "must be 1x8x8, as the network takes them"),
        (("--float", "--int4"), "format of floats must be onnx, got int4"),
        (("--opset", "9"), "opset must be from 13"),
    ],
)
def test_what_cannot_be_written_is_refused_and_nothing_is_left(folder: Path, arguments: tuple, said: str) -> None:
    with pytest.raises(InputError, match=said):
        run("export", folder / "small", "--out", folder / "refused.onnx", *arguments)
    assert not (folder / "refused.onnx").exists()


def wide_images() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images of another shape than the network's, for calibration and testing."""
    return torch.zeros(4, 1, 16, 16), torch.zeros(4, 1, 16, 16), torch.zeros(4, dtype=torch.long)


def test_verifying_on_images_of_another_shape_is_refused(folder: Path) -> None:
    small = slimbit.load(folder / "small")
    for shape in ((2, 3, 8, 8), (2, 1, 16, 16), (2, 1, 8)):
        with pytest.raises(InputError, match="images must be 1x8x8, as the network takes them, got"):
            slimbit.verify(folder / "small.onnx", small, torch.zeros(shape))


def test_float_and_qonnx_files_are_not_verified(folder: Path) -> None:
    small = slimbit.load(folder / "small")
    for form, as_float in (("onnx", True), ("qonnx", False)):
        file = small.export(folder / "other.onnx", format=form, as_float=as_float)
        with pytest.raises(InputError, match="must be a quantized ONNX file of slimbit export to be verified"):
            slimbit.verify(file, small, torch.zeros(1, 1, 8, 8))


def test_what_a_runtime_pads_is_said(folder: Path) -> None:
    told = run("export", folder / "small", "--out", folder / "padded.onnx", "--target", "openvino", "--images", "2")
    assert re.search(r"ONNX Runtime, CPU: executes \d+\.\d times the bit-operations of the network: up to 8x8", told)
    assert "OpenVINO, CPU: Rounding is not promised to the bit" in told


def test_folder_and_file_are_written_both_or_neither(folder: Path, tmp_path: Path) -> None:
    pick = ("pick", folder / "run", "--max-drop", "5", "--no-score", "--out")
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StoreError, match="could not be written"):
        run(*pick, tmp_path / "new", "--export", tmp_path / "file" / "small.onnx")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "note.txt").write_text("mine")
    with pytest.raises(InputError, match="taken"):
        run(*pick, tmp_path / "taken", "--export", tmp_path / "small.onnx")
    with pytest.raises(InputError, match="--export must be a file outside of --out"):
        run(*pick, tmp_path / "new", "--export", tmp_path / "new" / "small.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "taken"]
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["note.txt"]


def test_float_activations_are_no_file_of_integers(tmp_path: Path) -> None:
    images = torch.randn(16, 1, 8, 8)
    small = slimbit.quantize(slimbit.network("digits_resnet"), images[:1], images, bits=4)
    with pytest.raises(InputError, match="activations must be quantized for a file of integers, got float ones"):
        small.export(tmp_path / "small.onnx")
    assert small.export(tmp_path / "float.onnx", as_float=True).is_file()
    small.save(tmp_path / "small")
    with pytest.raises(InputError, match="trace with --activation-bits 8"):
        run("export", tmp_path / "small", "--out", tmp_path / "small.onnx")
