"""The same integers four times: torch's module, the reference, ONNX Runtime, and the float network's own operations."""

import numpy as np
import pytest
import torch
from tests.exchange_case import NETWORKS, built, compressed, inputs
from torch import Tensor

from slimbit.apply.dataflow import run_dataflow
from slimbit.exchange.float_onnx import float_model
from slimbit.exchange.onnx_qdq import qdq_model
from slimbit.exchange.reference import Reference
from slimbit.survey.dataflow import read_dataflow


def flat(outputs: object) -> list[Tensor]:
    if isinstance(outputs, dict):
        return list(outputs.values())
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)  # type: ignore[call-overload]


@pytest.mark.parametrize("name", NETWORKS)
def test_dataflow_computes_what_the_network_computes(name: str) -> None:
    network, images = built(name), inputs(name, 5)
    flow = read_dataflow(network, tuple(x[:1] for x in images))
    with torch.no_grad():
        wanted = flat(network(*images))
        found = flat(run_dataflow(network, flow, dict(zip(flow.inputs, images, strict=True)), lambda _, value: value))
    for left, right in zip(wanted, found, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    ("bits", "activation_bits", "grid"), [(6, 8, "midrise"), (4, 4, "midtread"), (2, 3, "midrise_zero")]
)
def test_torch_reference_and_runtime_agree_on_every_bit(name: str, bits: int, activation_bits: int, grid: str) -> None:
    import onnxruntime

    result, flow, images = compressed(name, bits=bits, activation_bits=activation_bits, grid=grid)
    assert result.program is not None
    model = qdq_model(result.program, int4=bits == 4)
    given = {key: x.numpy() for key, x in zip(flow.inputs, images, strict=True)}
    reference = Reference(model)
    wanted, _ = reference.run(given)
    assert reference.near_ties == 0
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        own = flat(result.model(*images))
    tail = name == "tokens"
    for place, (a, b, c) in enumerate(zip(wanted, session.run(None, given), own, strict=True)):
        if tail and place == 1:  # behind a softmax, whose last bit is each runtime's own
            np.testing.assert_allclose(a, b, rtol=1e-6)
            np.testing.assert_allclose(a, c.numpy(), rtol=1e-6)
        else:
            assert np.array_equal(a, b), f"runtime: {np.abs(a - b).max()}"
            assert np.array_equal(a, c.numpy()), f"torch: {np.abs(a - c.numpy()).max()}"


@pytest.mark.parametrize("name", NETWORKS)
def test_float_file_computes_what_the_network_computes(name: str) -> None:
    import onnxruntime

    network, images = built(name), inputs(name, 5)
    flow = read_dataflow(network, tuple(x[:1] for x in images))
    session = onnxruntime.InferenceSession(
        float_model(network, flow).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    found = session.run(None, {key: x.numpy() for key, x in zip(flow.inputs, images, strict=True)})
    with torch.no_grad():
        wanted = flat(network(*images))
    for left, right in zip(wanted, found, strict=True):
        np.testing.assert_allclose(left.numpy(), right, rtol=1e-4, atol=1e-5)
