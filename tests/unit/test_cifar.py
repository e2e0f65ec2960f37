"""CIFAR files: the same images from the binary and the python form, wherever DIR points."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from slimbit.records.errors import InputError
from slimbit.zoo import open_data

CIFAR10 = ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"]


def batch(number: int, images: int = 4) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    rng = np.random.default_rng(number)
    return rng.integers(0, 256, (images, 3072), np.uint8), (np.arange(images) + number).astype(np.uint8) % 10


def binary(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for number, name in enumerate(CIFAR10):
        images, labels = batch(number)
        np.concatenate([labels[:, None], images], axis=1).tofile(folder / f"{name}.bin")
    return folder


def python(folder: Path, protocol: int = 2) -> Path:
    folder.mkdir(parents=True)
    for number, name in enumerate(CIFAR10):
        images, labels = batch(number)
        content = {b"data": images, b"labels": labels.tolist(), b"batch_label": b"training"}
        (folder / name).write_bytes(pickle.dumps(content, protocol=protocol))
    return folder


@pytest.mark.parametrize("above", [True, False])
@pytest.mark.parametrize("form", [binary, python])
def test_cifar10(tmp_path: Path, form: Any, above: bool) -> None:
    folder = form(tmp_path / ("cifar-10-batches-bin" if form is binary else "cifar-10-batches-py"))
    data = open_data(f"cifar10:{tmp_path if above else folder},normalize=cifar10")
    assert (data.classes, data.input_shape, len(data.train.images), len(data.test.images)) == (10, (3, 32, 32), 20, 4)
    images, labels = batch(5)
    assert np.array_equal(data.test.images, images.reshape(4, 3, 32, 32))
    assert np.array_equal(data.test.labels, labels)
    assert np.array_equal(data.train.images[4:8], batch(1)[0].reshape(4, 3, 32, 32))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_pickle_protocol(tmp_path: Path, protocol: int) -> None:
    data = open_data(f"cifar10:{python(tmp_path / 'cifar-10-batches-py', protocol)},normalize=none")
    assert np.array_equal(data.test.images.reshape(4, 3072), batch(5)[0])


# A batch as Python 2 and numpy of 2009 wrote it (2 images of 3,072 bytes, all 7): text is bytes, names are old.
def old_pickle() -> bytes:
    pixels = b"\x07" * 6144
    return (
        b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85U\x01b"
        b"\x87Rq\x05(K\x01K\x02M\x00\x0c\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07(K\x03U\x01|NNNJ\xff\xff\xff"
        b"\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + len(pixels).to_bytes(4, "little")
        + pixels
        + b"tbU\x06labels]q\x08(K\x03K\x04eu."
    )


def test_pickle_of_python_2(tmp_path: Path) -> None:
    for name in CIFAR10:
        (tmp_path / name).write_bytes(old_pickle())
    data = open_data(f"cifar10:{tmp_path},normalize=none")
    assert data.test.labels.tolist() == [3, 4]
    assert set(data.test.images.ravel()) == {7}


def test_cifar100_takes_the_fine_labels(tmp_path: Path) -> None:
    pixels = np.zeros((10, 3072), np.uint8)
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    for name, images in (("train", 10), ("test", 2)):
        labels = np.array([[19, 99 - n] for n in range(images)], np.uint8)  # coarse, fine
        np.concatenate([labels, pixels[:images]], axis=1).tofile(folder / f"{name}.bin")
    data = open_data(f"cifar100:{tmp_path},normalize=none")
    assert (data.classes, data.test.labels.tolist()) == (100, [99, 98])
    other = tmp_path / "cifar-100-python"
    other.mkdir()
    for name, images in (("train", 10), ("test", 2)):
        content = {"data": pixels[:images], "fine_labels": [5] * images, "coarse_labels": [1] * images}
        (other / name).write_bytes(pickle.dumps(content))
    assert open_data(f"cifar100:{other},normalize=none").test.labels.tolist() == [5, 5]


@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
def test_normalization_must_be_said(tmp_path: Path, kind: str) -> None:
    with pytest.raises(
        InputError, match=r"must say how the network's images were normalized: add one of normalize=imag"
    ):
        open_data(f"{kind}:{tmp_path}")


def test_normalization_from_card_and_spec(tmp_path: Path) -> None:
    folder = binary(tmp_path / "cifar-10-batches-bin")
    card = {"normalize": "imagenet"}
    assert open_data(f"cifar10:{folder}", card=card).normalization.mean == (0.485, 0.456, 0.406)
    assert open_data(f"cifar10:{folder},normalize=cifar10", card=card).normalization.name == "cifar10"
    given = open_data(f"cifar10:{folder},mean=0.49/0.48/0.45,std=0.25/.24/2.6e-1").normalization
    assert (given.mean, given.std) == ((0.49, 0.48, 0.45), (0.25, 0.24, 0.26))
    assert open_data(f"cifar10:{folder},mean=0.5,std=0.2").normalization.std == (0.2,) * 3
