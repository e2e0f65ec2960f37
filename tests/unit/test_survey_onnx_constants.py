"""ONNX weights behind operators that stored tensors alone feed: counted, with the levels they stand for."""

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

sys.path.insert(0, str(Path(__file__).parents[1]))
from onnx_case import MICROSOFT, QONNX, F, model, node, random, saved
from slimbit.measure.cost import cost_of_survey
from slimbit.measure.cost_config import CostConfig
from slimbit.numerics.levels import LayerLevels
from slimbit.survey.onnx_file import survey_onnx
from slimbit.survey.result import Survey


def one(survey: Survey) -> LayerLevels:
    """The levels of the only layer."""
    (layer,) = survey.spec.layers
    stored = survey.weight(layer)
    assert isinstance(stored, LayerLevels)
    assert tuple(stored.levels.shape) == layer.shape
    assert not survey.spec.other_work
    assert not survey.spec.other_parameters
    return stored


@pytest.mark.parametrize(("low", "high", "bits"), [(-7, 7, 4), (-8, 7, 4), (-3, 3, 3), (-128, 127, 8), (-1, 1, 2)])
@pytest.mark.parametrize("stored_as", ["integers", "floats"])
def test_qcdq_as_brevitas_writes_it(tmp_path, low, high, bits, stored_as):
    """Few bits as eight: Clip between QuantizeLinear and DequantizeLinear, for weights and activations."""
    integers = np.clip(np.arange(-54, 54), low, high).astype(np.int8).reshape(4, 3, 3, 3)
    scale = np.array([0.5, 0.25, 1, 2], F)
    tensors = {"s": scale, "z": np.zeros(4, np.int8), "l": np.int8(low), "h": np.int8(high)}
    tensors |= {"xs": F(0.1), "xz": np.uint8(0), "zero": np.uint8(0), "fifteen": np.uint8(15)}
    nodes = [
        node("QuantizeLinear", "x xs xz", "xq"),
        node("Clip", "xq zero fifteen", "xc"),
        node("DequantizeLinear", "xc xs xz", "xd"),
    ]
    if stored_as == "floats":
        tensors["w"] = integers * scale.reshape(-1, 1, 1, 1)
        nodes.append(node("QuantizeLinear", "w s z", "wq", axis=0))
    else:
        tensors["wq"] = integers
    nodes += [
        node("Clip", "wq l h", "wc"),
        node("DequantizeLinear", "wc s z", "wd", axis=0),
        node("Conv", "xd wd", "y"),
    ]
    survey = survey_onnx(saved(tmp_path / "q.onnx", nodes, tensors, x=(1, 3, 8, 8)))
    levels = one(survey)
    assert levels.levels.tolist() == integers.tolist()
    assert (levels.steps.tolist(), levels.bits) == (scale.tolist(), bits)
    assert list(survey.activation_bits.values()) == [4]
    (layer,) = cost_of_survey(survey, CostConfig()).layers
    assert (layer.macs, layer.weight_bits) == (36 * 4 * 27, bits)
    assert layer.bit_operations == layer.macs * bits * 4


@pytest.mark.parametrize("order", ["scale last", "scale first"])
@pytest.mark.parametrize("zero_point", [0, 3])
def test_integers_that_are_cast_and_scaled(tmp_path, order, zero_point):
    integers = np.arange(6, dtype=np.uint8).reshape(2, 3)
    tensors = {"w": integers, "s": np.array([0.5, 2, 4], F), "z": F(zero_point)}
    nodes = [
        node("Cast", "w", "c", to=TensorProto.FLOAT),
        node("Sub", "c z", "d"),
        node("Mul", "d s" if order == "scale last" else "s d", "wd"),
        node("MatMul", "x wd", "y"),
    ]
    levels = one(survey_onnx(saved(tmp_path / "c.onnx", nodes, tensors, x=(1, 5, 2))))
    assert levels.levels.tolist() == (integers.T.astype(int) - zero_point).tolist()
    assert (levels.steps.tolist(), levels.bits, levels.grid) == ([0.5, 2, 4], 8, "midtread")


MOVES = {
    "Reshape": ([node("Reshape", "d shape", "wd")], {"shape": np.array([4, 3, 3, 3])}),
    "Unsqueeze": ([node("Reshape", "d flat", "r"), node("Unsqueeze", "r axes", "u"), node("Reshape", "u shape", "wd")],
                  {"flat": np.array([4, 27]), "axes": np.array([2, 3]), "shape": np.array([4, 3, 3, 3])}),
    "Transpose": ([node("Reshape", "d kio", "r"), node("Transpose", "r", "wd", perm=[0, 3, 1, 2])],
                  {"kio": np.array([4, 3, 3, 3])}),
    "Squeeze": ([node("Reshape", "d five", "r"), node("Squeeze", "r axes", "wd")],
                {"five": np.array([1, 4, 3, 3, 3]), "axes": np.array([0])}),
    "Identity": ([node("Reshape", "d shape", "r"), node("Identity", "r", "wd")], {"shape": np.array([4, 3, 3, 3])}),
}  # fmt: skip


@pytest.mark.parametrize(("moves", "settings"), MOVES.values(), ids=MOVES)
def test_levels_move_with_their_steps(tmp_path, moves, settings):
    integers, scale = np.arange(108, dtype=np.int8).reshape(4, 27) - 50, np.array([1, 2, 3, 4], F)
    nodes = [node("DequantizeLinear", "w s", "d", axis=0), *moves, node("Conv", "x wd", "y")]
    stored = one(survey_onnx(saved(tmp_path / "m.onnx", nodes, {"w": integers, "s": scale} | settings, x=(1, 3, 5, 5))))
    expected = integers.reshape(4, 3, 3, 3)
    expected = expected.transpose(0, 3, 1, 2) if moves[-1].op_type == "Transpose" else expected
    assert torch.equal(stored.levels, torch.from_numpy(expected).float())
    assert stored.steps.tolist() == scale.tolist()


def test_weight_normalization_is_computed(tmp_path):
    direction, gain = random(4, 3, 3, 3), np.array([[[[2.0]]], [[[1.0]]], [[[3.0]]], [[[0.5]]]], F)
    nodes = [
        node("ReduceL2", "v axes", "n"),
        node("Div", "v n", "u"),
        node("Mul", "u g", "w"),
        node("Conv", "x w", "y"),
    ]
    tensors = {"v": direction, "g": gain, "axes": np.array([1, 2, 3])}
    survey = survey_onnx(saved(tmp_path / "n.onnx", nodes, tensors, x=(1, 3, 5, 5)))
    (layer,) = survey.spec.layers
    assert (layer.name, layer.weight_key, layer.macs) == ("/y", "v", 9 * 4 * 27)
    expected = direction / np.linalg.norm(direction.reshape(4, -1), axis=1).reshape(4, 1, 1, 1) * gain
    torch.testing.assert_close(survey.weight(layer), torch.from_numpy(expected))
    assert not survey.spec.other_parameters  # gain and direction are both the layer's


def test_slices_of_one_tensor_are_layers_of_their_own(tmp_path):
    stacked = random(8, 12)
    nodes = [node("Split", "w", "q k v", axis=1, num_outputs=3)]
    nodes += [node("MatMul", f"x {name}", f"y{name}") for name in "qkv"]
    nodes += [node("Concat", "yq yk yv", "y", axis=2)]
    survey = survey_onnx(saved(tmp_path / "s.onnx", nodes, {"w": stacked}, x=("N", 5, 8)))
    assert [(layer.shape, layer.macs, layer.shared_with) for layer in survey.spec.layers] == [((4, 8), 160, "")] * 3
    for place, layer in enumerate(survey.spec.layers):
        assert torch.equal(survey.weight(layer), torch.from_numpy(stacked[:, 4 * place : 4 * place + 4].T))


def test_quantized_and_then_computed_with_counts_as_floats(tmp_path):
    nodes = [
        node("Quant", "w s z b", "q", QONNX, signed=1, narrow=0, rounding_mode="ROUND"),
        node("Add", "q one", "wd"),
        node("MatMul", "x wd", "y"),
    ]
    tensors = {"w": random(2, 3), "s": F(0.5), "z": F(0), "b": F(4), "one": F(1)}
    survey = survey_onnx(saved(tmp_path / "a.onnx", nodes, tensors, x=(1, 2)))
    expected = np.round(tensors["w"] / 0.5).clip(-8, 7) * 0.5 + 1
    torch.testing.assert_close(survey.weight(survey.spec.layers[0]), torch.from_numpy(expected.T.astype(F)))


def test_a_product_with_an_unknown_weight_is_listed(tmp_path):
    """A scale that depends on the image makes the weight unknown, not absent."""
    nodes = [
        node("GlobalAveragePool", "x", "p"),
        node("ReduceMean", "p", "s", keepdims=0),
        node("Mul", "w s", "wd"),
        node("Conv", "x wd", "y"),
    ]
    survey = survey_onnx(saved(tmp_path / "u.onnx", nodes, {"w": random(4, 3, 3, 3)}, x=(1, 3, 5, 5)))
    assert survey.spec.layers == ()
    (work,) = survey.spec.other_work
    assert (work.name, work.operation, work.macs) == ("/y", "Conv", 9 * 4 * 27)
    assert [(other.name, other.owner) for other in survey.spec.other_parameters] == [("w", "Mul")]


def test_a_product_of_constants_is_computed_once_and_costs_nothing_per_image(tmp_path):
    nodes = [node("MatMul", "a b", "w"), node("MatMul", "x w", "y")]
    survey = survey_onnx(saved(tmp_path / "p.onnx", nodes, {"a": random(4, 2), "b": random(2, 6)}, x=(1, 4)))
    assert [(layer.shape, layer.macs) for layer in survey.spec.layers] == [((6, 4), 24)]
    assert not survey.spec.other_work


def test_random_numbers_are_no_constants(tmp_path):
    nodes = [node("RandomNormalLike", "w", "r"), node("MatMul", "x r", "y")]
    survey = survey_onnx(saved(tmp_path / "r.onnx", nodes, {"w": random(4, 6)}, x=(1, 4)))
    assert survey.spec.layers == ()
    assert [work.macs for work in survey.spec.other_work] == [24]


def test_sparse_initializers(tmp_path):
    net = model([node("MatMul", "x w", "y")], {}, x=(1, 4))
    values = helper.make_tensor("w", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0])
    indices = helper.make_tensor("i", TensorProto.INT64, [3], [0, 5, 11])  # of the flattened 4 x 3
    net.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4, 3]))
    onnx.save(net, tmp_path / "s.onnx")
    survey = survey_onnx(tmp_path / "s.onnx")
    (layer,) = survey.spec.layers
    assert (layer.name, layer.macs) == ("/y", 12)
    assert survey.weight(layer).tolist() == [[1, 0, 0, 0], [0, 0, 0, 0], [0, 2, 0, 3]]


def test_weights_that_are_inputs_are_listed_with_their_work(tmp_path):
    path = saved(tmp_path / "i.onnx", [node("Conv", "x w", "y")], {}, x=("N", 3, 5, 5), w=(4, 3, 3, 3))
    survey = survey_onnx(path)
    assert survey.spec.layers == ()
    assert [(work.name, work.macs) for work in survey.spec.other_work] == [("/y", 9 * 4 * 27)]


INTEGER = {
    "QGemm": (node("QGemm", "xq s z w ws wz b", "y", MICROSOFT, transB=1), (3, 2), [0.5, 0.25, 1.0]),
    "MatMulIntegerToFloat": (node("MatMulIntegerToFloat", "xq w s ws z wz", "y", MICROSOFT), (2, 3), [0.5, 0.25, 1.0]),
    "DynamicQuantizeMatMul": (node("DynamicQuantizeMatMul", "x w ws wz", "y", MICROSOFT), (2, 3), [0.5, 0.25, 1.0]),
}


@pytest.mark.parametrize(("product", "shape", "scales"), INTEGER.values(), ids=INTEGER)
def test_integer_products_of_onnx_runtime(tmp_path, product, shape, scales):
    weight = np.arange(6, dtype=np.int8).reshape(shape)
    tensors = {"w": weight, "ws": np.array(scales, F), "wz": np.zeros(3, np.int8), "b": np.zeros(3, np.int32)}
    tensors |= {"s": F(0.5), "z": np.uint8(0)}
    nodes = [node("QuantizeLinear", "x s z", "xq"), product]
    stored = one(survey_onnx(saved(tmp_path / "i.onnx", nodes, tensors, x=("N", 2))))
    assert stored.levels.tolist() == (weight if shape == (3, 2) else weight.T).tolist()
    assert stored.steps.tolist() == scales
    assert stored.bits == 8
