"""ONNX shapes: as the file says, as they are inferred, as one run shows them; and which dimension is the batch."""

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

sys.path.insert(0, str(Path(__file__).parents[1]))
from onnx_case import MICROSOFT, F, model, node, random, runtime_macs, saved
from slimbit.measure.cost import cost_of_survey
from slimbit.measure.cost_config import CostConfig
from slimbit.records.errors import InputError
from slimbit.survey import onnx_shapes
from slimbit.survey.onnx_file import survey_onnx

CONV = node("Conv", "m w", "y")
W = {"w": random(2, 3, 1, 1)}


def layer_macs(path: Path, **options: object) -> int:
    return sum(layer.macs for layer in survey_onnx(path, **options).spec.layers)


UNKNOWN = {
    # what stands before the convolution, and its settings: inference alone does not know the shape of m
    "Gelu": ([node("Gelu", "x", "m", MICROSOFT)], {}),
    "FusedConv": (
        [node("FusedConv", "x k", "m", MICROSOFT, activation="Relu", pads=[1] * 4)], {"k": random(3, 3, 3, 3)}),
    "Reshape by a computed shape": (
        [node("Abs", "shape", "a"), node("Reshape", "x a", "m")], {"shape": np.array([1, 3, 6, 6])}),
    "Pad by a computed width": (
        [node("Neg", "pads", "p"), node("Pad", "x p", "m")], {"pads": -np.array([0, 0, 1, 1, 0, 0, 1, 1])}),
    "values of the image": (
        [node("ReduceMax", "x", "r", keepdims=0), node("Cast", "r", "c", to=TensorProto.INT64),
         node("Unsqueeze", "c zero", "u"), node("Concat", "u u", "uu", axis=0),
         node("Concat", "z4 uu z4 uu", "p", axis=0), node("Pad", "x p", "m")],
        {"zero": np.array([0]), "z4": np.array([0, 0])}),
}  # fmt: skip


@pytest.mark.parametrize(("before", "settings"), UNKNOWN.values(), ids=UNKNOWN)
def test_a_run_shows_what_inference_does_not(tmp_path, before, settings):
    path = saved(tmp_path / "u.onnx", [*before, CONV], W | settings, x=(1, 3, 6, 6))
    expected = runtime_macs(path, x=np.zeros((1, 3, 6, 6), F))
    assert layer_macs(path) == expected
    assert expected >= 36 * 6


def test_without_the_runtime_the_missing_shape_is_said(tmp_path, monkeypatch):
    path = saved(tmp_path / "u.onnx", [node("Gelu", "x", "m", MICROSOFT), CONV], W, x=(1, 3, 6, 6))
    monkeypatch.setattr(onnx_shapes, "find_spec", lambda _: None)
    with pytest.raises(
        InputError, match=r"layer '/y' must have known shapes, got none for its value 'm': install onnxr"
    ):
        survey_onnx(path)


def test_a_run_that_takes_too_long_is_ended(tmp_path, monkeypatch):
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [node("Identity", "keep", "go"), node("Add", "v v", "w2")],
        "body",
        [value("i", TensorProto.INT64, []), value("keep", TensorProto.BOOL, []), value("v", TensorProto.FLOAT, None)],
        [value("go", TensorProto.BOOL, []), value("w2", TensorProto.FLOAT, None)],
    )
    nodes = [node("Gelu", "x", "g", MICROSOFT), node("Loop", "- yes g", "m", body=body), CONV]
    path = saved(tmp_path / "l.onnx", nodes, W | {"yes": np.bool_(True)}, x=(1, 3, 6, 6))
    monkeypatch.setattr(onnx_shapes, "MOST_SECONDS", 0.5)
    with pytest.raises(InputError, match=r"got none for its value 'm': ONNX Runtime does not end within 0\.5 s"):
        survey_onnx(path)


def with_shape(net: onnx.ModelProto, name: str, *dims: object) -> onnx.ModelProto:
    net.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, dims))
    return net


@pytest.mark.parametrize(("stated", "sizes"), [((1, 3, 7, 7), (1, 3, 6, 6)), (("N", 3, "H", "W"), ("N", 3, "H", "W"))])
def test_shapes_that_the_file_states_are_kept(tmp_path, stated, sizes):
    """An operator that nobody knows can be counted past, because the file says what it makes."""
    net = with_shape(model([node("Mystery", "x", "m", "my.own"), CONV], W, x=sizes), "m", *stated)
    onnx.save(net, tmp_path / "s.onnx")
    given = {} if sizes[0] == 1 else {"input_shape": (3, 7, 7)}
    assert layer_macs(tmp_path / "s.onnx", **given) == 49 * 6
    if sizes[0] == 1:  # of another size than the file was written for, it says nothing
        with pytest.raises(InputError, match="got none for its value 'm'"):
            survey_onnx(tmp_path / "s.onnx", input_shape=(3, 8, 8))


def test_inputs_by_name(tmp_path):
    nodes = [node("Concat", "a b", "m", axis=2), CONV]
    path = saved(tmp_path / "n.onnx", nodes, W, a=("N", 3, "h", "w"), b=("N", 3, "k", "w"))
    with pytest.raises(InputError, match=r"input 'a' must have known dimensions, got Nx3xhxw"):
        survey_onnx(path)
    with pytest.raises(InputError, match=r"input 'b' must have known dimensions, got Nx3xkxw"):
        survey_onnx(path, input_shape=(3, 4, 5))
    for shapes in ({"a": (3, 4, 5), "b": (3, 2, 5)}, {"b": (1, 3, 2, 5), "a": (1, 3, 4, 5)}):
        assert layer_macs(path, input_shape=shapes) == 6 * 5 * 6
    with pytest.raises(InputError, match=r"input must be one of a, b, got 'c'"):
        survey_onnx(path, input_shape={"c": (3, 4, 5)})


def test_names_that_name_nothing_are_sizes_of_their_own(tmp_path):
    """Paddle calls every open dimension "?"."""
    nodes = [node("Conv", "a w", "c"), node("Conv", "b w", "d"), node("Sum", "c d", "y")]
    path = saved(tmp_path / "q.onnx", nodes, W, a=("?", 3, "?", "?"), b=("?", 3, "?", "?"))
    with pytest.raises(InputError, match="input 'b' must have known dimensions"):
        survey_onnx(path, input_shape={"a": (3, 4, 5)})


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 17])
def test_old_and_new_operator_sets(tmp_path, opset):
    nodes = [node("Conv", "x w b", "c", pads=[1] * 4), node("MaxPool", "c", "p", kernel_shape=[2, 2], strides=[2, 2]),
             node("Flatten", "p", "f"), node("Gemm", "f g h", "y", transB=1)]  # fmt: skip
    tensors = {"w": random(4, 3, 3, 3), "b": random(4), "g": random(10, 64), "h": random(10)}
    net = model(nodes, tensors, opset=opset, x=(1, 3, 8, 8))
    net.ir_version = 3 if opset < 9 else 8
    if net.ir_version == 3:  # old files list their weights as inputs, too
        net.graph.input.extend(helper.make_tensor_value_info(k, TensorProto.FLOAT, v.shape) for k, v in tensors.items())
    onnx.save(net, tmp_path / "o.onnx")
    survey = survey_onnx(tmp_path / "o.onnx")
    assert [(layer.macs, layer.bias_parameters) for layer in survey.spec.layers] == [(64 * 4 * 27, 4), (640, 10)]
    assert torch.equal(survey.weight(survey.spec.layers[1]), torch.from_numpy(tensors["g"]))


@pytest.mark.parametrize(("left", "right"), [(0, 0), (1, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize("weight_first", [False, True])
def test_gemm_in_every_orientation(tmp_path, left, right, weight_first):
    """Three rows of data meet a weight of 5 inputs and 7 filters."""
    data = (5, 3) if (right if weight_first else left) == int(not weight_first) else (3, 5)
    if weight_first:
        data, stored = ((3, 5) if right else (5, 3)), ((5, 7) if left else (7, 5))
    else:
        data, stored = ((5, 3) if left else (3, 5)), ((7, 5) if right else (5, 7))
    weight = random(*stored)
    nodes = [node("Gemm", "w x" if weight_first else "x w", "y", transA=left, transB=right)]
    path = saved(tmp_path / "g.onnx", nodes, {"w": weight}, x=data)
    survey = survey_onnx(path, batch=1)
    (layer,) = survey.spec.layers
    assert (layer.shape, layer.macs) == ((7, 5), 3 * 35)
    assert layer.macs == runtime_macs(path, x=np.zeros(data, F))
    assert torch.equal(survey.weight(layer), torch.from_numpy(weight if stored == (7, 5) else weight.T))
    assert survey_onnx(path, batch=3).spec.layers[0].macs == 35


def test_recurrent_layers_and_einsum_are_counted_as_other_work(tmp_path):
    nodes = [
        helper.make_node("LSTM", ["x", "w", "r"], ["l"], name="/l", hidden_size=4, direction="bidirectional"),
        node("Einsum", "l e", "y", equation="tdnh,ho->tdno"),
    ]
    tensors = {"w": random(2, 16, 6), "r": random(2, 16, 4), "e": random(4, 3)}
    survey = survey_onnx(saved(tmp_path / "r.onnx", nodes, tensors, x=(5, 1, 6)), batch=1)
    # 5 steps x 2 directions x 4 gates x 4 wide x (6 inputs + 4 states); 5 x 2 x 1 x 4 x 3
    assert [(work.operation, work.macs) for work in survey.spec.other_work] == [("LSTM", 5 * 2 * 160), ("Einsum", 120)]
    assert survey.spec.other_work[0].parameters == ("w", "r")
    report = cost_of_survey(survey, CostConfig())
    assert (report.total.macs, report.layers) == (0, ())
    assert "No layer is counted" in report.notes[-1]


def test_a_branch_is_named_with_what_it_holds(tmp_path):
    branch = helper.make_graph(
        [node("MatMul", "x w", "t")], "then", [], [helper.make_tensor_value_info("t", TensorProto.FLOAT, None)]
    )
    other = helper.make_graph(
        [node("Neg", "x", "e")], "else", [], [helper.make_tensor_value_info("e", TensorProto.FLOAT, None)]
    )
    nodes = [node("If", "flag", "y", then_branch=branch, else_branch=other)]
    survey = survey_onnx(saved(tmp_path / "b.onnx", nodes, {"w": random(4, 4)}, x=(1, 4), flag=(bool,)))
    note = "If is not counted (1 nodes, the first is '/y') and holds 1 MatMul"
    assert survey.spec.notes == (note,)
    report = cost_of_survey(survey, CostConfig())
    assert note in report.notes
    assert report.total.macs == 0


def test_packed_weights_of_four_bits_are_counted_as_other_work(tmp_path):
    nodes = [node("MatMulNBits", "x b s", "y", MICROSOFT, K=32, N=5, bits=4, block_size=16)]
    tensors = {"b": np.zeros((5, 2, 8), np.uint8), "s": random(10)}
    survey = survey_onnx(saved(tmp_path / "p.onnx", nodes, tensors, x=("N", 7, 32)))
    assert [work.macs for work in survey.spec.other_work] == [7 * 32 * 5]


def external(path: Path, *, elements: int) -> Path:
    """A linear layer whose weight lies outside, in a file with holes."""
    net = model([node("MatMul", "x w", "y")], {}, x=("N", 4))
    tensor = net.graph.initializer.add(
        name="w", data_type=TensorProto.FLOAT, dims=(4, elements // 4), data_location=TensorProto.EXTERNAL
    )
    for key, value in (("location", "w.bin"), ("length", str(4 * elements))):
        tensor.external_data.add(key=key, value=value)
    onnx.save(net, path)
    with (path.parent / "w.bin").open("wb") as file:
        file.truncate(4 * elements)
    return path


def test_weights_outside_of_a_file_too_large_for_one(tmp_path):
    elements = (1 << 29) + 4  # 2 GiB and 16 bytes
    survey = survey_onnx(external(tmp_path / "e.onnx", elements=elements))
    assert survey.spec.layers[0].shape == (elements // 4, 4)
    assert survey.spec.layers[0].macs == elements


def test_weights_outside_are_read_when_they_are_needed(tmp_path):
    path = external(tmp_path / "e.onnx", elements=8)
    weight = random(4, 2)
    (tmp_path / "w.bin").write_bytes(weight.tobytes())
    survey = survey_onnx(path)
    assert torch.equal(survey.weight(survey.spec.layers[0]), torch.from_numpy(weight.T))
    (tmp_path / "w.bin").write_bytes(weight.tobytes()[:-4])
    with pytest.raises(InputError, match=r"tensor 'w' must lie within 'w.bin', which has 28 bytes, got 32 bytes at 0"):
        survey_onnx(path)
    (tmp_path / "w.bin").unlink()
    with pytest.raises(InputError, match=r"must lie beside it, got no file 'w.bin' for 'w'"):
        survey_onnx(path)


BATCHES = {
    # nodes, weights, inputs, options, MACs of one image
    "images": ([node("Conv", "x w", "y")], W, {"x": (4, 3, 5, 5)}, {}, 150),
    "open": ([node("Conv", "x w", "y")], W, {"x": ("N", 3, 5, 5)}, {}, 150),
    "tokens": ([node("MatMul", "x w", "y")], {"w": random(8, 4)}, {"x": (3, 5, 8)}, {}, 160),
    "anchors first": ([node("MatMul", "a v", "e"), node("Conv", "x w", "c"), node("GlobalAveragePool", "c", "p"),
                       node("Flatten", "p", "f"), node("MatMul", "e f2", "q"), node("Identity", "f", "y")],
                      W | {"v": random(4, 2), "f2": random(2, 2)}, {"a": (9, 4), "x": (2, 3, 5, 5)}, {}, 150 + 72 + 36),
    "a weight among the inputs": ([node("Conv", "x w", "a"), node("Conv", "a k", "y")], W,
                                  {"k": (8, 2, 1, 1), "x": (4, 3, 5, 5)}, {}, 150),
    "said": ([node("MatMul", "x w", "y")], {"w": random(8, 4)}, {"x": (3, 5, 8)}, {"batch": 15}, 32),
}  # fmt: skip


@pytest.mark.parametrize(("nodes", "tensors", "inputs", "options", "macs"), BATCHES.values(), ids=BATCHES)
def test_the_batch_is_what_the_graph_makes_of_it(tmp_path, nodes, tensors, inputs, options, macs):
    survey = survey_onnx(saved(tmp_path / "b.onnx", nodes, tensors, **inputs), **options)
    assert sum(layer.macs for layer in survey.spec.layers) == macs
    assert not survey.spec.notes


def test_a_fixed_batch_is_read_from_the_outputs_and_said(tmp_path):
    nodes = [node("Conv", "x w", "c"), node("Reshape", "c shape", "r"), node("MatMul", "r v", "y")]
    path = saved(tmp_path / "f.onnx", nodes, W | {"shape": np.array([4, 50]), "v": random(50, 2)}, x=(4, 3, 5, 5))
    survey = survey_onnx(path)
    assert [layer.macs for layer in survey.spec.layers] == [150, 100]
    assert survey.spec.notes[0].startswith("The first dimension of input 'x', 4, is counted as the batch")


def test_an_unknown_batch_is_said_and_can_be_given(tmp_path):
    nodes = [node("Reshape", "x shape", "r"), node("MatMul", "r w", "y")]
    path = saved(tmp_path / "u.onnx", nodes, {"shape": np.array([2, 3, 5]), "w": random(5, 3)}, x=(6, 5))
    survey = survey_onnx(path)
    assert survey.spec.layers[0].macs == 6 * 15
    assert survey.spec.notes[0].startswith("No dimension of the inputs ('x' 6x5) was found to be the batch")
    given = survey_onnx(path, batch=6)
    assert (given.spec.layers[0].macs, given.spec.notes) == (15, ())
    with pytest.raises(InputError, match=r"batch must divide the 90 MACs of '/y', got 4"):
        survey_onnx(path, batch=4)
    with pytest.raises(InputError, match=r"batch must be a positive whole number, got 0"):
        survey_onnx(path, batch=0)


@pytest.mark.parametrize("layout", [0, 1])
def test_steps_of_a_recurrent_layer_are_no_batch(tmp_path, layout):
    """9 steps of 2 sequences, each of 4 gates of 5 that read 4 inputs and 5 states."""
    tensors = {"w": random(1, 20, 4), "r": random(1, 20, 5)}
    nodes = [node("LSTM", "x w r", "y", hidden_size=5, layout=layout)]
    path = saved(tmp_path / "l.onnx", nodes, tensors, x=(9, 2, 4) if layout == 0 else (2, 9, 4))
    one, whole = survey_onnx(path, batch=2).spec, survey_onnx(path).spec
    assert [work.macs for work in one.other_work] == [9 * 20 * (4 + 5)]
    known = layout == 1  # twice as many sequences are twice the work: that is the batch
    assert [work.macs for work in whole.other_work] == [(1 if known else 2) * 9 * 20 * (4 + 5)]
    assert any("was found to be the batch" in note for note in whole.notes) != known


def test_an_open_length_is_no_batch(tmp_path):
    nodes = [node("MatMul", "x w", "y")]
    survey = survey_onnx(saved(tmp_path / "l.onnx", nodes, {"w": random(8, 4)}, x=("sequence_length", 8)))
    assert survey.spec.notes == ("Dimension 'sequence_length' of input 'x' is open and counted as 1.",)


def test_every_shape_of_a_random_network_against_the_runtime(tmp_path):
    """Strides, groups, dilation, transposed convolution and products, counted from shapes that the runtime computes."""
    nodes = [
        node("Conv", "x a", "c1", strides=[2, 1], pads=[1, 2, 1, 2], dilations=[1, 2]),
        node("Conv", "c1 b", "c2", group=4, auto_pad="SAME_UPPER", strides=[2, 2]),
        node("ConvTranspose", "c2 t", "c3", group=2, strides=[2, 3], output_padding=[1, 0]),
        node("ReduceMean", "c3 axes", "p", keepdims=0),
        node("MatMul", "p m", "y"),
    ]
    tensors = {"a": random(8, 3, 3, 3), "b": random(8, 2, 3, 3), "t": random(8, 3, 2, 2), "m": random(20, 5)}
    image = np.zeros((1, 3, 11, 14), F)
    path = saved(tmp_path / "r.onnx", nodes, tensors | {"axes": np.array([2])}, x=image.shape)
    expected = runtime_macs(path, x=image)
    assert layer_macs(path) == expected
    # 6 x 14 outputs of 8 x 27 weights, 3 x 7 of 8 x 18, 3 x 7 inputs of 8 x 12, 6 rows of 20 x 5
    assert expected == 84 * 216 + 21 * 144 + 21 * 96 + 600
