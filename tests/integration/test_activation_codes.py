"""Signed and affine codes of activations, and files for TensorRT, on networks of every form."""

from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from tests.exchange_case import NETWORKS, compressed

from slimbit.exchange.onnx_qdq import qdq_model
from slimbit.exchange.qonnx_file import qonnx_model
from slimbit.exchange.reference import Reference
from slimbit.exchange.verify import saturation_checks, verify_onnx
from slimbit.numerics.activation_range import activation_step, affine_step, rounded
from slimbit.records.errors import InputError


@pytest.mark.parametrize("codes", ["signed", "affine"])
@pytest.mark.parametrize("name", NETWORKS)
def test_runtime_reference_and_network_agree(name: str, codes: str, tmp_path: Path) -> None:
    result, flow, images = compressed(name, codes=codes)  # type: ignore[arg-type]
    program = result.program
    assert program is not None
    if codes == "signed":
        assert {quantizer.signed for quantizer in program.quantizers.values()} == {True}
    else:
        assert {quantizer.signed for quantizer in program.quantizers.values()} == {False}
        assert any(quantizer.zero_point for quantizer in program.quantizers.values())
    file = tmp_path / "net.onnx"
    onnx.save(qdq_model(program), str(file))
    batch = dict(zip(flow.inputs, images, strict=True)) if len(images) > 1 else images[0]
    found = verify_onnx(file, [batch], network=result.model)
    assert set(found.layer_differences.values()) == {0}
    # behind a softmax there are floats, which each computes in its own way
    assert found.largest_output_difference < 1e-6 if name == "tokens" else found.is_exact


@pytest.mark.parametrize("name", NETWORKS)
def test_files_for_tensorrt_keep_to_its_rules_and_give_the_network(name: str, tmp_path: Path) -> None:
    result, flow, images = compressed(name, codes="signed")
    assert result.program is not None
    model = qdq_model(result.program, symmetric=True)
    onnx.checker.check_model(model, full_check=True)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = stored[node.input[2]]
            assert zero.data_type == TensorProto.INT8  # no unsigned codes, no biases of 32 bits
            assert not numpy_helper.to_array(zero).any()
        else:
            read = [makers[name].op_type for name in node.input if name in makers]
            assert "QuantizeLinear" not in read, node.name  # codes are read by nothing else
    file = tmp_path / "net.onnx"
    onnx.save(model, str(file))
    batch = dict(zip(flow.inputs, images, strict=True)) if len(images) > 1 else images[0]
    found = verify_onnx(file, [batch], network=result.model, in_runtime=False)
    assert found.is_exact or name == "tokens"
    assert (found.runtime, found.equal_to_reference, found.accuracy, found.nodes) == ("", None, None, ())
    assert found.verdict.endswith("in the integer reference and the network; no runtime ran it")
    assert all(check.is_safe for check in saturation_checks(model))  # signed bytes: 128 * (63 + 63) fits 16 bits


def test_a_changed_weight_of_a_tensorrt_file_is_caught(tmp_path: Path) -> None:
    result, _, (images,) = compressed("residual", codes="signed")
    assert result.program is not None
    model = qdq_model(result.program, symmetric=True)
    tensor = next(t for t in model.graph.initializer if t.name == "stem.weight")
    changed = numpy_helper.to_array(tensor).copy()
    changed[-1] += 4
    tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
    outputs, _ = Reference(model).run({"x": images.numpy()})
    assert (outputs[0] != result.model(images).numpy()).any()


def test_what_tensorrt_and_qonnx_refuse() -> None:
    for codes, bits, said in (("unsigned", 8, "unsigned ones of 8 bits"), ("signed", 4, "signed ones of 4 bits")):
        result, _, _ = compressed("residual", codes=codes, activation_bits=bits)  # type: ignore[arg-type]
        assert result.program is not None
        with pytest.raises(InputError, match=f"signed codes of 8 bits around zero for tensorrt, got {said}"):
            qdq_model(result.program, symmetric=True)
    affine, _, _ = compressed("residual", codes="affine")
    assert affine.program is not None
    with pytest.raises(InputError, match=r"zero point of .* must be 0 in a QONNX file"):
        qonnx_model(affine.program)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("method", ["mse", "max", "percentile", "aciq_laplace", "aciq_gauss"])
def test_affine_codes_hold_zero_and_serve_lopsided_values_better(bits: int, method: str) -> None:
    sample = torch.nn.functional.silu(4 * torch.randn(4096, generator=torch.Generator().manual_seed(bits)))
    step, zero = affine_step(sample, bits=bits, method=method)  # type: ignore[arg-type]
    assert 0 <= zero < 2**bits
    assert step > 0
    if method == "max":
        span = float(sample.max() - sample.min())
        assert step == pytest.approx(span / (2**bits - 1))

    def error(step: float, low: int, high: int) -> float:
        return float((sample - rounded(sample, step, low=low, high=high)).square().sum())

    if method == "mse":
        ours = error(step, -zero, 2**bits - 1 - zero)
        signed = activation_step(sample, bits=bits, signed=True, method="mse")
        assert ours < error(signed, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        steps = [step * factor for factor in (0.8, 0.9, 1.1, 1.25)]
        assert all(ours <= error(s, -zero, 2**bits - 1 - zero) * 1.05 for s in steps)


def test_affine_codes_of_zeros_and_of_one_sign() -> None:
    assert affine_step(torch.zeros(4), bits=8, method="mse")[1] == 0
    step, zero = affine_step(torch.tensor([-3.0, -1.0]), bits=2, method="max")
    assert (step, zero) == (1.0, 3)  # codes 0 .. 3 stand for -3 .. 0
