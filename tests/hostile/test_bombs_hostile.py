"""Small files that would fill the memory, never end or never answer: refused in one sentence before they can."""

import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image, PngImagePlugin
from safetensors.torch import save_file

import slimbit
from slimbit.artifacts.packed import read_state
from slimbit.exchange.latency import measure_latency
from slimbit.frontier.objects import object_path, read_object
from slimbit.records.errors import InputError
from slimbit.records.signal_file import read_signal
from slimbit.survey.exported import survey_exported
from slimbit.survey.onnx_file import survey_onnx
from slimbit.survey.safetensors_file import survey_safetensors
from slimbit.training.checkpoint import METADATA_KEY, read_checkpoint
from slimbit.zoo import open_data, read_card
from slimbit.zoo.files import read_weights


def refused(call: Callable[[], object], match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def zeros(archive: zipfile.ZipFile, name: str, begin: bytes, size: int) -> None:
    """An entry of zeros, compressed a thousand times."""
    with archive.open(name, "w", force_zip64=True) as stream:
        stream.write(begin)
        for _ in range(size >> 20):
            stream.write(bytes(1 << 20))


def header(shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return stream.getvalue()


def test_an_npz_that_inflates_a_thousand_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slimbit.zoo.data.npz.ALWAYS_FINE", 1 << 22)
    file, size = tmp_path / "d.npz", 1 << 24
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        zeros(archive, "images.npy", header((size >> 10, 1, 32, 32)), size)
        zeros(archive, "labels.npy", header((size >> 10,)), 1 << 20)
    refused(
        lambda: open_data(f"npz:{file}"), r"npz:FILE '.*d\.npz' must inflate to at most 100 times its \S+ bytes, got"
    )


def test_an_npz_whose_header_claims_more_than_there_is(tmp_path: Path) -> None:
    file = tmp_path / "d.npz"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("images.npy", header((1 << 30, 1, 8, 8)) + bytes(64))
        archive.writestr("labels.npy", header((4,)) + bytes(4))
    refused(
        lambda: open_data(f"npz:{file}"), r"array images\.npy of .* must hold the 68,719,476,736 bytes of its shape"
    )


HEADERS = ("{'descr': ('|u1'", "{'descr': '|u1', 'shape': (1,", "'" * 3, "{'shape': 1L", "(" * 50)


@pytest.mark.parametrize("text", HEADERS)
def test_an_npz_with_a_broken_header(tmp_path: Path, text: str) -> None:
    file, broken = tmp_path / "d.npz", text.ljust(117).encode() + b"\n"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("images.npy", b"\x93NUMPY\x01\x00" + len(broken).to_bytes(2, "little") + broken)
        archive.writestr("labels.npy", header((4,)) + bytes(4))
    refused(lambda: open_data(f"npz:{file}"), r"npz:FILE must be a complete \.npz file of arrays, got '.*d\.npz'")


def test_weights_that_inflate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slimbit.zoo.files.ALWAYS_FINE", 1 << 20)
    file, packed = tmp_path / "net.pth", tmp_path / "packed.pth"
    torch.save({"a": torch.zeros(1 << 20)}, file)
    assert read_weights(file)["a"].shape == (1 << 20,)
    with zipfile.ZipFile(file) as stored, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for member in stored.infolist():
            archive.writestr(member.filename, stored.read(member))
    refused(
        lambda: read_weights(packed), r"weights file '.*packed\.pth' must inflate to at most 4 times its \S+ bytes, got"
    )


def test_a_program_that_inflates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slimbit.survey.exported.ALWAYS_FINE", 1 << 20)
    file = tmp_path / "net.pt2"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        zeros(archive, "net/models/model.json", b"", 1 << 22)
    refused(
        lambda: survey_exported(file, allow_code=True), r"file .*net\.pt2 must inflate to at most 4 times its .*, got"
    )


def test_a_program_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slimbit.survey.exported.LARGEST_PROGRAM", 1 << 16)
    (tmp_path / "net.pt2").write_bytes(bytes((1 << 16) + 1))
    refused(lambda: survey_exported(tmp_path / "net.pt2", allow_code=True), "must have at most 65,536 bytes, got")


@pytest.mark.parametrize("name", ["w.safetensors", "checkpoint.safetensors"])
def test_metadata_of_safetensors_that_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("slimbit.records.containers.LARGEST_HEADER", 1 << 16)
    file, text = tmp_path / name, "x" * (1 << 17)
    save_file({"model/a": torch.zeros(2, 2)}, file, metadata={"slimbit": text, METADATA_KEY: text})
    for read in (read_weights, read_card, survey_safetensors, read_checkpoint):
        refused(lambda read=read: read(file), "must have a header of at most 65,536 bytes, got 262,")
    with pytest.raises(InputError, match="state of net must have a header of at most 65,536 bytes"):
        read_state(file.read_bytes(), "net")


NESTED = "must hold tuples nested at most 64 deep, got more"
KEYS = {  # of a table: tuples in tuples, which Python hashes without a bound
    "fine": (b"(" * 60 + b"K\x01" + b"t" * 60, "must hold data and labels, got"),
    "deep": (b"(" * 5000 + b"K\x01" + b"t" * 5000, NESTED),
    "as deep as the stack": (b"K\x01" + b"\x85" * 1_000_000, NESTED),
    "doubled 40 times": (
        b"K\x01" + b"".join(b"q%ch%c\x86" % (k, k) for k in range(40)),
        "must hold tuples of at most 1,048,576 values, got more",
    ),
}


@pytest.mark.parametrize("what", KEYS)
def test_pickles_with_nested_keys(tmp_path: Path, what: str) -> None:
    """Red before: a traceback, a crash of the process, no end."""
    key, match = KEYS[what]
    content = b"\x80\x02}(" + key + b"K\x01u."
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        (tmp_path / name).write_bytes(content)
    refused(lambda: open_data(f"cifar10:{tmp_path},normalize=none"), match)
    (tmp_path / "old.pth").write_bytes(content)
    refused(lambda: read_weights(tmp_path / "old.pth"), match if what != "fine" else ".")
    with zipfile.ZipFile(tmp_path / "new.pth", "w") as archive:
        archive.writestr("net/data.pkl", content)
    refused(lambda: read_weights(tmp_path / "new.pth"), match if what != "fine" else ".")


def test_a_pickle_with_tables_as_keys_of_tables(tmp_path: Path) -> None:
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        (tmp_path / name).write_bytes(b"\x80\x02}(}K\x01u.")
    refused(
        lambda: open_data(f"cifar10:{tmp_path},normalize=none"), "must be complete and hold only arrays, got unhashable"
    )


def test_a_pickle_that_asks_for_memory(tmp_path: Path) -> None:
    # LONG_BINPUT to place 2^31: the reader in C makes room for as many entries and clears it, 32 GB
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        (tmp_path / name).write_bytes(b"\x80\x02}r" + struct.pack("<I", (1 << 31) - 1) + b".")
    refused(lambda: open_data(f"cifar10:{tmp_path},normalize=none"), "must hold data and labels, got nothing")


def test_a_picture_bomb(tmp_path: Path) -> None:
    for part in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / part / name / "1.png")
    # a header of 30000 x 30000 pixels and no pixels
    stream = io.BytesIO()
    stream.write(b"\x89PNG\r\n\x1a\n")
    PngImagePlugin.putchunk(stream, b"IHDR", struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0))
    PngImagePlugin.putchunk(stream, b"IDAT", b"")
    bomb = tmp_path / "val" / "b" / "1.png"
    bomb.write_bytes(stream.getvalue())
    refused(
        lambda: open_data(f"images:{tmp_path},normalize=none"), r"picture must be readable, got .*1\.png': Image size"
    )
    bomb.unlink()
    os.mkfifo(bomb)
    refused(
        lambda: open_data(f"images:{tmp_path},normalize=none"), r"picture must be a file, got .* a pipe or a device"
    )
    data = open_data(f"images:{tmp_path},normalize=none,size=8")
    refused(lambda: data.evaluator().digest, "picture must be a file, got .* a pipe or a device")
    refused(lambda: data.test.images[np.arange(2)], "picture must be a file, got .* a pipe or a device")


def test_pipes_where_files_belong(tmp_path: Path) -> None:
    weights, pipe = tmp_path / "net.pth", tmp_path / "pipe"
    torch.save({"a": torch.zeros(1)}, weights)
    os.mkfifo(pipe)
    (tmp_path / "net.pth.card.json").symlink_to(pipe)
    refused(lambda: read_card(weights), "model card must be a file, got .* a pipe or a device")
    refused(lambda: read_checkpoint(pipe), "checkpoint must be a file, got .* a pipe or a device")
    refused(lambda: read_signal(pipe), "signal file must be a file, got .* a pipe or a device")
    stored = object_path(tmp_path, "0" * 64, "json")
    stored.parent.mkdir(parents=True)
    stored.symlink_to(pipe)
    refused(lambda: read_object(tmp_path, "0" * 64, "json"), "object must be a file, got .* a pipe or a device")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"epoch": 1e999, "digest": "", "best_epoch": 0, "best_accuracy": 1}'])
def test_a_checkpoint_whose_record_is_strange(tmp_path: Path, text: str) -> None:
    file = tmp_path / "checkpoint.safetensors"
    save_file({"model/a": torch.zeros(1)}, file, metadata={METADATA_KEY: text})
    refused(lambda: read_checkpoint(file), "checkpoint .* must be a whole checkpoint of a training run, got")


def doubling(depth: int, *, loop: bool = False) -> onnx.ModelProto:
    """Functions that call the one below twice each; the lowest adds, or calls the highest."""
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]

    def function(number: int) -> onnx.FunctionProto:
        inner = f"f{number - 1}" if number else f"f{depth - 1}" if loop else ""
        nodes = (
            [helper.make_node(inner, ["x"], ["m"], domain="own"), helper.make_node(inner, ["m"], ["y"], domain="own")]
            if inner
            else [helper.make_node("Add", ["x", "x"], ["y"])]
        )
        return helper.make_function("own", f"f{number}", ["x"], ["y"], nodes, imports)

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 2)) for name in "xy"]
    graph = helper.make_graph(
        [helper.make_node(f"f{depth - 1}", ["x"], ["y"], domain="own")], "g", value[:1], value[1:]
    )
    functions = [function(number) for number in range(depth)]
    return helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=10)


def test_onnx_functions_that_double(tmp_path: Path) -> None:
    file = tmp_path / "net.onnx"
    for depth, loop, match in (
        (25, False, "must have at most 1,000,000 nodes with its functions put in place"),
        (3, True, "functions of .* must be nested at most 64 deep"),
        (500, False, "functions of .* must be nested at most 64 deep"),
    ):
        onnx.save(doubling(depth, loop=loop), file)
        refused(lambda: survey_onnx(file), match)


@pytest.mark.parametrize(
    "spec", ["cifar10:~nouser/x,normalize=none", "npz:~nouser/x.npz", "images:~nouser,normalize=none"]
)
def test_homes_of_nobody(spec: str) -> None:
    refused(lambda: open_data(spec), "data spec must be in a home folder that exists, got '~nouser")
    refused(lambda: slimbit.cost("~nouser/net.onnx"), ".")


@pytest.mark.parametrize("out", [None, 3, b"x"])
def test_an_out_that_is_no_path(out: object) -> None:
    refused(lambda: slimbit.load(out), "folder must be a path, got")  # type: ignore[arg-type] # on purpose
    network, data = slimbit.network("digits_resnet"), open_data("digits")
    settings = slimbit.TrainConfig(epochs=1, train_images=64)
    refused(lambda: slimbit.train(network, data, out=out, config=settings), "out must be a path, got")  # type: ignore[arg-type]


def test_pickle_stays_the_reader_that_was_checked() -> None:
    from slimbit.zoo.data import cifar_pickle

    assert not issubclass(cifar_pickle._Unpickler, pickle.Unpickler)


def test_an_onnx_file_that_loads_and_cannot_be_executed(tmp_path: Path) -> None:
    """Found by the fuzzer: a Reshape whose sizes only its execution can refuse."""
    pytest.importorskip("onnxruntime")
    shape = helper.make_tensor("shape", TensorProto.INT64, (2,), (5, 7))
    nodes = [helper.make_node("Identity", ["shape"], ["s"]), helper.make_node("Reshape", ["x", "s"], ["y"])]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [value("x", TensorProto.FLOAT, ("N", 4))], [value("y", TensorProto.FLOAT, None)], [shape]
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "net.onnx"
    )
    refused(
        lambda: measure_latency([tmp_path / "net.onnx"], threads=(1,), seconds=0.01),
        r"net\.onnx must be a file that .*, got ",
    )
