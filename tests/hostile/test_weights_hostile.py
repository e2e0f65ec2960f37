"""Weight files that are wrong, damaged or malicious: an InputError that names them, and an untouched model."""

import io
import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from torch import Tensor, nn

from slimbit import zoo
from slimbit.records.errors import InputError
from slimbit.zoo.registry import network


def tiny() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2))


def torch_bytes(content: Any, *, old: bool = False) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=not old)
    return stream.getvalue()


def refuse(file: Path) -> str:
    """The message of the InputError; the model must not have changed."""
    model = tiny()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError) as caught:
        zoo.load_weights(model, file)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert file.name in str(caught.value)
    assert len(str(caught.value)) < 4000
    return str(caught.value)


# --- files that are no weights ------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_missing_file(tmp_path: Path, suffix: str) -> None:
    assert refuse(tmp_path / f"none{suffix}").startswith("weights file must exist")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ""])
def test_directory(tmp_path: Path, suffix: str) -> None:
    folder = tmp_path / f"folder{suffix}"
    folder.mkdir()
    assert "must be a file" in refuse(folder)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_empty_file(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"w{suffix}").touch()
    assert "must not be empty" in refuse(tmp_path / f"w{suffix}")


def test_name_too_long_for_the_file_system() -> None:
    with pytest.raises(InputError, match="weights file must be readable"):
        zoo.read_weights("x" * 5000 + ".pth")


def test_other_suffix(tmp_path: Path) -> None:
    (tmp_path / "w.onnx").write_bytes(b"x")
    assert "must end in one of .safetensors, .pth" in refuse(tmp_path / "w.onnx")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize(
    "text", ["<html>not found</html>", "version https://git-lfs.github.com/spec/v1\noid sha256:1\n"]
)
def test_text_instead_of_weights(tmp_path: Path, suffix: str, text: str) -> None:
    (tmp_path / f"w{suffix}").write_text(text)
    refuse(tmp_path / f"w{suffix}")


# --- code in a file -----------------------------------------------------------------------------------------------


class Marker:
    """Unpickled without protection, creates a directory."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("form", ["zip", "old", "pickle0", "pickle4"])
def test_code_is_refused_and_not_run(tmp_path: Path, form: str) -> None:
    trace = tmp_path / "executed"
    content = {"state_dict": Marker(trace)}
    data = {
        "zip": lambda: torch_bytes(content),
        "old": lambda: torch_bytes(content, old=True),
        "pickle0": lambda: pickle.dumps(content, protocol=0),
        "pickle4": lambda: pickle.dumps(content, protocol=4),
    }[form]()
    (tmp_path / "w.pth").write_bytes(data)
    message = refuse(tmp_path / "w.pth")
    assert "refused because" in message
    # A bare pickle stops torch's reader at an operation that torch.save never writes, before any name.
    assert form.startswith("pickle") or f"it needs {os.name}.mkdir" in message
    assert not trace.exists()


def test_whole_module_is_refused_by_name(tmp_path: Path) -> None:
    torch.save(tiny(), tmp_path / "w.pth")
    assert "refused because it needs torch.nn.modules.container.Sequential" in refuse(tmp_path / "w.pth")


def test_numpy_scalar_beside_the_weights_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": tiny().state_dict(), "best": np.float64(91.2)}, tmp_path / "w.pth")
    assert "multiarray.scalar" in refuse(tmp_path / "w.pth")


# --- no state dict ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "must map names to tensors, got list"),
        (torch.zeros(2), "must map names to tensors, got Tensor"),
        ({}, "must map names to tensors, got an empty one"),
        ({"state_dict": {}}, "must map names to tensors, got an empty one"),
        ({"params": {"a": torch.zeros(1)}, "epoch": 3}, "got only 'params', 'epoch'"),
        ({"state_dict": None}, "got only 'state_dict'"),
        ({"0.weight": torch.zeros(2), "epoch": 3}, "entry 'epoch' .* must be a name with its tensor, got str to int"),
        ({3: torch.zeros(2)}, "entry 3 .* must be a name with its tensor, got int to Tensor"),
    ],
)
def test_no_state_dict(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(InputError, match=message):
        zoo.read_weights(tmp_path / "w.pth")


# --- weights that do not fit --------------------------------------------------------------------------------------


def test_all_misfits_are_reported_together(tmp_path: Path) -> None:
    state = tiny().state_dict()
    state["conv.weight"] = state.pop("0.weight")
    state["1.weigth"] = state.pop("1.weight")
    state["1.bias"] = torch.zeros(3)
    save_file(state, tmp_path / "w.safetensors")
    message = refuse(tmp_path / "w.safetensors")
    assert "2 missing: 0.weight (closest: " in message
    assert "1.weight (closest: 1.weigth)" in message
    assert "2 unexpected: " in message
    assert "1.weigth (closest: 1.weight)" in message
    assert "1 misshapen: 1.bias has (3,) instead of (2,)" in message


def test_long_lists_are_cut_and_counted(tmp_path: Path) -> None:
    state = {**tiny().state_dict(), **{f"extra{i}": torch.zeros(1) for i in range(30)}}
    save_file(state, tmp_path / "w.safetensors")
    message = refuse(tmp_path / "w.safetensors")
    assert "30 unexpected: " in message
    assert message.endswith(" and 22 more")  # 8 are shown
    assert message.count("extra") == 8


def test_endless_names_stay_short_and_quick(tmp_path: Path) -> None:
    torch.save({f"{'module.' * 20_000}{i}": torch.zeros(1) for i in range(20)}, tmp_path / "w.pth")
    assert "20 unexpected" in refuse(tmp_path / "w.pth")


BAD_VALUES: dict[str, tuple[Tensor, str]] = {
    "nan": (torch.tensor([1.0, float("nan")]), "must be finite, got 1 NaN and 0 infinite of 2 values as float32"),
    "infinite": (torch.tensor([float("inf"), float("-inf")]), "must be finite, got 0 NaN and 2 infinite"),
    "overflow": (
        torch.tensor([1.0, 1e300], dtype=torch.float64),
        "must be finite, got 0 NaN and 1 infinite of 2 values as float32",
    ),
    "quantized": (torch.tensor([1, 2], dtype=torch.int8), "must be one of float16, .*, got torch.int8"),
    "complex": (torch.tensor([1j, 2]), "must be one of float16, .*, got torch.complex64"),
    "float8": (torch.tensor([1.0, 2.0]).to(torch.float8_e4m3fn), "must be one of float16"),
    "sparse": (torch.tensor([1.0, 0.0]).to_sparse(), "must be dense, got a meta, nested or torch.sparse_coo tensor"),
    "meta": (torch.zeros(2, device="meta"), "must be dense"),
}


@pytest.mark.parametrize("kind", BAD_VALUES)
def test_bad_values_name_the_tensor(tmp_path: Path, kind: str) -> None:
    value, message = BAD_VALUES[kind]
    torch.save({**tiny().state_dict(), "1.bias": value}, tmp_path / "w.pth")
    with pytest.raises(InputError, match=f"^tensor '1.bias' of weights 'w.pth' {message}"):
        zoo.load_weights(tiny(), tmp_path / "w.pth")
    refuse(tmp_path / "w.pth")


def test_negative_variance(tmp_path: Path) -> None:
    save_file({**tiny().state_dict(), "1.running_var": torch.tensor([1.0, -0.5])}, tmp_path / "w.safetensors")
    assert "'1.running_var' of weights 'w.safetensors' must not be negative, got -0.5" in refuse(
        tmp_path / "w.safetensors"
    )


def test_model_without_memory(tmp_path: Path) -> None:
    save_file(tiny().state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="network must have memory for its weights"):
        zoo.load_weights(tiny().to("meta"), tmp_path / "w.safetensors")


# --- damaged files ------------------------------------------------------------------------------------------------

GOOD = tiny().state_dict()
FILES = {
    "w.safetensors": save(GOOD),
    "zip.pth": torch_bytes({"state_dict": GOOD}),
    "old.pth": torch_bytes({"state_dict": GOOD}, old=True),
}


def header(entry: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps({"0.weight": entry}).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        header({"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, b"1234567"),
        header({"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, b"123456789"),
        header({"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 8]}, b"12345678"),
        header({"dtype": "F32", "shape": [0, 2**63], "data_offsets": [0, 0]}, b""),
        header({"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}, b"12345678"),
        header({"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}, b"12345678"),
        header({"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}, b"12345678"),
    ],
)
def test_impossible_safetensors_headers(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "w.safetensors").write_bytes(data)
    assert "must be a complete safetensors file" in refuse(tmp_path / "w.safetensors")


FUZZ = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.parametrize("name", FILES)
@FUZZ
@given(part=st.floats(0, 1, exclude_max=True))
def test_every_truncation_is_refused(tmp_path: Path, name: str, part: float) -> None:
    (tmp_path / name).write_bytes(FILES[name][: int(part * len(FILES[name]))])
    refuse(tmp_path / name)


@pytest.mark.parametrize("name", FILES)
@FUZZ
@given(flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7)), min_size=1, max_size=4))
def test_flipped_bits_load_or_are_refused(tmp_path: Path, name: str, flips: list[tuple[float, int]]) -> None:
    data = bytearray(FILES[name])
    for part, bit in flips:
        data[int(part * len(data))] ^= 1 << bit
    (tmp_path / name).write_bytes(data)
    model = tiny()
    try:
        zoo.load_weights(model, tmp_path / name)
    except InputError:
        refuse(tmp_path / name)
    else:
        assert all(value.isfinite().all() for value in model.state_dict().values())


def test_weights_of_a_variant_name_the_network_that_they_fit(tmp_path):
    file = tmp_path / "w.safetensors"
    save_file(network("resnet8-A", classes=100).state_dict(), file)
    with pytest.raises(InputError, match="; they fit resnet8-A with 100 classes"):
        network("resnet8", weights=file)
    with pytest.raises(InputError, match=r"misshapen: [^;]*$"):
        network("resnet8-A@0.5", weights=file)
