"""ONNX files: layers, positions, and what quantized files say about levels and widths."""

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from slimbit.measure.cost import cost_of_survey
from slimbit.measure.cost_config import CostConfig
from slimbit.numerics.levels import LayerLevels
from slimbit.records.errors import InputError, MissingExtraError
from slimbit.survey.onnx_file import survey_onnx
from slimbit.survey.result import Survey

QONNX = "qonnx.custom_op.general"
F = np.float32


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).normal(size=shape).astype(F)


def saved(
    path: Path, nodes: list, tensors: dict, *, shape: tuple = (1, 3, 8, 8), element: int = TensorProto.FLOAT
) -> Path:
    """A model whose input is "x" and whose only output is the last node's."""
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", element, shape)],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)],
        [v if isinstance(v, TensorProto) else numpy_helper.from_array(np.asarray(v), k) for k, v in tensors.items()],
    )
    graph.output[0].type.tensor_type.shape.dim.add().dim_param = "any"
    imports = [helper.make_opsetid("", 21), helper.make_opsetid(QONNX, 1), helper.make_opsetid("my.own", 1)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10), path)
    return path


def node(kind: str, inputs: str, output: str, domain: str = "", **attributes: object) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), [output], name=f"/{output}", domain=domain, **attributes)


def one(survey: Survey) -> LayerLevels:
    """The levels of the only layer."""
    (layer,) = survey.spec.layers
    stored = survey.weight(layer)
    assert isinstance(stored, LayerLevels)
    assert tuple(stored.levels.shape) == layer.shape
    return stored


def test_float_network(tmp_path):
    weights = {"conv.weight": random(4, 3, 3, 3), "conv.bias": random(4), "fc.weight": random(10, 4)}
    norm = {f"bn.{key}": np.ones(4, F) for key in ("weight", "bias", "mean", "var")}
    nodes = [
        node("Conv", "x conv.weight conv.bias", "c", pads=[1, 1, 1, 1]),
        node("BatchNormalization", "c bn.weight bn.bias bn.mean bn.var", "n"),
        node("GlobalAveragePool", "n", "p"),
        node("Flatten", "p", "f"),
        node("Gemm", "f fc.weight", "y", transB=1),
    ]
    survey = survey_onnx(saved(tmp_path / "net.onnx", nodes, weights | norm, shape=(2, 3, 8, 8)))
    conv, fc = survey.spec.layers
    assert survey.spec.name == "net"
    assert (conv.name, conv.kind, conv.weight_key, conv.shape) == ("conv", "conv2d", "conv.weight", (4, 3, 3, 3))
    assert conv.macs == 8 * 8 * 4 * 3 * 9  # per image, although the file has a batch of 2
    assert (conv.bias_parameters, fc.bias_parameters) == (4, 0)
    assert (fc.name, fc.kind, fc.shape, fc.positions) == ("fc", "linear", (10, 4), 1)
    assert torch.equal(survey.weight(conv), torch.from_numpy(weights["conv.weight"]))
    # running mean and variance are statistics, not parameters
    assert [(o.name, o.elements, o.owner) for o in survey.spec.other_parameters] == [
        ("bn.weight", 4, "BatchNormalization"),
        ("bn.bias", 4, "BatchNormalization"),
    ]
    assert not survey.activation_bits
    assert not survey.spec.notes


@pytest.mark.parametrize(("trans", "stored"), [(0, (5, 7)), (1, (7, 5))])
def test_gemm_weights_come_filters_first(tmp_path, trans, stored):
    weight = random(*stored)
    survey = survey_onnx(
        saved(tmp_path / "g.onnx", [node("Gemm", "x w", "y", transB=trans)], {"w": weight}, shape=(1, 5))
    )
    (layer,) = survey.spec.layers
    assert layer.name == "/y"  # the file's tensor name says nothing, so the node names the layer
    assert (layer.shape, layer.positions) == ((7, 5), 1)
    assert torch.equal(survey.weight(layer), torch.from_numpy(weight if trans else weight.T))


def test_matmul_on_tokens(tmp_path):
    weight = random(16, 24)
    nodes = [node("MatMul", "x w.weight", "y")]
    survey = survey_onnx(saved(tmp_path / "m.onnx", nodes, {"w.weight": weight}, shape=("N", 6, 16)))
    (layer,) = survey.spec.layers
    assert (layer.shape, layer.positions, layer.macs) == ((24, 16), 6, 6 * 16 * 24)
    assert torch.equal(survey.weight(layer), torch.from_numpy(weight.T))


def test_weight_on_the_left(tmp_path):
    nodes = [node("MatMul", "w x", "y")]
    survey = survey_onnx(saved(tmp_path / "m.onnx", nodes, {"w": random(7, 16)}, shape=(1, 16, 5)))
    (layer,) = survey.spec.layers
    assert (layer.shape, layer.positions) == ((7, 16), 5)


def test_grouped_and_transposed_convolutions(tmp_path):
    up = random(6, 2, 2, 2)  # (inputs, filters / groups, kernel)
    nodes = [
        node("Conv", "x g.weight", "a", group=3, pads=[1, 1, 1, 1]),
        node("ConvTranspose", "a up.weight", "y", group=3, strides=[2, 2]),
    ]
    survey = survey_onnx(saved(tmp_path / "t.onnx", nodes, {"g.weight": random(6, 1, 3, 3), "up.weight": up}))
    grouped, transposed = survey.spec.layers
    assert (grouped.groups, grouped.shape, grouped.macs) == (3, (6, 1, 3, 3), 64 * 6 * 9)
    # each of the 64 *input* positions meets all 6 * 2 * 4 weights
    assert (transposed.kind, transposed.shape, transposed.positions) == ("conv_transpose2d", (6, 2, 2, 2), 64)
    assert transposed.transposed
    read = survey.weight(transposed)
    for filter_, input_ in ((0, 0), (1, 1), (2, 0), (5, 1)):
        group = filter_ // 2
        assert torch.equal(read[filter_, input_], torch.from_numpy(up[2 * group + input_, filter_ % 2]))


def test_products_of_activations_are_other_work(tmp_path):
    nodes = [
        node("MatMul", "x w", "q"),
        node("Transpose", "q", "k", perm=[0, 2, 1]),
        node("MatMul", "q k", "y"),
    ]
    survey = survey_onnx(saved(tmp_path / "a.onnx", nodes, {"w": random(8, 4)}, shape=(3, 5, 8)))
    (work,) = survey.spec.other_work
    assert (work.name, work.operation, work.macs) == ("/y", "MatMul", 5 * 5 * 4)  # per image of 3


def test_a_weight_used_twice_is_one_layer(tmp_path):
    nodes = [node("Conv", "x w.weight", "a"), node("Conv", "a w.weight", "y")]
    survey = survey_onnx(saved(tmp_path / "r.onnx", nodes, {"w.weight": random(3, 3, 3, 3)}))
    (layer,) = survey.spec.layers
    assert (layer.calls, layer.positions) == (2, 36 + 16)


def test_tied_embedding_shares_memory(tmp_path):
    nodes = [
        node("Gather", "table x", "e"),
        node("Transpose", "table", "t", perm=[1, 0]),
        node("MatMul", "e t", "y"),
    ]
    path = saved(tmp_path / "e.onnx", nodes, {"table": random(11, 4)}, shape=("N", 6), element=TensorProto.INT64)
    survey = survey_onnx(path)
    table, head = survey.spec.layers
    assert (table.kind, table.macs, table.multiplicity("parameter")) == ("embedding", 0, 1)
    assert (head.shape, head.positions, head.shared_with) == ((11, 4), 6, table.name)
    assert head.multiplicity("parameter") == 0


@pytest.mark.parametrize("float_initializer", [False, True])
def test_qdq_per_filter(tmp_path, float_initializer):
    """Levels are the integers minus the zero point, one step per filter."""
    integers = np.array([[-3, 2], [127, -128], [0, 5]], np.int8)
    scale = np.array([0.5, 0.25, 2.0], F)
    zero = np.array([0, 0, 1], np.int8)
    weight = (integers.astype(F) - zero[:, None]) * scale[:, None]
    nodes = [node("QuantizeLinear", "x xs xz", "xq"), node("DequantizeLinear", "xq xs xz", "xd")]
    if float_initializer:
        nodes.append(node("QuantizeLinear", "w.weight s z", "q", axis=0))
    nodes += [
        node("DequantizeLinear", "q s z" if float_initializer else "w.weight s z", "wd", axis=0),
        node("Gemm", "xd wd", "y", transB=1),
    ]
    tensors = {"w.weight": weight if float_initializer else integers, "s": scale, "z": zero}
    tensors |= {"xs": F(0.1), "xz": np.uint8(3)}
    survey = survey_onnx(saved(tmp_path / "q.onnx", nodes, tensors, shape=(1, 2)))
    stored = one(survey)
    assert stored.levels.tolist() == [[-3, 2], [127, -128], [-1, 4]]
    assert stored.steps.tolist() == scale.tolist()
    assert (stored.grid, stored.bits) == ("midtread", 8)
    assert dict(survey.activation_bits) == {"w": 8}
    assert not survey.spec.other_parameters  # scales and zero points are settings of quantizers


def test_negative_scales_turn_the_levels(tmp_path):
    """As where a BatchNorm with a negative factor is folded into the scale: the width stays that of the file."""
    integers, scale = np.array([[-8, 7], [1, 5]]), np.array([[-0.5], [2.0]], F)
    stored = helper.make_tensor("q", TensorProto.INT4, (2, 2), integers.ravel())
    nodes = [node("Cast", "q", "c", to=1), node("Mul", "c s", "w"), node("Gemm", "x w", "y", transB=1)]
    survey = survey_onnx(saved(tmp_path / "n.onnx", nodes, {"q": stored, "s": scale}, shape=(1, 2)))
    layer = one(survey)
    assert layer.levels.tolist() == [[8, -7], [1, 5]]
    assert layer.steps.tolist() == [0.5, 2]
    assert torch.equal(layer.weights(), torch.from_numpy(integers * scale).float())
    assert cost_of_survey(survey, CostConfig()).layers[0].weight_bits == 4


def test_qdq_of_a_matmul_has_its_filters_on_the_last_axis(tmp_path):
    integers = np.array([[1, 2, 3], [4, 5, 6]], np.int8)
    nodes = [node("DequantizeLinear", "w s", "wd", axis=1), node("MatMul", "x wd", "y")]
    stored = one(
        survey_onnx(saved(tmp_path / "q.onnx", nodes, {"w": integers, "s": np.array([1, 2, 4], F)}, shape=(1, 2)))
    )
    assert stored.levels.tolist() == [[1, 4], [2, 5], [3, 6]]
    assert stored.steps.tolist() == [1, 2, 4]


def test_qdq_four_bits_through_a_transpose(tmp_path):
    packed = helper.make_tensor("w", TensorProto.INT4, (2, 3), [-8, 7, 1, 2, -3, 0])
    nodes = [
        node("DequantizeLinear", "w s", "wd", axis=0),
        node("Transpose", "wd", "wt"),
        node("MatMul", "x wt", "y"),
    ]
    survey = survey_onnx(saved(tmp_path / "q.onnx", nodes, {"w": packed, "s": np.array([1, 2], F)}, shape=(1, 3)))
    stored = one(survey)
    assert stored.levels.tolist() == [[-8, 7, 1], [2, -3, 0]]
    assert (stored.steps.tolist(), stored.bits) == ([1, 2], 4)


def test_steps_across_filters_count_as_floats_and_say_so(tmp_path):
    """One step per *input* has no place in a filter-wise cost."""
    nodes = [node("DequantizeLinear", "w s", "wd", axis=1), node("Gemm", "x wd", "y", transB=1)]
    tensors = {"w": np.array([[1, 1], [1, 1]], np.int8), "s": np.array([1, 3], F)}
    survey = survey_onnx(saved(tmp_path / "q.onnx", nodes, tensors, shape=(1, 2)))
    weight = survey.weight(survey.spec.layers[0])
    assert isinstance(weight, torch.Tensor)
    assert weight.tolist() == [[1, 3], [1, 3]]
    assert "count as floats" in survey.spec.notes[0]


def test_integer_operators(tmp_path):
    weight = np.arange(-4, 4, dtype=np.int8).reshape(2, 1, 2, 2)
    tensors = {"w": weight, "s": F(0.5), "ws": np.array([0.5, 0.25], F), "z": np.uint8(0), "wz": np.zeros(2, np.int8)}
    nodes = [
        node("QuantizeLinear", "x s z", "q"),
        node("QLinearConv", "q s z w ws wz s z", "c"),
        node("DequantizeLinear", "c s z", "y"),
    ]
    survey = survey_onnx(saved(tmp_path / "i.onnx", nodes, tensors, shape=(1, 1, 3, 3)))
    stored = one(survey)
    assert stored.levels.tolist() == weight.tolist()
    assert stored.steps.tolist() == [0.5, 0.25]
    assert list(survey.activation_bits.values()) == [8]


def test_matmul_integer(tmp_path):
    tensors = {"w": np.array([[1, 2, 3], [4, 5, 6]], np.uint8), "wz": np.uint8(2)}
    nodes = [
        node("Cast", "x", "c", to=TensorProto.UINT8),
        helper.make_node("MatMulInteger", ["c", "w", "", "wz"], ["i"], name="/i"),
        node("Cast", "i", "y", to=TensorProto.FLOAT),
    ]
    stored = one(survey_onnx(saved(tmp_path / "i.onnx", nodes, tensors, shape=(1, 2))))
    assert stored.levels.tolist() == [[-1, 2], [0, 3], [1, 4]]
    assert stored.steps.tolist() == 1


@pytest.mark.parametrize("narrow", [0, 1])
def test_qonnx_quant_per_tensor(tmp_path, narrow):
    weight = np.array([[-10.0, -0.3, 0.25, 0.26], [0.75, 1.2, 3.5, 10.0]], F)
    nodes = [
        node("Quant", "x xs zero xbits", "xq", QONNX, signed=0, narrow=0, rounding_mode="ROUND"),
        node("Quant", "w.weight s zero bits", "wq", QONNX, signed=1, narrow=narrow, rounding_mode="ROUND"),
        node("Gemm", "xq wq", "y", transB=1),
    ]
    tensors = {"w.weight": weight, "s": F(0.5), "zero": F(0), "bits": F(4), "xs": F(0.1), "xbits": F(6)}
    survey = survey_onnx(saved(tmp_path / "q.onnx", nodes, tensors, shape=(1, 4)))
    stored = one(survey)
    # w / 0.5 rounded half to even (0.5 -> 0, 1.5 -> 2), clamped to -8 (narrow: -7) .. 7
    assert stored.levels.tolist() == [[-7 if narrow else -8, -1, 0, 1], [2, 2, 7, 7]]
    assert (stored.steps.item(), stored.bits, stored.grid) == (0.5, 4, "midtread")
    assert dict(survey.activation_bits) == {"w": 6}


def test_qonnx_quant_per_filter_of_a_grouped_transposed_convolution(tmp_path):
    """Steps along the second stored axis belong to the filters of every group."""
    weight = np.ones((4, 2, 1, 1), F)
    scale = np.array([0.5, 0.25], F).reshape(1, 2, 1, 1)
    nodes = [
        node("Quant", "w.weight s zero bits", "wq", QONNX, signed=1, narrow=1, rounding_mode="ROUND"),
        node("ConvTranspose", "x wq", "y", group=2),
    ]
    tensors = {"w.weight": weight, "s": scale, "zero": F(0), "bits": F(4)}
    survey = survey_onnx(saved(tmp_path / "q.onnx", nodes, tensors, shape=(1, 4, 5, 5)))
    stored = one(survey)
    assert survey.spec.layers[0].shape == (4, 2, 1, 1)
    assert stored.levels.flatten().tolist() == [2, 2, 4, 4, 2, 2, 4, 4]
    assert stored.steps.tolist() == [0.5, 0.25, 0.5, 0.25]


def test_qonnx_bipolar_is_one_bit_midrise(tmp_path):
    weight = np.array([[-0.1, 0.0], [2.0, -3.0]], F)
    nodes = [node("BipolarQuant", "w.weight s", "wq", QONNX), node("Gemm", "x wq", "y", transB=1)]
    survey = survey_onnx(saved(tmp_path / "b.onnx", nodes, {"w.weight": weight, "s": F(0.3)}, shape=(1, 2)))
    stored = one(survey)
    assert stored.levels.tolist() == [[-0.5, 0.5], [0.5, -0.5]]
    assert (stored.grid, stored.bits) == ("midrise", 1)
    assert (stored.levels * stored.steps).abs().numpy() == pytest.approx(0.3)


def test_dynamic_image_size(tmp_path):
    nodes = [node("Conv", "x w.weight", "y")]
    path = saved(tmp_path / "d.onnx", nodes, {"w.weight": random(2, 3, 1, 1)}, shape=("N", 3, "H", "W"))
    with pytest.raises(InputError, match=r"input 'x' must have known dimensions, got Nx3xHxW.*--input"):
        survey_onnx(path)
    for shape in ((3, 4, 5), (1, 3, 4, 5), (7, 3, 4, 5)):  # without a batch, and two batches
        assert survey_onnx(path, input_shape=shape).spec.layers[0].positions == 20
    with pytest.raises(InputError, match=r"input_shape must fit the 4 dimensions of input 'x', got \(3, 4\)"):
        survey_onnx(path, input_shape=(3, 4))
    with pytest.raises(InputError, match="positive sizes"):
        survey_onnx(path, input_shape=(3, 0, 5))


def test_unknown_operators_are_named(tmp_path):
    nodes = [node("Conv", "x w.weight", "c"), node("Mystery", "c m", "y", "my.own")]
    path = saved(tmp_path / "u.onnx", nodes, {"w.weight": random(2, 3, 1, 1), "m": random(4, 4)})
    survey = survey_onnx(path)
    assert survey.spec.notes == ("my.own.Mystery is not counted (1 nodes, the first is '/y')",)
    assert [(o.name, o.owner) for o in survey.spec.other_parameters] == [("m", "my.own.Mystery")]


def test_shape_behind_an_unknown_operator(tmp_path):
    nodes = [node("Mystery", "x", "m", "my.own"), node("Conv", "m w.weight", "y")]
    path = saved(tmp_path / "u.onnx", nodes, {"w.weight": random(2, 3, 1, 1)})
    with pytest.raises(InputError, match="layer '/y' must have known shapes, got none for its value 'm'"):
        survey_onnx(path)


@pytest.mark.parametrize("shape", [(0, 3, 3, 3), (4, 0, 3, 3)])
def test_zero_size_layer_is_named(tmp_path, shape):
    path = saved(tmp_path / "z.onnx", [node("Conv", "x w", "y")], {"w": np.zeros(shape, F)})
    with pytest.raises(InputError, match="'/y' must"):
        survey_onnx(path)


def test_wrong_channels_are_an_error(tmp_path):
    path = saved(tmp_path / "z.onnx", [node("Conv", "x w", "y")], {"w": random(4, 5, 3, 3)})
    with pytest.raises(InputError, match=r"layer '/y' must fit its 3 input channels in 1 groups.*\(4, 5, 3, 3\)"):
        survey_onnx(path)


def test_step_must_be_positive(tmp_path):
    nodes = [node("DequantizeLinear", "w s", "wd"), node("MatMul", "x wd", "y")]
    path = saved(tmp_path / "s.onnx", nodes, {"w": np.ones((2, 2), np.int8), "s": F(0)}, shape=(1, 2))
    with pytest.raises(InputError, match="steps must be finite and not 0, got 0"):
        survey_onnx(path)


def test_network_without_layers(tmp_path):
    with pytest.raises(InputError, match="at least one layer"):
        survey_onnx(saved(tmp_path / "n.onnx", [node("Relu", "x", "y")], {}))


def external(path: Path, location: str) -> Path:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=(2, 3, 1, 1), data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return saved(path, [node("Conv", "x w", "y")], {"w": tensor})


def test_external_data_in_the_same_folder(tmp_path):
    weight = random(2, 3, 1, 1)
    (tmp_path / "w.bin").write_bytes(weight.tobytes())
    survey = survey_onnx(external(tmp_path / "e.onnx", "w.bin"))
    assert torch.equal(survey.weight(survey.spec.layers[0]), torch.from_numpy(weight))


@pytest.mark.parametrize("location", ["../w.bin", "/etc/passwd", "a/../../w.bin", "C:\\w.bin", "..\\w.bin", ""])
def test_external_data_elsewhere_is_refused(tmp_path, location):
    (tmp_path / "w.bin").write_bytes(random(2, 3, 1, 1).tobytes())
    (tmp_path / "in").mkdir()
    with pytest.raises(InputError, match="must lie in its own folder"):
        survey_onnx(external(tmp_path / "in" / "e.onnx", location))


def test_external_data_behind_a_link_is_refused(tmp_path):
    (tmp_path / "w.bin").write_bytes(random(2, 3, 1, 1).tobytes())
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link.bin").symlink_to(tmp_path / "w.bin")
    with pytest.raises(InputError):
        survey_onnx(external(tmp_path / "in" / "e.onnx", "link.bin"))


def test_missing_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr("slimbit.survey.onnx_file.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"slimbit\[onnx\]"):
        survey_onnx(tmp_path / "any.onnx")


def test_onnx_is_imported_only_when_needed():
    import subprocess

    code = "import sys, slimbit.survey.onnx_file as _; sys.exit('onnx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_unsigned_and_rounded_up(tmp_path):
    nodes = [
        node("Quant", "w.weight s one bits", "wq", QONNX, signed=0, narrow=1, rounding_mode="CEIL"),
        node("Gemm", "x wq", "y", transB=1),
    ]
    tensors = {"w.weight": np.array([[-9, -0.4, 0.1, 9]], F), "s": F(0.5), "one": F(1), "bits": F(3)}
    stored = one(survey_onnx(saved(tmp_path / "q.onnx", nodes, tensors, shape=(1, 4))))
    # ceil(w / 0.5 + 1) clamped to 0 .. 2^3 - 1 - 1 = 6, minus the zero point 1: ceil(0.2) = 1, ceil(1.2) = 2
    assert stored.levels.tolist() == [[-1, 0, 1, 5]]


def test_counts_of_qonnx(tmp_path):
    """MACs and bit-operations that qonnx 1.0.0 (inference_cost, discount_sparsity=False) reports for this network."""

    def quant(value: str, scale: str, bits: str, signed: int = 1) -> onnx.NodeProto:
        return node("Quant", f"{value} {scale} z {bits}", f"{value}_q", QONNX, signed=signed, narrow=signed)

    tensors = {"z": F(0), "b2": F(2), "b4": F(4), "b8": F(8), "s": F(0.1)}
    tensors |= {"w1": random(8, 3, 3, 3), "w2": random(8, 1, 3, 3), "w3": random(16, 4, 1, 1), "w4": random(16, 10)}
    tensors["s1"] = np.linspace(0.1, 0.8, 8, dtype=F).reshape(8, 1, 1, 1)
    nodes = [
        *(quant("x", "s", "b8"), quant("w1", "s1", "b4"), node("Conv", "x_q w1_q", "a", pads=[1] * 4)),
        *(node("Relu", "a", "r"), quant("r", "s", "b4", 0), quant("w2", "s", "b2")),
        *(node("Conv", "r_q w2_q", "b", group=8, strides=[2, 2], pads=[1] * 4), quant("b", "s", "b4")),
        *(quant("w3", "s", "b4"), node("Conv", "b_q w3_q", "c", group=2), node("GlobalAveragePool", "c", "p")),
        *(quant("p", "s", "b8"), node("Flatten", "p_q", "f"), quant("w4", "s", "b8"), node("MatMul", "f w4_q", "y")),
    ]
    survey = survey_onnx(saved(tmp_path / "net.onnx", nodes, tensors, shape=(1, 3, 16, 16)))
    widths = [
        (layer.macs, survey.weight(layer).bits, survey.activation_bits[layer.name]) for layer in survey.spec.layers
    ]
    assert sum(macs for macs, _, _ in widths) == 64_160
    assert sum(macs * weight * inputs for macs, weight, inputs in widths) == 1_882_112
