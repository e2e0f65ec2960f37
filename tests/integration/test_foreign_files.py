"""ONNX files that other packages write or bring, where these are installed: every multiply-accumulate, every level."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from slimbit.survey.onnx_file import survey_onnx

pytestmark = pytest.mark.filterwarnings("ignore")  # the packages warn about themselves


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("per_filter", [False, True])
def test_qcdq_export_of_brevitas(bits: int, per_filter: bool, tmp_path: Path) -> None:
    qnn = pytest.importorskip("brevitas.nn")
    export = pytest.importorskip("brevitas.export").export_onnx_qcdq
    weights = {"weight_bit_width": bits, "weight_scaling_per_output_channel": per_filter}
    torch.manual_seed(0)
    net = nn.Sequential(
        qnn.QuantIdentity(bit_width=8, return_quant_tensor=True),
        qnn.QuantConv2d(3, 8, 3, padding=1, **weights), nn.BatchNorm2d(8),
        qnn.QuantReLU(bit_width=bits, return_quant_tensor=True),
        qnn.QuantConv2d(8, 16, 3, stride=2, groups=2, bias=True, **weights), nn.Flatten(),
        qnn.QuantLinear(16 * 9, 10, bias=True, **weights),
    ).eval()  # fmt: skip
    export(net, torch.randn(1, 3, 8, 8), export_path=str(tmp_path / "net.onnx"), dynamo=False, opset_version=17)
    survey = survey_onnx(tmp_path / "net.onnx")
    assert [layer.macs for layer in survey.spec.layers] == [64 * 8 * 27, 9 * 16 * 36, 144 * 10]
    assert not survey.spec.other_work
    assert not survey.spec.uncounted
    for layer, module in zip(survey.spec.layers, (net[1], net[4], net[6]), strict=True):
        stored, wanted = survey.weight(layer), module.quant_weight()
        assert torch.equal(stored.levels, wanted.int().float())
        assert torch.allclose(stored.steps.reshape(-1), wanted.scale.reshape(-1))


FILES = {
    # PaddlePaddle's, converted by paddle2onnx: attention and convolutions
    ("rapidocr_onnxruntime", "models/ch_PP-OCRv4_rec_infer.onnx"): {"x": (1, 3, 48, 160)},
    ("rapidocr_onnxruntime", "models/ch_ppocr_mobile_v2.0_cls_infer.onnx"): {"x": (1, 3, 48, 192)},
    # written by tf2onnx
    ("basic_pitch", "saved_models/icassp_2022/nmp.onnx"): {},
    ("magika", "models/standard_v3_3/model.onnx"): {},
}


@pytest.mark.parametrize(("place", "shapes"), FILES.items(), ids=[f"{p}, {n}" for p, n in FILES])
def test_files_of_packages(place: tuple[str, str], shapes: dict[str, tuple[int, ...]]) -> None:
    package, name = place
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"{package} is not installed")
    path = Path(found.submodule_search_locations[0]) / name
    if not path.is_file():
        pytest.skip(f"this version of {package} has no {name}")
    spec = survey_onnx(path, input_shape=shapes or None).spec
    assert not spec.uncounted
    assert sum(layer.macs for layer in spec.layers) + sum(w.macs for w in spec.other_work) == run_and_counted(
        path, shapes
    )


def run_and_counted(path: Path, inputs: dict[str, tuple[int, ...]]) -> int:
    """MACs by the shapes that ONNX Runtime gives the values of the file in one run of it."""
    runtime = pytest.importorskip("onnxruntime")
    model = onnx.load(path)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    products = [n for n in model.graph.node if n.op_type in {"Conv", "ConvTranspose", "MatMul", "Gemm"}]
    known = {*shapes, *(v.name for v in (*model.graph.input, *model.graph.output))}
    wanted = dict.fromkeys(name for n in products for name in (*n.input[:2], n.output[0]) if name not in known)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kinds = {"tensor(float)": np.float32, "tensor(int32)": np.int32, "tensor(int64)": np.int64}
    feed = {
        value.name: np.zeros(
            inputs.get(value.name) or [size if isinstance(size, int) else 1 for size in value.shape], kinds[value.type]
        )
        for value in session.get_inputs()
    }
    names = [value.name for value in session.get_outputs()]
    values = {**feed, **dict(zip(names, session.run(names, feed), strict=True))}
    shapes |= {name: value.shape for name, value in values.items()}
    total = 0
    for node in products:
        read, weight, made = (shapes[name] for name in (*node.input[:2], node.output[0]))
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        if node.op_type in {"Conv", "ConvTranspose"}:
            total += math.prod(made if node.op_type == "Conv" else read) * math.prod(weight[1:])
        else:
            total += math.prod(made) * read[0 if transposed else -1]
    return total
