"""Proof that a file computes what was promised: runtime against integer reference, bit for bit, on real images."""

import hashlib
import platform
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper
from torch import nn

from slimbit.exchange.reference import Reference
from slimbit.exchange.reference_values import stored_array
from slimbit.numerics.batches import inputs_of
from slimbit.records.errors import InputError, MissingExtraError
from slimbit.records.verification import Fusion, NodeExecution, SaturationCheck, Verification
from slimbit.survey.files import reading

Array = NDArray[Any]
CHUNK = 50
"""Images at a time: the reference keeps all codes of a pass in int64."""
EMULATED_IMAGES = 40
INT16 = 1 << 15
PRECISION = "session.x64quantprecision"

_ARITHMETIC = frozenset(
    {"Conv", "Gemm", "ConvInteger", "ConvTranspose", "Add", "Mul", "GlobalAveragePool", "AveragePool", "MaxPool",
     "Sigmoid", "HardSigmoid", "Tanh", "LeakyRelu", "Elu", "Selu", "Softplus", "Softsign", "Exp", "Erf", "Abs",
     "Concat"}
)  # fmt: skip
_INTEGER = ("QLinear", "QGemm", "ConvInteger", "MatMulInteger", "QAttention")


def verify_onnx(
    file: str | Path,
    images: Iterable[Any],
    *,
    labels: Sequence[int] | NDArray[np.int64] | None = None,
    network: nn.Module | None = None,
    precise: bool = False,
    threads: int = 1,
    in_runtime: bool = True,
) -> Verification:
    """Run a file of quantized operations in ONNX Runtime and in the integer reference, and compare.

    Args:
        file: Written by `slimbit.exchange.onnx_qdq.qdq_model` or of the same form.
        images: Batches as the network takes them; the first input of each is used.
        labels: Class of each image, for accuracies.
        network: The artifact's network, compared with the reference as well.
        precise: Whether the session gets ``session.x64quantprecision``, which files whose sums saturate need on
            processors without VNNI.
        threads: Of the runtime.
        in_runtime: Whether it runs in ONNX Runtime; else reference and network are compared alone.

    Returns:
        What was found; `Verification.is_exact` is the verdict.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        InputError: No images, a file that the runtime cannot load, or operators that the reference does not know.
    """
    if in_runtime and find_spec("onnxruntime") is None:
        raise MissingExtraError("onnxruntime", "onnx", "verifying an ONNX file")
    path = Path(file)
    model = load_model(path)
    with reading(path, "quantized ONNX"):
        _check_quantized(model, path)
        session, watching, version = _open(model, precise=precise, threads=threads) if in_runtime else (None, None, "")
        reference = Reference(model)
        inputs = [value.name for value in model.graph.input]
        watched = [node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"]
        saturation = tuple(saturation_checks(model))
    tally = _Tally(labels)
    for batch in _chunks(images):
        given = dict(zip(inputs, batch, strict=False))
        _check_shapes(model, given)
        with reading(path, "quantized ONNX"):  # whatever a graph can be, both execute
            outputs, codes = reference.run(given, keep=True)
            tally.add(outputs, outputs if session is None else session.run(None, given))
        if watching is not None:
            tally.compare(codes, dict(zip(watched, watching.run(watched, given), strict=True)))
        if network is not None:
            tally.compare_network(outputs, _flat(network, batch))
        if tally.emulated < EMULATED_IMAGES and not all(check.is_safe for check in saturation):
            few = {name: values[: EMULATED_IMAGES - tally.emulated] for name, values in given.items()}
            tally.emulate(outputs, Reference(model, saturating=True).run(few)[0])
    if not tally.images:
        raise InputError("images must hold at least one, got none")
    return Verification(
        file=path.name,
        digest=hashlib.sha256(path.read_bytes()).hexdigest(),
        runtime=version,
        processor=_processor(),
        images=tally.images,
        equal_to_reference=tally.equal if in_runtime else None,
        equal_to_network=tally.network_equal if network is not None else None,
        largest_output_difference=tally.largest,
        layer_differences={name.removesuffix("/codes"): value for name, value in tally.differences.items()},
        near_ties=reference.near_ties,
        accuracy=tally.percent(tally.right) if in_runtime else None,
        reference_accuracy=tally.percent(tally.reference_right),
        answers_that_differ=tally.differing,
        nodes=executed_nodes(model) if in_runtime else (),
        saturation=saturation,
        answers_that_saturate=tally.saturated if tally.emulated else None,
        saturating_images=tally.emulated,
    )


def load_model(path: Path) -> ModelProto:
    """An ONNX file, read.

    Raises:
        InputError: There is none, or it is damaged.
    """
    if not path.is_file():
        raise InputError(f"ONNX file must exist, got none at {path}")
    try:
        model = onnx.load(str(path))
    except Exception as error:
        raise InputError(f"{path} must be an ONNX file, got {' '.join(str(error).split())[:120]}") from error
    if not model.graph.node:
        raise InputError(f"{path} must be an ONNX model, got a file without a graph")
    return model


def _check_quantized(model: ModelProto, path: Path) -> None:
    kinds = {node.op_type for node in model.graph.node}
    if "QuantizeLinear" not in kinds:
        got = "a QONNX file" if "Quant" in kinds else "one of floats"
        raise InputError(f"{path} must be a quantized ONNX file of slimbit export to be verified, got {got}")


def _check_shapes(model: ModelProto, given: Mapping[str, Array]) -> None:
    """Raise `InputError` for images of another shape than the file takes."""
    for value in model.graph.input:
        expected = [dim.dim_value for dim in value.type.tensor_type.shape.dim][1:]
        if value.name not in given:
            raise InputError(f"images must hold every input of the network, got none for {value.name!r}")
        got = given[value.name].shape[1:]
        if len(got) != len(expected) or any(want not in (0, have) for want, have in zip(expected, got, strict=True)):
            sides = "x".join(str(want) if want else "any" for want in expected)
            raise InputError(
                f"images must be {sides}, as the network takes them, got {'x'.join(map(str, got)) or 'plain numbers'}"
            )


def saturation_checks(model: ModelProto) -> Iterator[SaturationCheck]:
    """For every layer: whether two neighbouring products of a byte and a weight can leave 16 bits.

    ``largest pair = largest byte * (sum of the two largest weights of one sign)`` over all filters: no order of the
    inputs gives more, so what passes is safe on every processor.
    """
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if node.op_type not in ("Conv", "Gemm", "ConvInteger"):
            continue
        codes, weight = _codes_behind(node.input[0], makers), _codes_behind(node.input[1], makers)
        source = makers.get(weight)
        kept = stored.get(source.input[0] if source is not None and source.op_type == "Cast" else weight)
        if kept is None or kept.data_type == TensorProto.FLOAT:
            continue
        integers = stored_array(kept).astype(np.int64)
        rows = integers.reshape(len(integers), -1)
        depthwise = node.op_type != "Gemm" and integers.shape[1] == 1 and _attribute(node, "group", 1) > 1
        top = _largest_byte(codes, makers, stored)
        pair = 0 if depthwise else top * _largest_two(rows)
        yield SaturationCheck(
            layer=kept.name.removesuffix("/int4").removesuffix(".weight"),
            largest_weight=int(np.abs(rows).max(initial=0)),
            largest_pair=pair,
            is_safe=pair < INT16,
        )


def _largest_two(rows: Array) -> int:
    """Largest sum of two weights of one sign in a filter, as a magnitude."""
    padded = np.pad(rows, ((0, 0), (0, 2)))
    sums = [np.sort(np.maximum(sign * padded, 0), axis=1)[:, -2:].sum(axis=1).max(initial=0) for sign in (1, -1)]
    return int(max(sums))


def _codes_behind(name: str, makers: dict[str, NodeProto]) -> str:
    """What a DequantizeLinear reads, through reshaping."""
    while (node := makers.get(name)) is not None and node.op_type in ("DequantizeLinear", "Reshape"):
        name = node.input[0]
    return name


def _largest_byte(name: str, makers: dict[str, NodeProto], stored: dict[str, TensorProto]) -> int:
    """Largest code that a value can have, by the clips before it; 255 where there is none."""
    moves = ("Slice", "Pad", "Transpose", "Reshape", "MaxPool", "DepthToSpace", "Resize", "Identity")
    while (node := makers.get(name)) is not None:
        if node.op_type == "QuantizeLinear" and stored[node.input[2]].data_type == TensorProto.INT8:
            return 128
        if node.op_type == "Clip":
            return int(stored_array(stored[node.input[2]]))
        if node.op_type == "Concat":
            return max(_largest_byte(source, makers, stored) for source in node.input)
        if node.op_type not in moves:
            break
        name = node.input[0]
    return 255


def _attribute(node: NodeProto, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(entry) for entry in node.attribute if entry.name == name), default)


def _open(model: ModelProto, *, precise: bool, threads: int) -> tuple[Any, Any, str]:
    """A session of the file as it is, and one that also returns every code."""
    import onnxruntime

    watched = ModelProto()
    watched.CopyFrom(model)
    for node in watched.graph.node:
        if node.op_type == "QuantizeLinear":
            watched.graph.output.append(helper.make_tensor_value_info(node.output[0], _code_type(node, watched), None))
    try:
        sessions = [
            onnxruntime.InferenceSession(
                graph.SerializeToString(),
                session_options(threads=threads, precise=precise),
                providers=["CPUExecutionProvider"],
            )
            for graph in (model, watched)
        ]
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"the file must be one that ONNX Runtime can load, got {reason}") from error
    return sessions[0], sessions[1], f"onnxruntime {onnxruntime.__version__}"


def session_options(*, threads: int = 1, precise: bool = False) -> Any:
    """Options of an ONNX Runtime session on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if precise:
        options.add_session_config_entry(PRECISION, "1")
    return options


def _code_type(node: NodeProto, model: ModelProto) -> int:
    return next((t.data_type for t in model.graph.initializer if t.name == node.input[2]), TensorProto.UINT8)


def executed_nodes(model: ModelProto) -> tuple[NodeExecution, ...]:
    """How ONNX Runtime executes the arithmetic of a file: it is asked for the graph that it made of it."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = session_options()
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        optimized = onnx.load(options.optimized_model_filepath)
    known = {node.name.split("_token")[0]: node.op_type for node in optimized.graph.node}
    kinds = {name: t.data_type for t in model.graph.initializer for name in (t.name,)}
    found = []
    for node in model.graph.node:
        if node.op_type not in _ARITHMETIC or all(name in kinds for name in node.input):
            continue
        executed = known.get(node.name, "")
        works_on_codes = node.op_type in ("MaxPool", "Concat") and "/codes" in node.output[0]
        integer = executed.startswith(_INTEGER) or works_on_codes
        fusion: Fusion = "integer" if integer else "float" if executed else "gone"
        found.append(NodeExecution(name=node.name, operator=node.op_type, executed=executed, fusion=fusion))
    return tuple(found)


def _chunks(images: Iterable[Any]) -> Iterator[list[Array]]:
    for batch in images:
        inputs = inputs_of(batch)
        parts = list(inputs.values()) if isinstance(inputs, dict) else [inputs]
        arrays = [x.numpy() if isinstance(x, torch.Tensor) else np.asarray(x) for x in parts]
        for start in range(0, len(arrays[0]), CHUNK):
            yield [np.ascontiguousarray(x[start : start + CHUNK], dtype=np.float32) for x in arrays]


def _flat(network: nn.Module, batch: list[Array]) -> list[Array]:
    with torch.inference_mode():
        outputs = network(*(torch.from_numpy(x) for x in batch))
    parts = (
        outputs.values() if isinstance(outputs, dict) else outputs if isinstance(outputs, tuple | list) else [outputs]
    )
    return [x.numpy() for x in parts]


class _Tally:
    """Counts over the chunks."""

    def __init__(self, labels: Sequence[int] | NDArray[np.int64] | None) -> None:
        self.labels = None if labels is None else np.asarray(labels)
        self.images = self.equal = self.network_equal = self.differing = self.right = self.reference_right = 0
        self.emulated = self.saturated = 0
        self.largest = 0.0
        self.differences: dict[str, int] = {}

    def add(self, outputs: list[Array], found: list[Array]) -> None:
        same = np.logical_and.reduce([_equal_rows(a, b) for a, b in zip(outputs, found, strict=True)])
        self.equal += int(same.sum())
        self.largest = max(
            self.largest, *(float(np.abs(a - b).max(initial=0)) for a, b in zip(outputs, found, strict=True))
        )
        if outputs[0].ndim == 2:
            answers, reference = found[0].argmax(1), outputs[0].argmax(1)
            self.differing += int((answers != reference).sum())
            if self.labels is not None:
                labels = self.labels[self.images : self.images + len(answers)]
                self.right += int((answers == labels).sum())
                self.reference_right += int((reference == labels).sum())
        self.images += len(same)

    def compare(self, codes: dict[str, Array], found: dict[str, Array]) -> None:
        for name, wanted in codes.items():
            difference = int(np.abs(wanted.astype(np.int64) - found[name].astype(np.int64)).max(initial=0))
            self.differences[name] = max(self.differences.get(name, 0), difference)

    def compare_network(self, outputs: list[Array], found: list[Array]) -> None:
        same = np.logical_and.reduce([_equal_rows(a, b) for a, b in zip(outputs, found, strict=True)])
        self.network_equal += int(same.sum())

    def emulate(self, outputs: list[Array], saturated: list[Array]) -> None:
        count = len(saturated[0])
        self.emulated += count
        if outputs[0].ndim == 2:
            self.saturated += int((saturated[0].argmax(1) != outputs[0][:count].argmax(1)).sum())
        else:
            self.saturated += int((~_equal_rows(saturated[0], outputs[0][:count])).sum())

    def percent(self, count: int) -> float | None:
        return 100.0 * count / self.images if self.labels is not None and self.images else None


def _equal_rows(left: Array, right: Array) -> Array:
    """Which images are bit equal."""
    same: Array = (left == right).reshape(len(left), -1).all(axis=1)
    return same


def _processor() -> str:
    """Whether the processor has VNNI, as far as the system tells."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return f"{platform.machine()}, unknown"
    return f"{platform.machine()}, {'VNNI' if 'vnni' in flags else 'no VNNI'}"
