"""Files of ONNX Runtime's own quantizer and optimizer: every multiply-accumulate, every integer."""

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

sys.path.insert(0, str(Path(__file__).parents[1]))
from onnx_case import MICROSOFT, F, model, node, random
from slimbit.measure.cost import cost_of_survey
from slimbit.measure.cost_config import CostConfig
from slimbit.numerics.levels import LayerLevels
from slimbit.survey.onnx_file import survey_onnx

quantization = pytest.importorskip("onnxruntime.quantization")
pytestmark = pytest.mark.filterwarnings("ignore")  # onnxruntime warns about itself

# 8 x 8 positions of 8 x 27 weights, 8 x 8 of 16 x 36 in two groups, and 16 x 10
MACS = [64 * 8 * 27, 64 * 16 * 36, 160]


@pytest.fixture
def network(tmp_path) -> Path:
    nodes = [
        node("Conv", "x a ab", "c", pads=[1] * 4),
        node("Relu", "c", "r"),
        node("Conv", "r b bb", "d", pads=[1] * 4, group=2),
        node("Relu", "d", "e"),
        node("GlobalAveragePool", "e", "p"),
        node("Flatten", "p", "f"),
        node("Gemm", "f g gb", "y", transB=1),
    ]
    tensors = {"a": random(8, 3, 3, 3), "ab": random(8), "b": random(16, 4, 3, 3), "bb": random(16)}
    tensors |= {"g": random(10, 16), "gb": random(10)}
    net = model(nodes, tensors, opset=17, x=("N", 3, 8, 8))
    net.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", 1, ["N", 10]))
    onnx.save(net, tmp_path / "float.onnx")
    return tmp_path / "float.onnx"


class Images(quantization.CalibrationDataReader):
    def __init__(self) -> None:
        self.left = iter([{"x": random(2, 3, 8, 8)} for _ in range(3)])

    def get_next(self):
        return next(self.left, None)


def integers_of(path: Path, shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
    """The integer tensors of these shapes, in either order of a matrix, minus their zero points."""
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    found = []
    for shape in shapes:
        name, value = next(
            (k, v) for k, v in stored.items() if v.dtype.itemsize == 1 and v.shape in (shape, shape[::-1])
        )
        zero = stored[name.replace("_quantized", "_zero_point")].astype(int)
        value = value.T if value.shape != shape else value
        found.append(value.astype(int) - zero.reshape(-1, *[1] * (value.ndim - 1)))
    return found


@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
@pytest.mark.parametrize("weights", ["QInt8", "QUInt8"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_static_quantization(network, tmp_path, form, weights, per_channel):
    path = tmp_path / "static.onnx"
    quantization.quantize_static(
        network, path, Images(), quant_format=quantization.QuantFormat[form],
        weight_type=quantization.QuantType[weights], activation_type=quantization.QuantType.QUInt8,
        per_channel=per_channel,
    )  # fmt: skip
    survey = survey_onnx(path)
    report = cost_of_survey(survey, CostConfig())
    assert [layer.macs for layer in report.layers] == MACS
    assert not report.other_work
    assert not report.notes
    assert [(layer.weight_bits, layer.activation_bits) for layer in report.layers] == [(8, 8)] * 3
    expected = integers_of(path, [layer.shape for layer in survey.spec.layers])
    for layer, integers in zip(survey.spec.layers, expected, strict=True):
        stored = survey.weight(layer)
        assert isinstance(stored, LayerLevels)
        assert torch.equal(stored.levels, torch.from_numpy(integers).float())
        assert stored.steps.numel() in (1, layer.filters)


@pytest.mark.parametrize("per_channel", [False, True])
def test_dynamic_quantization(network, tmp_path, per_channel):
    path = tmp_path / "dynamic.onnx"
    quantization.quantize_dynamic(network, path, per_channel=per_channel)
    survey = survey_onnx(path)
    report = cost_of_survey(survey, CostConfig())
    assert [layer.macs for layer in report.layers] == MACS
    assert not report.other_work
    assert {(layer.weight_bits, layer.activation_bits) for layer in report.layers if layer.grid == "midtread"} == {
        (8, 8)
    }


@pytest.mark.parametrize("level", ["ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"])
def test_optimized_files(network, tmp_path, level):
    """Fused operators, and those of the runtime's own layouts, whose work is at least listed."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
    spec = survey_onnx(tmp_path / "optimized.onnx").spec
    listed = {work.operation: work.macs for work in spec.other_work}
    blocked = listed.pop(f"{MICROSOFT}.nchwc.Conv", 0)  # 8 filters in blocks of 8 or 16, as the machine wants them
    assert blocked in ({0} if level != "ORT_ENABLE_ALL" else {0, MACS[0], 2 * MACS[0]})
    assert sum(layer.macs for layer in spec.layers) + sum(listed.values()) == sum(MACS[1:] if blocked else MACS)
    assert not spec.notes


def test_attention_of_a_file_is_listed(tmp_path):
    """Scores and weighted values of one head: products of activations, in no layer."""
    nodes = [
        node("MatMul", "x q", "a"),
        node("Transpose", "a", "t", perm=[0, 2, 1]),
        node("MatMul", "a t", "s"),
        node("Softmax", "s", "m"),
        node("MatMul", "m a", "y"),
    ]
    onnx.save(model(nodes, {"q": random(8, 8).astype(F)}, opset=17, x=(3, 5, 8)), tmp_path / "a.onnx")
    spec = survey_onnx(tmp_path / "a.onnx").spec
    assert [layer.macs for layer in spec.layers] == [5 * 64]
    assert [work.macs for work in spec.other_work] == [5 * 5 * 8, 5 * 5 * 8]
