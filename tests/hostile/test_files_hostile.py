"""Whatever a file holds, a survey ends in a result or in one sentence."""

import io
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save
from torch import nn

from slimbit.records.errors import InputError
from slimbit.survey.exported import survey_exported
from slimbit.survey.onnx_file import survey_onnx
from slimbit.survey.result import Survey
from slimbit.survey.safetensors_file import survey_safetensors

READERS: dict[str, Callable[[Path], Survey]] = {
    "onnx": survey_onnx,
    "safetensors": survey_safetensors,
    "pt2": partial(survey_exported, allow_code=True),
}


def onnx_bytes() -> bytes:
    tensors = {"w": np.ones((4, 3, 3, 3), np.int8), "s": np.full(4, 0.5, np.float32), "fc": np.ones((4, 2), np.float32)}
    tensors |= {"one": np.float32(1), "zero": np.float32(0), "four": np.float32(4)}
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["wd"], axis=0),
        helper.make_node("Conv", ["x", "wd"], ["c"], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Quant", ["fc", "one", "zero", "four"], ["q"], domain="qonnx.custom_op.general", signed=1),
        helper.make_node("MatMul", ["f", "q"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("N", 3, 8, 8))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("N", 2))],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()],
    )
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("qonnx.custom_op.general", 1)]
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=10).SerializeToString()


def pt2_bytes() -> bytes:
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(nn.Conv2d(2, 3, 3), (torch.zeros(1, 2, 4, 4),)), buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def intact() -> dict[str, bytes]:
    tensors = {"conv.weight": torch.ones(4, 3, 3, 3), "conv.bias": torch.ones(4)}
    return {"onnx": onnx_bytes(), "safetensors": save(tensors), "pt2": pt2_bytes()}


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("hostile") / "net.pt2"


def survive(kind: str, path: Path) -> Survey | InputError:
    """Reads everything there is; a traceback other than `InputError` fails the test."""
    refusal = None
    try:
        survey = READERS[kind](path)
        for layer in survey.spec.layers:
            survey.weight(layer)
    except InputError as error:
        refusal = error
    if refusal is None:
        return survey
    assert "\n" not in str(refusal)
    assert len(str(refusal)) < 600
    return refusal


def fuzz(examples: int) -> settings:
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=examples, deadline=None, suppress_health_check=checks, derandomize=True)


@pytest.mark.parametrize("kind", READERS)
def test_the_intact_file_is_read(kind, intact, file):
    file.write_bytes(intact[kind])
    assert isinstance(survive(kind, file), Survey)


@pytest.mark.parametrize("kind", READERS)
@fuzz(60)
@given(data=st.data())
def test_truncated(kind, intact, file, data):
    whole = intact[kind]
    length = data.draw(st.integers(0, len(whole) - 1))
    file.write_bytes(whole[:length])
    result = survive(kind, file)
    # a protobuf cut between two fields may still be a model; the other formats know their length
    assert kind == "onnx" or isinstance(result, InputError)


@pytest.mark.parametrize(("kind", "flips"), [("onnx", 400), ("safetensors", 150), ("pt2", 40)])
def test_flipped_bits(kind, flips, intact, file):
    generator = random.Random(0)
    refused = 0
    for _ in range(flips):
        content = bytearray(intact[kind])
        for _ in range(generator.randint(1, 4)):
            content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        file.write_bytes(content)
        refused += isinstance(survive(kind, file), InputError)
    assert refused > flips // 10  # flips in weights cannot be seen, flips in structure can


@pytest.mark.parametrize("kind", READERS)
@fuzz(60)
@given(content=st.binary(min_size=1, max_size=200))
def test_random_bytes(kind, file, content):
    file.write_bytes(content)
    assert isinstance(survive(kind, file), InputError)


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("other", READERS)
def test_another_format(kind, other, intact, file):
    if kind == other:
        pytest.skip("its own format")
    file.write_bytes(intact[other])
    assert isinstance(survive(kind, file), InputError)


@pytest.mark.parametrize("kind", READERS)
def test_nothing_to_read(kind, tmp_path):
    (tmp_path / "empty").touch()
    for name, sentence in (("missing", "must exist, got"), ("empty", "must not be empty"), (".", "which is a folder")):
        with pytest.raises(InputError, match=sentence) as error:
            READERS[kind](tmp_path / name)
        assert str(tmp_path) in str(error.value)
    for name in ("null\0byte", "long" * 500):
        with pytest.raises(InputError):
            READERS[kind](tmp_path / name)
