"""The table of runtimes, and latencies."""

from pathlib import Path

import onnx
import pytest
from tests.exchange_case import built, compressed

from slimbit.cli.latency import latency_table
from slimbit.exchange.float_onnx import float_model
from slimbit.exchange.latency import measure_latency
from slimbit.exchange.onnx_qdq import qdq_model
from slimbit.records.errors import InputError
from slimbit.records.latency import Latency, speed_ratios
from slimbit.records.runtimes import ExecutedLayer, runtime_fits, runtime_named, runtime_table


def test_every_row_has_a_source_and_says_what_its_speed_was_measured_on() -> None:
    for runtime in runtime_table():
        assert runtime.source.startswith("https://")
        assert bool(runtime.measured) == (runtime.speed_int8 is not None)


def test_padding_is_counted_by_hand() -> None:
    """5 filters of 3 channels at 3 x 5 bits: on TensorRT 32 x 32 channels at 8 x 8 bits; on FINN as they are."""
    layer = ExecutedLayer(name="a", macs=150, filters=5, inputs=3, weight_bits=3, activation_bits=5)
    fits = {fit.runtime.name: fit for fit in runtime_fits([layer])}
    assert fits["finn"].padding == 1.0
    assert fits["finn"].bit_operations == 150 * 3 * 5
    # 150 MACs = 10 positions of 15 pairs of channels; 32 * 32 pairs of them at 64 bit-operations
    assert fits["tensorrt"].padded_bit_operations == 10 * 32 * 32 * 64
    # ONNX Runtime pads to multiples of 4: 8 filters, 4 channels
    assert fits["onnxruntime"].padded_bit_operations == 10 * 8 * 4 * 64


def test_depthwise_layers_have_one_input_that_nobody_pads() -> None:
    layer = ExecutedLayer(name="a", macs=100, filters=8, inputs=1, weight_bits=8, activation_bits=8)
    assert {fit.runtime.name: fit.padding for fit in runtime_fits([layer])}["onnxruntime"] == 1.0


def test_what_is_too_wide_is_named() -> None:
    layer = ExecutedLayer(name="a", macs=1, filters=8, inputs=8, weight_bits=9, activation_bits=8)
    for fit in runtime_fits([layer]):
        assert not fit.executes
        assert fit.too_wide == ("a",)


def test_unknown_targets_are_refused_with_a_hint() -> None:
    with pytest.raises(InputError, match="did you mean openvino"):
        runtime_named("openvno")


def test_latencies_come_in_every_combination(tmp_path: Path) -> None:
    result, flow, _ = compressed("residual")
    assert result.program is not None
    files = []
    for name, model in (("float", float_model(built("residual"), flow)), ("int8", qdq_model(result.program))):
        files.append(tmp_path / f"{name}.onnx")
        onnx.save(model, str(files[-1]))
    found = measure_latency(files, batches=(1, 3), threads=(1,), seconds=0.01)
    assert [(x.file, x.batch, x.threads) for x in found] == [
        ("float.onnx", 1, 1), ("int8.onnx", 1, 1), ("float.onnx", 3, 1), ("int8.onnx", 3, 1),
    ]  # fmt: skip
    assert all(x.passes >= 11 and x.low_seconds <= x.median_seconds <= x.high_seconds for x in found)
    ratios = speed_ratios(found, "float.onnx")
    assert ratios[found[0]] == 1.0
    assert ratios[found[1]] == pytest.approx(found[0].median_seconds / found[1].median_seconds)


def test_one_file_is_compared_with_nothing() -> None:
    def measured(file: str, threads: int) -> Latency:
        return Latency(
            file=file, runtime="onnxruntime 1", threads=threads, batch=1, passes=11,
            median_seconds=0.5, low_seconds=0.4, high_seconds=0.6,
        )  # fmt: skip

    heads = [str(c.header) for c in latency_table((measured("a.onnx", 1), measured("a.onnx", 2)), "a.onnx").columns]
    assert heads[-1] == "images / s"
    heads = [str(c.header) for c in latency_table((measured("a.onnx", 1), measured("b.onnx", 1)), "b.onnx").columns]
    assert heads[-1] == "times b.onnx"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"batches": (0,)}, "batches must be positive whole numbers"),
        ({"threads": (0,)}, "threads must be positive whole numbers"),
        ({"seconds": 0.0}, "seconds must be positive"),
        ({"runtime": "tvm"}, "runtime must be one of"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, object], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=sentence):
        measure_latency([tmp_path / "x.onnx"], **settings)  # type: ignore[arg-type]
