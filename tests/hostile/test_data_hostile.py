"""Data that are wrong, damaged or malicious: one InputError of one sentence that names them."""

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from slimbit.records.errors import InputError
from slimbit.zoo import open_data

NAMES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
IMAGES = 2


def refused(spec: str, match: str) -> str:
    with pytest.raises(InputError, match=match) as caught:
        open_data(spec)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1000
    return message


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("", "data spec must be one of digits, cifar10:DIR"),
        ("digit", "did you mean digits"),
        ("digits:8", "must stand alone"),
        ("digits,size=3", "option of digits must be one of normalize, mean, std, held_out, got 'size'"),
        ("digits,normalise=none", "did you mean normalize"),
        ("digits,normalize=none,normalize=none", "must be given once"),
        ("digits,normalize=imagnet", "did you mean imagenet"),
        ("digits,normalize=imagenet", "channels of normalization imagenet must be 1 like the images', got 3"),
        ("digits,mean=0.5", "mean= and std= must be given together, got only mean="),
        ("digits,mean=0.5,std=0", "std must be above 0"),
        ("digits,mean=0.5,std=nan", "std= must be numbers between slashes"),
        ("digits,mean=0.5/0.5,std=1", "one number per channel each, got 2 and 1"),
        ("digits,mean=1e999,std=1", "must be finite"),
        ("digits,normalize=none,std=1", "normalize= must not be given together with std="),
        ("cifar10:", "must name a place as in cifar10:DIR"),
        ("cifar10:/nowhere,normalize=none", "must be a folder that exists, got '/nowhere'"),
        ("images:/nowhere,normalize=none", "must be a folder that exists"),
        ("npz:/nowhere.npz", "must be a file that exists"),
        ("images:x,normalize=none,size=0", "size of data spec must be a whole number from 1 to 4096, got '0'"),
        ("images:x,normalize=none,size=224x224", "must be a whole number"),
        ("images:x,normalize=none,resize=8", "resize of data spec must be at least size"),
        ("images:x,normalize=none,interpolation=lanczos", "must be bilinear or bicubic"),
        ("x" * 100_000, "data spec must be one of"),
    ],
)
def test_specs(spec: str, match: str) -> None:
    refused(spec, match)


# --- CIFAR --------------------------------------------------------------------------------------------------------


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for name in NAMES:
        np.zeros((IMAGES, 3073), np.uint8).tofile(folder / f"{name}.bin")
    open_data(f"cifar10:{folder},normalize=none")  # it is good before a test spoils it
    return folder


def truncate(folder: Path, size: int) -> None:
    os.truncate(folder / "data_batch_3.bin", size)


SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (
        lambda folder: truncate(folder, 5000),
        r"whole records of 3,073 bytes, got .*data_batch_3.bin.* 5,000 bytes",
    ),
    "cut at a record": (lambda folder: truncate(folder, 3073), "got 2, 2, 1, 2, 2, 2: a file is truncated"),
    "empty": (lambda folder: truncate(folder, 0), "with 0 bytes"),
    "missing": (lambda folder: (folder / "test_batch.bin").unlink(), r"must be complete, got no test_batch.bin"),
    "label": (
        lambda folder: np.full((IMAGES, 3073), 10, np.uint8).tofile(folder / "test_batch.bin"),
        "labels in .*test_batch.bin' must be 0 to 9 as in CIFAR-10, got 10 at image 0",
    ),
    "nothing": (
        lambda folder: [file.unlink() for file in folder.iterdir()],
        "must hold cifar-10-batches-bin or cifar-10",
    ),
}


@pytest.mark.parametrize("how", SPOILED)
def test_spoiled_cifar(cifar: Path, how: str) -> None:
    spoil, match = SPOILED[how]
    spoil(cifar)
    refused(f"cifar10:{cifar},normalize=none", match)


def test_the_other_cifar(cifar: Path) -> None:
    refused(
        f"cifar100:{cifar.parent}/cifar-10-batches-bin,normalize=none", "must hold CIFAR-100, got .* with CIFAR-10: use"
    )
    shutil.move(cifar, cifar.parent / "cifar-100-binary")
    folder = cifar.parent / "cifar-100-binary"
    (folder / "test_batch.bin").rename(folder / "test.bin")
    (folder / "data_batch_1.bin").rename(folder / "train.bin")
    refused(f"cifar100:{folder},normalize=none", "CIFAR-100 file must hold whole records of 3,074 bytes")


def test_file_instead_of_folder(cifar: Path) -> None:
    refused(f"cifar10:{cifar / 'test_batch.bin'},normalize=none", "must be a folder, got the file")


# --- pickles ------------------------------------------------------------------------------------------------------


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    content = {b"data": np.zeros((IMAGES, 3072), np.uint8), b"labels": [0] * IMAGES}
    for name in NAMES:
        (tmp_path / name).write_bytes(pickle.dumps(content))
    open_data(f"cifar10:{tmp_path},normalize=none")
    return tmp_path


class Evil:
    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("function", [os.system, eval, os.mkdir, getattr])
def test_pickles_run_nothing(pickled: Path, function: Callable[..., Any], protocol: int) -> None:
    mark = pickled / "ran"
    argument = {os.system: f"mkdir {mark}", eval: f"__import__('os').mkdir({str(mark)!r})"}.get(function, str(mark))
    arguments = (os, "mkdir") if function is getattr else (argument,)
    content = {b"data": Evil(function, *(str(a) for a in arguments)), b"labels": [0, 0]}
    (pickled / "test_batch").write_bytes(pickle.dumps(content, protocol=protocol))
    refused(
        f"cifar10:{pickled},normalize=none",
        "test_batch' must be complete and hold only arrays, got the name .* refused",
    )
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ([1, 2], "must hold a dictionary, got list"),
        ({}, "must hold data and labels, got nothing"),
        ({b"data": b"x", b"labels": [1]}, "must hold data and labels"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"fine_labels": [1, 1]}, "got b'data', b'fine_labels'"),
        ({b"data": np.zeros((2, 100), np.uint8), b"labels": [1, 1]}, r"must be bytes of shape \(images, 3072\)"),
        ({b"data": np.zeros((2, 3072), np.int64), b"labels": [1, 1]}, "must be bytes of shape"),
        ({b"data": np.zeros((2, 3072)), b"labels": [1, 1]}, "an array of type f8, which is refused|type 'f8'"),
        ({b"data": np.zeros((2, 3072), object), b"labels": [1, 1]}, "which is refused"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]}, "labels in .* must be one for each of 2 images"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 1 << 70]}, "must hold data and labels"),
        (
            {b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, -1]},
            "must be 0 to 9 as in CIFAR-10, got -1 at image 1",
        ),
    ],
)
def test_pickles_of_something_else(pickled: Path, content: Any, match: str) -> None:
    (pickled / "test_batch").write_bytes(pickle.dumps(content))
    refused(f"cifar10:{pickled},normalize=none", match)


def test_a_pickle_leaves_nothing_behind(pickled: Path) -> None:
    from slimbit.zoo.data.cifar_pickle import _stand_ins

    # GLOBAL, then BUILD with (None, {"spoiled": None}): sets an attribute on what the name stands for
    stream = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nN}X\x07\x00\x00\x00spoiledNs\x86b."
    (pickled / "data_batch_1").write_bytes(stream)
    refused(f"cifar10:{pickled},normalize=none", "data_batch_1' must hold a dictionary, got function")
    assert not any(hasattr(stand_in, "spoiled") for stand_in in _stand_ins().values())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_pickles(pickled: Path, data: st.DataObject) -> None:
    good = (pickled / "data_batch_1").read_bytes()
    place = data.draw(st.integers(0, 200) | st.integers(len(good) - 60, len(good) - 1))
    damaged = good[:place] + data.draw(st.binary(min_size=0, max_size=4)) + good[place + data.draw(st.integers(0, 4)) :]
    (pickled / "test_batch").write_bytes(damaged)
    try:
        assert open_data(f"cifar10:{pickled},normalize=none").test.images.shape == (IMAGES, 3, 32, 32)
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017 - either is right: a harmless change, or one sentence


# --- pictures -----------------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for part in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / part / name / "1.png")
    open_data(f"images:{tmp_path},normalize=none")
    return tmp_path


def test_class_folders(pictures: Path) -> None:
    spec = f"images:{pictures},normalize=none"
    refused(f"{spec},test=0.5", "test= must not be given where")
    (pictures / "val" / "c").mkdir()
    refused(spec, "must have the same class folders, got only in one: c")
    (pictures / "train" / "c").mkdir()
    refused(spec, "class folder must hold pictures, got .*/train/c' without")
    shutil.rmtree(pictures / "val")
    refused(spec, "must have class folders in test/ or val/ beside train/")
    refused(f"images:{pictures / 'train' / 'a'},normalize=none", "a folder for each of 2 or more classes, got 0")


def test_pictures_of_two_sizes(pictures: Path) -> None:
    Image.new("RGB", (9, 8)).save(pictures / "val" / "b" / "2.png")
    refused(f"images:{pictures},normalize=none", r"one size unless size= is given, got 8x8 and 9x8 .* at .*2.png")
    assert open_data(f"images:{pictures},normalize=none,size=4").input_shape == (3, 4, 4)


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_broken_picture(pictures: Path, content: bytes) -> None:
    (pictures / "val" / "b" / "1.png").write_bytes(content)
    refused(f"images:{pictures},normalize=none", "picture must be readable, got .*1.png")
    data = open_data(f"images:{pictures},normalize=none,size=8")  # headers are not read, so it shows when it is needed
    with pytest.raises(InputError, match=r"picture must be readable, got .*1\.png'"):
        data.test.images[np.arange(2)]


def test_picture_like_a_line(pictures: Path) -> None:
    Image.new("1", (5000, 1)).save(pictures / "train" / "a" / "1.png")
    refused(f"images:{pictures},normalize=none,size=224", "it is 5000x1, too narrow")


# --- npz ----------------------------------------------------------------------------------------------------------

GOOD: dict[str, Any] = {"images": np.zeros((4, 3, 2, 2), np.uint8), "labels": np.array([0, 1, 0, 1])}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"images": np.zeros((4, 5, 6, 7), np.uint8)}, "must have 1 or 3 channels unless layout="),
        ({"images": np.zeros((4, 2), np.uint8)}, "must have 3 or 4 dimensions"),
        ({"images": np.zeros((0, 3, 2, 2), np.uint8)}, "must not be empty"),
        ({"images": np.zeros((4, 3, 2, 2), np.int64)}, "must be uint8 or floating point, got int64"),
        ({"images": np.full((4, 3, 2, 2), np.nan)}, "must be finite"),
        ({"images": np.full((4, 3, 2, 2), 1e300)}, "must be finite as float32"),
        ({"images": np.full((4, 3, 2, 2), None)}, "Object arrays cannot be loaded"),
        ({"labels": np.array([0, 1, 0])}, "must be one for each of 4 images"),
        ({"labels": np.array([0, 1, 0, -1])}, "must be 0 to"),
        ({"labels": np.array([0.0, 1, 0, 1])}, "must be whole numbers, got float64"),
        ({"train_images": GOOD["images"]}, "must hold train_images, train_labels, test_images, test_labels, or images"),
    ],
)
def test_npz(tmp_path: Path, changes: dict[str, Any], match: str) -> None:
    np.savez(tmp_path / "d.npz", **{**GOOD, **changes})
    assert "d.npz" in refused(f"npz:{tmp_path / 'd.npz'}", match)


def test_damaged_npz(tmp_path: Path) -> None:
    file = tmp_path / "d.npz"
    np.savez_compressed(file, **GOOD)
    good = file.read_bytes()
    for content in (
        b"",
        b"PK\x03\x04",
        good[: len(good) // 2],
        good[:60] + b"\xff" * 20 + good[80:],
        pickle.dumps(GOOD),
    ):
        file.write_bytes(content)
        assert "d.npz" in refused(f"npz:{file}", "must be a complete .npz file of arrays|must hold train_images")
    np.save(tmp_path / "one.npy", GOOD["images"])
    refused(f"npz:{tmp_path / 'one.npy'}", "must be a complete .npz file of arrays, got .* which is none")
