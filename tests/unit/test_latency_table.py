"""Latency as a cost: times of layers from ONNX Runtime's profiler, and the machine that they make."""

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from tests.exchange_case import built, compressed

import slimbit
from slimbit.exchange import layer_times
from slimbit.exchange.float_onnx import float_model
from slimbit.exchange.layer_times import measure_layer_times
from slimbit.exchange.onnx_qdq import qdq_model
from slimbit.measure.latency_table import LatencyTable, LayerTime, ProfiledFile
from slimbit.measure.named_cost import load_cost
from slimbit.measure.planned import budget_in
from slimbit.records.errors import InputError, MissingExtraError
from slimbit.survey.module import survey_network
from slimbit.survey.onnx_file import survey_onnx


def network() -> torch.nn.Sequential:
    return torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1, bias=False), torch.nn.Flatten(), torch.nn.Linear(8, 3))


def table(**changes: object) -> LatencyTable:
    layers = (
        LayerTime(name="0", shape=(2, 1, 1, 1), positions=4, int8_ms=0.25, float_ms=1.0),
        LayerTime(name="2", shape=(3, 8), positions=1, int8_ms=0.5, float_ms=2.0),
    )
    file = ProfiledFile(name='a "net"\\\n.onnx', arithmetic="int8", whole_ms=0.75, profiled_ms=0.9)
    known = LatencyTable(
        name="cpu", runtime="onnxruntime 1", processor="x86", threads=1, batch=1, file=(file,), layer=layers
    )
    return replace(known, **changes)  # type: ignore[arg-type]


@pytest.fixture
def cpu(tmp_path: Path) -> Path:
    (tmp_path / "cpu.toml").write_text(table().to_toml())
    return tmp_path / "cpu.toml"


def test_the_cost_is_the_sum_of_the_times_in_the_arithmetic_that_is_executed(cpu: Path) -> None:
    example = torch.zeros(1, 1, 2, 2)
    for bits, total in ((None, 1.0 + 2.0), (8, 0.25 + 0.5), (3, 0.25 + 0.5)):
        cost = slimbit.cost(network(), example, bits=bits, hardware=cpu).hardware["cpu"]
        assert (cost.total, cost.unit) == (total, "ms")
    assert slimbit.cost(network(), example, bits=9, hardware=cpu).hardware["cpu"].total == 3.0


def test_sizes_that_were_not_measured_have_no_cost(cpu: Path) -> None:
    sentence = r"layer '0' must have a size that hardware model 'cpu' was measured at in int8 \(2x1x1x1 at 4 pos"
    with pytest.raises(InputError, match=sentence):
        slimbit.cost(network()[:1], torch.zeros(1, 1, 4, 2), bits=8, hardware=cpu)


def test_device_threads_and_batch_are_part_of_what_the_machine_is(cpu: Path) -> None:
    read = load_cost(str(cpu))
    assert read.is_same(load_cost(str(cpu)))
    assert read.model is not None
    assert read.model.definition == table().model().definition
    assert read.model.source == "onnxruntime 1, x86, 1 thread, 1 image per pass"
    for change in ({"threads": 2}, {"batch": 8}, {"processor": "arm"}):
        cpu.write_text(table(**change).to_toml())
        assert not read.is_same(load_cost(str(cpu)))


def test_no_price_is_for_it_and_no_keep_plan_counts_it(cpu: Path) -> None:
    example = torch.zeros(1, 1, 2, 2)
    images = torch.randn(8, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    for refused in (
        lambda: slimbit.quantize(network(), example, images, price=1e-6, metric=cpu),
        lambda: slimbit.trace_frontier(network(), example, images, lambda _: 1.0, out=cpu.parent / "run", metric=cpu),
    ):
        with pytest.raises(InputError, match="metric must be a cost that bit widths or dropped filters change"):
            refused()
    with pytest.raises(InputError, match="metric must be one that a keep plan counts"):
        budget_in(survey_network(network(), example), cpu)
    small = slimbit.quantize(network(), example, images, budget={cpu: 0.8, "esn_digital": 50.0})
    assert small.cost.total.esn_digital <= 50


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("files")
    result, flow, _ = compressed("residual")
    assert result.program is not None
    made = {"int8": qdq_model(result.program), "float": float_model(built("residual"), flow)}
    for name, model in made.items():
        onnx.save(model, str(folder / f"{name}.onnx"))
    return [folder / f"{name}.onnx" for name in made]


def test_times_of_layers_sum_to_the_pass_without_the_profiler(files: list[Path], tmp_path: Path) -> None:
    found = measure_layer_times(files, name="cpu", batch=2, seconds=0.01)
    assert [(one.name, one.arithmetic) for one in found.file] == [("int8.onnx", "int8"), ("float.onnx", "float")]
    layers = survey_onnx(files[0]).spec.layers
    assert [(row.name, row.shape, row.positions) for row in found.layer] == [
        (layer.name, layer.shape, layer.positions) for layer in layers
    ]
    for one in found.file:
        assert sum(row.milliseconds(one.arithmetic) or 0 for row in found.layer) == pytest.approx(one.whole_ms / 2)
        assert one.profiled_ms > 0
    (tmp_path / "cpu.toml").write_text(found.to_toml())
    machine = load_cost(str(tmp_path / "cpu.toml"))
    assert machine.model is not None
    assert machine.model.definition == found.model().definition  # every digit survives the file


def test_nodes_belong_to_the_layer_that_they_follow(files: list[Path]) -> None:
    model = onnx.load(str(files[1]))
    products = [node.name for node in model.graph.node if node.op_type in layer_times.PRODUCTS]
    first, second = products[:2]
    nodes = [("Reorder", 1.0), (f"{first}_nchwc", 2.0), ("Transpose_token_3", 4.0), (f"{second}_token_9", 8.0)]
    names = [layer.name for layer in survey_onnx(files[1]).spec.layers]
    assert layer_times._by_layer(model, nodes) == {names[0]: 1.0 + 2.0 + 4.0, names[1]: 8.0}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"batch": 0}, "batch must be positive, got 0"),
        ({"threads": 0}, "threads must be positive, got 0"),
        ({"seconds": 0.0}, "seconds must be positive"),
        ({"files": []}, "files must hold at least one ONNX file, got none"),
    ],
)
def test_wrong_settings_of_a_profile_are_one_sentence(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        measure_layer_times(**{"files": [Path("x.onnx")], **settings})  # type: ignore[arg-type]


def test_without_onnxruntime_the_sentence_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_times, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match="onnxruntime"):
        measure_layer_times([Path("x.onnx")])
