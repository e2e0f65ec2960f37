"""Export and verification end to end: files that runtimes execute, what they cost, and that mistakes are caught."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from tests.exchange_case import NETWORKS, built, compressed, quantized
from torch import Tensor, nn

from slimbit.apply.activations import read_widths
from slimbit.apply.compress import Compressed
from slimbit.exchange.float_onnx import float_model
from slimbit.exchange.onnx_qdq import qdq_model
from slimbit.exchange.qonnx_file import qonnx_model, weight_width
from slimbit.exchange.reference import Reference
from slimbit.exchange.verify import executed_nodes, saturation_checks, verify_onnx
from slimbit.measure.cost import cost_of_survey
from slimbit.measure.cost_config import CostConfig
from slimbit.records.errors import InputError
from slimbit.survey.module import survey_network
from slimbit.survey.onnx_file import survey_onnx
from slimbit.survey.result import Survey


def written(result: Compressed, folder: Path, *, int4: bool = False) -> Path:
    assert result.program is not None
    file = folder / "net.onnx"
    onnx.save(qdq_model(result.program, int4=int4), str(file))
    return file


def test_a_file_is_proved_exact(tmp_path: Path) -> None:
    result, _, (images,) = compressed("residual")
    labels = result.model(images).argmax(1).numpy()
    found = verify_onnx(written(result, tmp_path), [images], labels=labels, network=result.model)
    assert found.is_exact
    assert (found.images, found.equal_to_reference, found.equal_to_network) == (16, 16, 16)
    assert found.accuracy == found.reference_accuracy == 100.0
    assert set(found.layer_differences.values()) == {0}
    assert len(found.layer_differences) >= 6  # the input, two ReLUs, two summands, a sum, the mean
    assert found.float_nodes == ()
    assert {node.executed for node in found.nodes} == {
        "QLinearConv", "QLinearAdd", "QLinearGlobalAveragePool", "QGemm"
    }  # fmt: skip
    assert found.needs_precision == ()
    assert found.answers_that_saturate is None


def test_another_weight_is_caught(tmp_path: Path) -> None:
    result, _, (images,) = compressed("residual")
    file = written(result, tmp_path)
    model = onnx.load(str(file))
    tensor = next(t for t in model.graph.initializer if t.name == "stem.weight")
    changed = np.frombuffer(tensor.raw_data, np.int8).copy()
    changed[-1] += 2
    tensor.raw_data = changed.tobytes()
    onnx.save(model, str(file))
    found = verify_onnx(file, [images], network=result.model)
    assert found.equal_to_reference == found.images  # the file is consistent in itself
    assert not found.is_exact  # but is not the artifact
    assert found.equal_to_network is not None
    assert found.equal_to_network < found.images


def test_weights_that_can_saturate_are_named_and_emulated(tmp_path: Path) -> None:
    """7-bit mid-rise levels are integers up to 127: pairs of products with bytes leave 16 bits without VNNI."""
    result, _, (images,) = compressed("shuffle", bits=7)
    found = verify_onnx(written(result, tmp_path), [images])
    assert "stem" in found.needs_precision
    stem = next(check for check in found.saturation if check.layer == "stem")
    assert stem.largest_weight == 127
    assert stem.largest_pair > 32767
    assert found.saturating_images == len(images)
    assert found.answers_that_saturate is not None
    safe, _, _ = compressed("shuffle", bits=6)
    checks = list(saturation_checks(qdq_model(safe.program)))  # type: ignore[arg-type]
    assert all(check.is_safe for check in checks)
    assert max(check.largest_pair for check in checks) <= 255 * 126  # two integers of 63 beside the largest byte


def test_saturation_is_what_a_loop_over_pairs_gives() -> None:
    """A product of 4 inputs in 16-bit pairs, by hand: 255 * 127 + 255 * 127 = 64770 becomes 32767."""
    codes = np.array([[255, 255, 10, 20]], np.uint8)
    weights = np.array([[127, 127, 1, -1], [-128, -128, 1, 1], [64, 64, 127, 127]], np.int8)
    helper = onnx.helper
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "one", "zero"], ["d"], name="d"),
        helper.make_node("DequantizeLinear", ["w", "one", "none"], ["v"], name="v"),
        helper.make_node("Gemm", ["d", "v"], ["y"], name="y", transB=1),
    ]
    store = onnx.numpy_helper.from_array
    stored = [store(np.float32(1), "one"), store(np.uint8(0), "zero"), store(weights, "w"), store(np.int8(0), "none")]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, "g", [value("x", 1, [1, 4])], [value("y", 1, [1, 3])], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    given = {"x": codes.astype(np.float32)}
    assert Reference(model).run(given)[0][0].tolist() == [[64760.0, -65250.0, 36450.0]]
    # pairs: 64770 -> 32767, then 10 - 20; -65280 -> -32768, then 30; 32640 stays, then 3810
    assert Reference(model, saturating=True).run(given)[0][0].tolist() == [[32757.0, -32738.0, 36450.0]]


@pytest.mark.parametrize("opset", [13, 17, 21, 25])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_opset_gives_the_same_integers(name: str, opset: int) -> None:
    import onnxruntime

    result, flow, images = compressed(name, bits=4, grid="midtread")
    assert result.program is not None
    try:
        session = onnxruntime.InferenceSession(
            qdq_model(result.program, int4=opset >= 21, opset=opset).SerializeToString(),
            providers=["CPUExecutionProvider"],
        )
    except Exception as error:
        if "opset" in str(error) and "only *guarantees*" in str(error):
            pytest.skip(f"this runtime has no opset {opset}")
        raise
    found = session.run(None, {key: x.numpy() for key, x in zip(flow.inputs, images, strict=True)})
    with torch.inference_mode():
        own = result.model(*images)
    first = own if isinstance(own, Tensor) else next(iter(own.values()))
    assert np.array_equal(found[0], first.numpy())


def test_int4_storage_is_smaller_and_runs_as_int8(tmp_path: Path) -> None:
    result, _, _ = compressed("residual", bits=4, grid="midtread")
    assert result.program is not None
    wide, narrow = (qdq_model(result.program, int4=int4) for int4 in (False, True))
    weights = sum(stage.layer.weights.numel() for stage in result.program.stages if stage.layer is not None)
    saved = wide.ByteSize() - narrow.ByteSize()
    assert weights / 2 - 800 < saved <= weights / 2  # half a byte each, less a Cast per layer
    executed = {node.executed for node in executed_nodes(narrow) if node.operator in ("Conv", "Gemm")}
    assert executed == {"QLinearConv", "QGemm"}


@pytest.mark.parametrize(
    ("bits", "activation_bits", "grid"), [(5, 8, "midrise"), (4, 4, "midtread"), (3, 6, "midrise_zero")]
)
@pytest.mark.parametrize("name", ["residual", "mobile", "unet", "dense", "tokens"])
def test_a_file_costs_what_its_artifact_costs(
    name: str, bits: int, activation_bits: int, grid: str, tmp_path: Path
) -> None:
    result, flow, images = compressed(name, bits=bits, activation_bits=activation_bits, grid=grid, alive=True)
    file = written(result, tmp_path, int4=bits == 4)
    found = cost_of_survey(survey_onnx(file), CostConfig()).total
    spec = survey_network(built(name, alive=True), tuple(x[:1] for x in images)).spec
    own = cost_of_survey(
        Survey(
            spec,
            lambda layer: result.layers[layer.name],
            read_widths(flow, result.plan.activations, spec),
        ),
        CostConfig(),
    ).total
    for metric in ("macs", "esn_analog", "esn_digital", "esn_filterwise", "bit_operations", "weight_bytes"):
        assert getattr(found, metric) == pytest.approx(getattr(own, metric)), metric


def test_pruned_networks_export_smaller_and_exact(tmp_path: Path) -> None:
    from slimbit.apply.layers import weights_of
    from slimbit.apply.surgery import prune
    from slimbit.plan.keep import keep_by_norm
    from slimbit.survey.filter_groups import find_filter_groups
    from slimbit.zoo import network, open_data

    whole, data = network("digits_resnet", weights="shipped"), open_data("digits")
    images = data.calibration(64)[0]
    weights = weights_of(whole, survey_network(whole, images[:1]).spec)
    small = prune(whole, keep_by_norm(find_filter_groups(whole, images[:1]), weights), images[:1])
    sizes = []
    for model in (whole, small):
        result, flow = quantized(model, images)
        file = written(result, tmp_path)
        assert verify_onnx(file, [images], network=result.model).is_exact
        sizes.append((file.stat().st_size, float_model(model, flow).ByteSize()))
    assert sizes[1][0] < 0.6 * sizes[0][0]
    assert sizes[1][1] < 0.4 * sizes[0][1]
    assert sizes[0][0] < 0.45 * sizes[0][1]  # int8 against float; names and nodes weigh much in so small a network


def test_eight_bit_midrise_is_refused_in_one_sentence() -> None:
    result, _, _ = compressed("vector", bits=8)
    with pytest.raises(
        InputError, match=r"must be at most 127 to fit int8, got 255: .* choose the mid-tread grid"
    ) as caught:
        qdq_model(result.program)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must exist, got none"):
        verify_onnx(tmp_path / "no.onnx", [torch.zeros(1, 1)])
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(InputError, match="must be an ONNX"):
        verify_onnx(tmp_path / "text.onnx", [torch.zeros(1, 1)])
    result, _, _ = compressed("vector")
    with pytest.raises(InputError, match="images must hold at least one"):
        verify_onnx(written(result, tmp_path), [])


def test_layers_that_stay_float_are_refused() -> None:
    from slimbit.apply.compress import compress

    result, flow, images = compressed("residual")
    layers = tuple(layer for layer in result.plan.layers if layer.name != "fc")
    network = built("residual")
    spec = survey_network(network, images[0][:1]).spec
    with pytest.raises(InputError, match="layer 'fc' must have levels beside quantized activations"):
        compress(network, replace(result.plan, layers=layers), spec, [images[0]], flow=flow)


def test_qonnx_runs_to_the_last_bit_and_counts_as_integers() -> None:
    pytest.importorskip("qonnx", reason="qonnx is not installed")
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx
    from qonnx.util.cleanup import cleanup_model
    from qonnx.util.inference_cost import inference_cost

    result, flow, (images,) = compressed("residual", bits=4, activation_bits=4, grid="midtread", alive=True)
    assert result.program is not None
    wrapper = ModelWrapper(qonnx_model(result.program))
    for value in (*wrapper.graph.input, *wrapper.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    wrapper = cleanup_model(wrapper)
    for image in images[:3]:
        given = {wrapper.graph.input[0].name: image[None].numpy()}
        found = next(iter(execute_onnx(wrapper, given).values()))
        with torch.inference_mode():
            assert np.array_equal(found, result.model(image[None]).numpy())
    counted = inference_cost(wrapper, discount_sparsity=False)["total_cost"]
    spec = survey_network(built("residual"), images[:1]).spec
    assert counted["total_macs"] == sum(layer.macs for layer in spec.layers)
    widths = read_widths(flow, result.plan.activations, spec)
    layers = {s.stage.head.name: s.layer for s in result.program.stages if s.layer is not None}
    bit_operations = sum(layer.macs * weight_width(layers[layer.name]) * widths[layer.name] for layer in spec.layers)
    assert counted["total_bops"] == bit_operations
    assert not any("FLOAT" in key for key in counted)


def test_qonnx_files_are_counted_as_the_artifact() -> None:
    result, _, _ = compressed("residual", bits=4, activation_bits=4, grid="midtread", alive=True)
    assert result.program is not None
    model = qonnx_model(result.program)
    quants = [node for node in model.graph.node if node.op_type == "Quant"]
    assert len(quants) == 4 + len(result.plan.activations)  # one per layer and one per value
    kinds = {node.op_type for node in model.graph.node}
    assert "BatchNormalization" in kinds  # what hls4ml and FINN can bring to channels last
    assert "Identity" not in kinds  # with which hls4ml loses the output
    assert model.graph.node[-1].output[0] == model.graph.output[0].name == "output"
    assert isinstance(result.model, nn.Module)
