"""Damaged and hostile artifacts: one InputError, no code, no file outside, no memory beyond reason."""

import hashlib
import json
import os
import pickle
import random
import shutil
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from artifact_case import small_model, with_levels
from slimbit.artifacts.manifest import FILES, read_manifest
from slimbit.compress.load import load
from slimbit.numerics.levels import LayerLevels
from slimbit.records.errors import InputError
from slimbit.survey.module import survey_network
from slimbit.zoo import network

SOURCE = "resnet8@0.05"  # one filter per layer: 1 kB of levels


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = network(SOURCE).eval()
    spec = survey_network(model, torch.zeros(1, 3, 32, 32)).spec
    levels = {
        layer.name: LayerLevels(torch.randint(-4, 4, layer.shape) + 0.5, torch.tensor(0.1), "midrise")
        for layer in spec.layers
    }
    folder = tmp_path_factory.mktemp("sound") / "net"
    small = with_levels(model, spec, levels)
    return small_model(small, spec, levels, source=SOURCE, shape=(3, 32, 32)).save(folder)


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    shutil.copytree(sound, tmp_path / "net")
    return tmp_path / "net"


def sealed(folder: Path, change: Callable[[dict[str, Any]], Any], **contents: bytes) -> None:
    """Change manifest and files, and make all hashes right again, as an attacker would."""
    path = folder / "slimbit.json"
    data = json.loads(path.read_text())
    del data["digest"]
    for name, content in contents.items():
        file = {"levels": "levels.bin", "state": "state.safetensors", "plan": "plan.json"}[name]
        (folder / file).write_bytes(content)
        data["files"][file] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    change(data)
    canonical = json.dumps(data, sort_keys=True, separators=(",", ":"))
    path.write_text(json.dumps({**data, "digest": hashlib.sha256(canonical.encode()).hexdigest()}))


def test_the_undamaged_one_loads(folder: Path) -> None:
    sealed(folder, lambda data: None)
    assert isinstance(load(folder).model, nn.Module)


@pytest.mark.parametrize("name", [*FILES, "slimbit.json"])
def test_bit_flips_and_truncations_are_found(folder: Path, name: str) -> None:
    path = folder / name
    sound = path.read_bytes()
    chance = random.Random(name)
    for _ in range(40):
        damaged = bytearray(sound)
        damaged[chance.randrange(len(sound))] ^= 1 << chance.randrange(8)
        if name == "slimbit.json" and same_json(bytes(damaged), sound):
            continue  # a space became another one
        path.write_bytes(damaged)
        with pytest.raises(InputError):
            load(folder)
        path.write_bytes(sound[: chance.randrange(len(sound) - 1)])
        with pytest.raises(InputError):
            load(folder)
    path.write_bytes(sound + b"x")
    with pytest.raises(InputError):
        load(folder)
    path.unlink()
    with pytest.raises(InputError, match=f"(must exist, got none at|must be a folder with) .*{name}"):
        load(folder)


def same_json(damaged: bytes, sound: bytes) -> bool:
    try:
        return bool(json.loads(damaged.decode()) == json.loads(sound))
    except ValueError:
        return False


MANIFESTS: list[tuple[str, Callable[[dict[str, Any]], Any], str]] = [
    ("another format", lambda d: d.update(format="other"), "must have the format slimbit-artifact"),
    ("a newer schema", lambda d: d.update(schema=2), "must have schema 1, got 2: a newer slimbit"),
    ("no schema", lambda d: d.pop("schema"), "must have schema 1, got None"),
    ("a missing key", lambda d: d.pop("layers"), "must hold layers, got none"),
    ("an unknown key", lambda d: d.update(layer=[]), "only known keys, got layer; did you mean layers"),
    ("an unknown key within", lambda d: d["layers"][0].update(x=1), r"only known keys, got layers\.0\.x; known: name"),
    (
        "a file elsewhere",
        lambda d: d["files"].update({"../../etc/passwd": d["files"]["plan.json"]}),
        "files.../../etc/passwd of .* must be 'levels.bin'",
    ),
    ("a file missing", lambda d: d["files"].pop("cost.json"), "must list every file, got no cost.json"),
    ("a negative size", lambda d: d["files"]["plan.json"].update(bytes=-1), r"^files.plan.json.bytes of .* must be"),
    ("a huge file", lambda d: d["files"]["plan.json"].update(bytes=2**62), "bytes, got"),
    ("text as a size", lambda d: d["layers"][0].update(bytes="7"), r"^layers.0.bytes of .* must be"),
    ("a size that is true", lambda d: d["layers"][0].update(bytes=True), r"^layers.0.bytes of .* must be"),
    ("a layer twice", lambda d: d["layers"].append(d["layers"][0]), "add up to"),
    ("other layer sizes", lambda d: d["layers"][0].update(bytes=10**9), "add up to"),
    ("a huge shape", lambda d: d["layers"][0].update(shape=[2**31, 2**31]), "at most 2147483648 weights"),
    ("an empty shape", lambda d: d["layers"][0].update(shape=[]), r"^layers.0.shape of .* must be"),
    ("a zero shape", lambda d: d["layers"][0].update(shape=[0, 3]), r"^layers.0.shape.0 of .* must be"),
    ("a larger shape", lambda d: d["layers"][0].update(shape=[1, 300, 300, 30]), "must be \\(1, 300, 300, 30\\), got"),
    ("another grid", lambda d: d["layers"][0].update(grid="ternary"), r"^layers.0.grid of .* must be"),
    ("another coding", lambda d: d["layers"][0].update(coding="pickle"), r"^layers.0.coding of .* must be"),
    ("odd steps", lambda d: d["layers"][0].update(steps=3), "steps of layer 'conv1' must be 1 or 1, got 3"),
    ("another weight", lambda d: d["layers"][0].update(key="conv9.weight"), "must have the weight 'conv9.weight'"),
    ("a counter as weight", lambda d: d["layers"][0].update(key="bn1.num_batches_tracked"), "must have the weight"),
    ("rows outside", lambda d: d["layers"][0].update(rows=[0, 5]), "rows of layer 'conv1' must be within 1"),
    ("groups", lambda d: d["layers"][0].update(groups=7, transposed=True), "groups of layer 'conv1' must divide"),
    ("another plan", lambda d: d["plan"].update(digest="0" * 64), "plan.json must be the plan of the manifest"),
    ("another network", lambda d: d["network"].update(source="resnet14@0.05"), "of network resnet14@0.05"),
    ("no network", lambda d: d["network"].update(source="../net"), "model must be given for this artifact"),
    ("a file as network", lambda d: d["network"].update(source="os:getcwd"), "allow_code=True"),
    ("a huge network", lambda d: d["network"].update(source="vgg7@8", classes=1_000_000), "network vgg7@8 must have"),
    ("too many classes", lambda d: d["network"].update(classes=10**12), r"^network.classes of .* must be"),
    ("infinite accuracy", lambda d: d.update(accuracy={"value": "Infinity"}), r"^accuracy.value of .* must be"),
]


@pytest.mark.parametrize(("change", "message"), [row[1:] for row in MANIFESTS], ids=[row[0] for row in MANIFESTS])
def test_a_manifest_that_lies_is_refused(folder: Path, change: Callable[..., Any], message: str) -> None:
    sealed(folder, change)
    with pytest.raises(InputError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data["files"]["state.safetensors"].update(bytes=64 << 30), "must have 68719476736 bytes, got"),
        (lambda data: data["layers"][0].update(shape=[1 << 30]), r"must be \(1073741824,\), got"),
        (
            lambda data: [layer.update(shape=[1 << 30]) for layer in data["layers"]],
            "must have at most 2147483648 weights",
        ),
    ],
)
def test_a_manifest_that_claims_64_gigabytes_takes_no_memory(
    folder: Path, change: Callable[..., Any], message: str
) -> None:
    sealed(folder, change)
    tracemalloc.start()
    with pytest.raises(InputError, match=message):
        load(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


def test_a_huge_network_takes_no_memory(folder: Path) -> None:
    """A vgg7@8 with a million classes has 8 billion weights in its last layer alone."""
    sealed(folder, lambda data: data["network"].update(source="vgg7@8", classes=1_000_000))
    tracemalloc.start()
    with pytest.raises(InputError):
        load(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[1]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 50_000, b'{"format": 1' + b"0" * 6000 + b"}"],
    ids=["empty", "cut", "list", "null", "bytes", "deep list", "deep object", "long number"],
)
def test_no_manifest_at_all(folder: Path, content: bytes) -> None:
    (folder / "slimbit.json").write_bytes(content)
    with pytest.raises(InputError, match=r"slimbit\.json"):
        read_manifest(folder)


def test_a_state_that_does_not_fit_is_refused(folder: Path) -> None:
    state = {key: value for key, value in load(folder).model.state_dict().items() if value.ndim < 2}
    shift = torch.zeros(10)
    for changed, message in [
        ({**state, "linear.bias": torch.zeros(11)}, r"'linear.bias' .* must be \(10,\), got \(11,\)"),
        ({**state, "linear.bias": shift.long()}, "must be torch.float32, got torch.int64"),
        ({**state, "linear.shift": shift}, "must have the entry 'linear.shift', got none"),
        ({key: value for key, value in state.items() if key != "linear.bias"}, "got no 'linear.bias'"),
    ]:
        sealed(folder, lambda data: None, state=save(changed))
        with pytest.raises(InputError, match=message):
            load(folder)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("exploded",)


def test_a_pickle_is_never_opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    sealed(folder, lambda data: None, state=pickle.dumps(Bomb()))
    with pytest.raises(InputError, match=r"state of artifact .*net .*must be complete safetensors"):
        load(folder)
    assert not (folder / "exploded").exists()


def test_sealed_garbage_in_the_levels_is_levels_or_an_input_error(folder: Path) -> None:
    """Right hashes, wrong content: whatever the coder meets, nothing but an InputError comes out."""
    sound, chance = (folder / "levels.bin").read_bytes(), random.Random(0)
    refused = 0
    for _ in range(60):
        damaged = bytearray(sound)
        for _ in range(chance.randrange(1, 20)):
            damaged[chance.randrange(len(sound))] = chance.randrange(256)
        sealed(folder, lambda data: None, levels=bytes(damaged))
        try:
            load(folder)
        except InputError:
            refused += 1
    assert refused > 0


def test_steps_that_are_not_positive_are_refused(folder: Path) -> None:
    sound = (folder / "levels.bin").read_bytes()
    for step in (b"\0\0\0\0", b"\0\0\xc0\x7f", b"\0\0\x80\xbf"):  # 0, NaN, -1
        sealed(folder, lambda data: None, levels=step + sound[4:])
        with pytest.raises(InputError, match="steps of layer 'conv1' must be positive"):
            load(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_does_not_block(folder: Path) -> None:
    (folder / "levels.bin").unlink()
    os.mkfifo(folder / "levels.bin")
    with pytest.raises(InputError, match=r"must be a file, got .*levels\.bin, which is a pipe"):
        load(folder)


def test_no_folder_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere must be a folder with slimbit"):
        load(tmp_path / "nowhere")
