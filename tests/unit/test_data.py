"""Data sets by a spec: what is opened, in which order, normalized how."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from slimbit.records.errors import InputError, MissingExtraError
from slimbit.zoo import load_weights, network, open_data, read_card, shipped_weights
from slimbit.zoo.data import DataSet, Normalization, Part
from slimbit.zoo.data.splits import balanced_order, split


class Oracle(nn.Module):
    """Reads the class off the first pixel of images that hold ``label / 255`` everywhere."""

    def __init__(self, classes: int, *, view: bool = False) -> None:
        super().__init__()
        self.classes, self.view, self.seen = classes, view, list[Tensor]()
        self.scale = nn.Parameter(torch.tensor(255.0))
        self.dropout = nn.Dropout(1.0)

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        x = self.dropout(x)
        flat = x.view(len(x), -1) if self.view else x.reshape(len(x), -1)
        return nn.functional.one_hot((flat[:, 0] * self.scale).round().long(), self.classes).to(x.dtype)


def labelled(count: int, classes: int, *, shape: tuple[int, ...] = (3, 4, 4)) -> Part:
    labels = np.arange(count) % classes
    images = np.broadcast_to(labels[:, None, None, None], (count, *shape)).astype(np.uint8)
    return Part(images, labels)


def data_set(count: int = 20, among: int = 4, **changes: Any) -> DataSet:
    part = labelled(count, among)
    fields = {
        "name": "own",
        "train": part,
        "test": part,
        "classes": among,
        "normalization": Normalization((0.0,), (1.0,)),
    }
    return DataSet(**{**fields, **changes})


# --- orders -------------------------------------------------------------------------------------------------------


def test_every_beginning_is_balanced() -> None:
    labels = np.repeat([0, 1, 2], 30)
    order = balanced_order(labels)
    assert sorted(order) == list(range(90))
    for rounds in (1, 7, 30):
        assert np.bincount(labels[order[: 3 * rounds]]).tolist() == [rounds] * 3
    assert not np.array_equal(order, balanced_order(labels, seed=1))
    assert np.array_equal(order, balanced_order(labels))


def test_unequal_classes_come_in_proportion() -> None:
    labels = np.array([0] * 60 + [1] * 20)
    # 3 to 1 in every beginning that is a multiple of 4
    for count in (4, 40, 80):
        assert np.bincount(labels[balanced_order(labels)[:count]]).tolist() == [count * 3 // 4, count // 4]


def test_split_keeps_every_image_once() -> None:
    train, test = split(np.arange(50) % 5, test_images=10)
    assert sorted([*train, *test]) == list(range(50))
    assert np.bincount(test % 5).tolist() == [2] * 5


# --- data set -----------------------------------------------------------------------------------------------------


def test_room_is_imported_without_torch() -> None:
    code = "import sys, slimbit.zoo.data, slimbit.zoo; slimbit.zoo.open_data; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_calibration_is_deterministic_and_normalized() -> None:
    # value 3 of 255 with mean 0.5 and std 0.25: (3/255 - 0.5) / 0.25 = -1.95294
    part = Part(np.full((9, 1, 2, 2), 3, np.uint8), None)
    test = labelled(4, 2, shape=(1, 2, 2))
    data = data_set(train=part, test=test, classes=2, normalization=Normalization((0.5,), (0.25,)))
    batches = data.calibration(7, batch_size=3)
    assert [len(batch) for batch in batches] == [3, 3, 1]
    assert batches[0].dtype == torch.float32
    assert batches[-1].shape == (1, 1, 2, 2)
    assert batches[0][0, 0, 0, 0].item() == pytest.approx(-1.952941, abs=1e-6)


def test_calibration_passes_are_the_same_and_seeds_differ() -> None:
    images = np.arange(200, dtype=np.uint8).reshape(200, 1, 1, 1)
    data = data_set(train=Part(images, None), test=labelled(4, 2, shape=(1, 1, 1)), classes=2)
    batches = data.calibration(50, batch_size=20)
    first, second = torch.cat(list(batches)), torch.cat(list(batches))
    assert torch.equal(first, second)
    assert len(first.unique()) == 50  # no image twice
    assert not torch.equal(first, torch.cat(list(data.calibration(50, seed=1))))
    assert torch.equal(torch.cat(list(data.calibration(30))), first[:30])
    with pytest.raises(IndexError):
        batches[3]


def test_float_images_are_used_as_stored() -> None:
    images = np.full((4, 1, 2, 2), 7.0, np.float32)
    data = data_set(train=Part(images, None), test=Part(images, np.array([0, 1, 0, 1])), classes=2)
    assert data.calibration(1)[0].flatten().tolist() == [7.0] * 4
    data.calibration(4)[0].zero_()
    assert images.min() == 7.0  # the batch is a copy


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_evaluator_counts(batch_size: int) -> None:
    data = data_set(20, 4)
    assert data.evaluator(batch_size=batch_size)(Oracle(4)) == 100.0
    # the three images of class 3 among the first 12 (3 of each class) are called 2: 9 of 12
    wrong = np.where(data.test.labels == 3, 2, data.test.labels)
    shown = np.broadcast_to(wrong[:, None, None, None], (20, 3, 4, 4)).astype(np.uint8)
    other = data_set(test=Part(shown, data.test.labels))
    evaluate = other.evaluator(12, batch_size=batch_size)
    assert evaluate(Oracle(4)) == 75.0
    assert (evaluate.images, evaluate.classes) == (12, 4)
    assert evaluate.description == "top-1 of 12 of 20 test images of own"


def test_evaluator_restores_every_mode() -> None:
    model = Oracle(4).train()
    model.dropout.eval()
    data_set().evaluator()(model)
    assert model.training
    assert not model.dropout.training
    assert all(image.is_inference() for image in model.seen)

    class Broken(Oracle):
        def forward(self, x: Tensor) -> Tensor:
            raise ZeroDivisionError

    broken = Broken(4).train()
    with pytest.raises(ZeroDivisionError):
        data_set().evaluator()(broken)
    assert broken.training


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_evaluator_uses_the_models_type(dtype: torch.dtype) -> None:
    model = Oracle(4).to(dtype)
    assert data_set().evaluator()(model) == 100.0
    assert {image.dtype for image in model.seen} == {dtype}


def test_a_model_that_needs_contiguous_images_works() -> None:
    model = Oracle(4, view=True)
    assert data_set().evaluator(batch_size=5)(model) == 100.0
    assert [image.is_contiguous() for image in model.seen] == [False, True, True, True, True]


def test_outputs_with_nan_are_wrong() -> None:
    class Poisoned(Oracle):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where(super().forward(x) > 0, torch.nan, 0.0)

    assert data_set().evaluator()(Poisoned(4)) == 0.0


def test_records_of_outputs_are_understood() -> None:
    class Record:
        def __init__(self, logits: Tensor) -> None:
            self.logits = logits

    class Recording(Oracle):
        def forward(self, x: Tensor) -> Any:
            return Record(super().forward(x))

    class Pair(Oracle):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x), None

    assert data_set().evaluator()(Recording(4)) == 100.0
    assert data_set().evaluator()(Pair(4)) == 100.0


def test_all_images_calibrate_where_there_are_fewer_than_usual() -> None:
    assert sum(len(batch) for batch in data_set().calibration()) == 20


def test_wrong_outputs() -> None:
    with pytest.raises(
        InputError, match=r"output of the network on own must have shape .* = \(20, 4\), got .*\(20, 9\)"
    ):
        data_set().evaluator()(Oracle(9))


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (
            lambda data: data.calibration(21),
            "calibration images of own must be at most the 20 training images that there",
        ),
        (lambda data: data.evaluator(21), "evaluation images of own must be at most the 20 test images that there"),
        (lambda data: data.calibration(0), "must be a whole number of 1 or more, got 0"),
        (lambda data: data.evaluator(True), "must be a whole number of 1 or more, got True"),
        (lambda data: data.evaluator(batch_size=0), "batch size must be a whole number of 1 or more, got 0"),
    ],
)
def test_more_images_than_there_are(ask: Callable[[DataSet], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ask(data_set())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": 3}, "labels of own must be 0 to 2, got 3 at image 3"),
        ({"classes": 1}, "at least 2 classes"),
        ({"test": Part(labelled(20, 4).images, None)}, "test images of own must have labels"),
        ({"test": Part(labelled(20, 4).images, np.zeros(19, int))}, "must be one for each of 20 images"),
        ({"test": Part(labelled(20, 4).images, np.zeros(20))}, "must be whole numbers, got float64"),
        ({"test": labelled(20, 4, shape=(3, 5, 4))}, "must have one shape"),
        ({"train": Part(np.zeros((2, 3, 4)), None)}, "must have shape"),
        ({"train": Part(np.zeros((2, 3, 4, 4)), None)}, "must be uint8 or float32, got float64"),
        (
            {"normalization": Normalization((0.0, 0.0), (1.0, 1.0))},
            "channels of normalization custom must be 1 or 3 like the images', got 2",
        ),
    ],
)
def test_parts_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        data_set(**changes)


# --- digits and the network that comes with them ------------------------------------------------------------------


def test_digits() -> None:
    data = open_data("digits")
    assert (data.input_shape, data.classes, data.normalization.name) == ((1, 8, 8), 10, "none")
    assert (len(data.train.images), len(data.test.images)) == (1297, 500)
    first = data.calibration(1297)[0]
    assert (first.min().item(), first.max().item()) == (0.0, 1.0)
    # about 178-183 images a class in 1,797; 500 / 1,797 of each is 48 to 51
    assert set(np.bincount(data.test.labels)) <= {48, 49, 50, 51}
    every = {image.tobytes() for image in np.concatenate([data.train.images, data.test.images])}
    assert len(every) == 1797


def test_digits_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match=r"scikit-learn.*slimbit\[demo\]"):
        open_data("digits")


def test_shipped_network_is_as_good_as_its_card_says() -> None:
    file = shipped_weights("digits_resnet")
    assert file is not None
    card = read_card(file)
    assert card is not None
    model = load_weights(network("digits_resnet"), file)
    accuracy = open_data("digits", card=card).evaluator()(model)
    # other machines add up in another order: allow one image of 500
    assert accuracy == pytest.approx(card["accuracy"], abs=0.2)
    assert accuracy >= 97.0
    assert file.stat().st_size < 100_000
    assert shipped_weights("digits_resnet@2") is None


# --- pictures -----------------------------------------------------------------------------------------------------


def write(file: Path, color: tuple[int, int, int], size: tuple[int, int] = (8, 8)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(file)


def test_images_with_folders(tmp_path: Path) -> None:
    for part, count in (("train", 3), ("val", 2)):
        for name, color in (("cat", (255, 0, 0)), ("ant", (0, 51, 0))):
            for number in range(count):
                write(tmp_path / part / name / f"{number}.png", color)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no picture")
    data = open_data(f"images:{tmp_path},normalize=none")
    assert data.class_names == ("ant", "cat")
    assert (len(data.train.images), len(data.test.images), data.input_shape) == (6, 4, (3, 8, 8))
    assert data.test.labels.tolist() == [0, 0, 1, 1]
    # class 0 is ant: green 51 / 255 = 0.2; the mean over the channels' planes tells which picture is which
    batch = data.test.images[np.array([0, 3])]
    assert batch[:, :, 0, 0].tolist() == [[0, 51, 0], [255, 0, 0]]


def test_images_are_split_where_there_are_no_parts(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for number in range(10):
            write(tmp_path / name / f"{number}.png", (number, 0, 0))
    data = open_data(f"images:{tmp_path},normalize=none")
    assert (len(data.train.images), data.test.labels.tolist()) == (16, [0, 0, 1, 1])  # 20 % of 20
    again = open_data(f"images:{tmp_path},normalize=none")
    everything = np.arange(4)
    assert np.array_equal(data.test.images[everything], again.test.images[everything])
    assert len(open_data(f"images:{tmp_path},normalize=none,test=0.5").test.images) == 10


def test_size_cuts_the_middle(tmp_path: Path) -> None:
    # 80x40, left half black, right half white: resized to 16x8 (7 / 0.875 = 8), the middle 7x7 starts at column 4
    for name in ("a", "b"):
        picture = Image.new("L", (80, 40), 0)
        picture.paste(255, (40, 0, 80, 40))
        (tmp_path / name).mkdir()
        for number in range(2):
            picture.save(tmp_path / name / f"{number}.png")
    data = open_data(f"images:{tmp_path},normalize=half,size=7,channels=1")
    assert data.input_shape == (1, 7, 7)
    row = data.calibration(1)[0][0, 0, 3].tolist()
    assert row[:3] == [-1.0] * 3
    assert row[-2:] == [1.0] * 2
    gray = open_data(f"images:{tmp_path},normalize=none,size=8,resize=8,interpolation=bicubic")
    assert gray.input_shape == (3, 8, 8)
    assert open_data(f"images:{tmp_path}", card={"normalize": "none", "size": 5}).input_shape == (3, 5, 5)


def test_decoded_pictures_are_kept_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        for number in range(4):
            write(tmp_path / name / f"{number}.png", (number, 0, 0), (2, 2))
    from slimbit.zoo.data import pictures

    monkeypatch.setattr(pictures, "MOST_KEPT_BYTES", 3 * 12)  # three pictures of 3x2x2 bytes
    data = open_data(f"images:{tmp_path},normalize=none")
    images: Any = data.train.images
    first, second = images[np.arange(6)], images[np.arange(6)]
    assert np.array_equal(first, second)
    assert len(images._kept) == 3


# --- arrays -------------------------------------------------------------------------------------------------------


def test_npz_with_parts(tmp_path: Path) -> None:
    train, test = labelled(6, 3), labelled(3, 3)
    np.savez(
        tmp_path / "d.npz", train_images=train.images, train_labels=train.labels, test_images=test.images,
        test_labels=test.labels,
    )  # fmt: skip
    data = open_data(f"npz:{tmp_path / 'd.npz'}")
    assert (data.classes, data.input_shape, data.normalization.name) == (3, (3, 4, 4), "none")
    assert data.evaluator()(Oracle(3)) == 100.0


@pytest.mark.parametrize(
    ("shape", "options", "expected"),
    [
        ((10, 4, 5, 3), "", (3, 4, 5)),
        ((10, 3, 4, 5), "", (3, 4, 5)),
        ((10, 4, 5), "", (1, 4, 5)),
        ((10, 4, 5, 6), ",layout=nhwc", (6, 4, 5)),
        ((10, 4, 5, 6), ",layout=nchw", (4, 5, 6)),
    ],
)
def test_npz_layouts(tmp_path: Path, shape: tuple[int, ...], options: str, expected: tuple[int, ...]) -> None:
    np.savez(tmp_path / "d.npz", images=np.zeros(shape, np.float64), labels=np.arange(10) % 2)
    data = open_data(f"npz:{tmp_path / 'd.npz'}{options}")
    assert data.input_shape == expected
    assert (len(data.train.images), len(data.test.images), data.train.images.dtype) == (8, 2, np.float32)


# --- the user's code ----------------------------------------------------------------------------------------------


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module: Any = ModuleType("own_data")
    part = labelled(8, 4)
    module.triple = lambda: (torch.from_numpy(part.images), part.images, torch.from_numpy(part.labels))
    module.whole = data_set
    module.pair = lambda: (part.images, part.labels)
    module.broken = lambda: 1 / 0
    module.number = 3
    monkeypatch.setitem(sys.modules, "own_data", module)
    return module


def test_own_callables(own: ModuleType) -> None:
    data = open_data("own_data:triple")
    assert (data.classes, data.train.labels, data.normalization.name) == (4, None, "none")
    assert data.evaluator()(Oracle(4)) == 100.0
    assert open_data("own_data:triple,normalize=half").normalization.mean == (0.5,) * 3
    assert open_data("own_data:whole").name == "own"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("own_data:pair", "must return a DataSet, or calibration images.*, got 2 things"),
        ("own_data:broken", "got ZeroDivisionError: division by zero"),
        ("own_data:number", "must name a callable, got own_data:number, which is int"),
        ("own_data:tripel", "did you mean triple"),
        ("own_data:whole,normalize=none", "options must not be given where own_data:whole returns a DataSet"),
        ("no_such_package.data:load", "must name an importable module"),
    ],
)
def test_own_callables_that_fail(own: ModuleType, spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_data(spec)


# --- hub, with a stand-in for the package -------------------------------------------------------------------------


class Feature:
    def __init__(self, names: list[str] | None = None) -> None:
        self.names = names


class ClassLabel(Feature):
    pass


class Rows:
    """As much of ``datasets.Dataset`` as is used."""

    def __init__(self, labels: NDArray[Any]) -> None:
        self.labels = labels
        self.features = {"img": type("Image", (Feature,), {})(), "label": ClassLabel(["x", "y"])}

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: int | str) -> Any:
        if isinstance(key, str):
            return self.labels.tolist()
        return {"img": Image.new("L", (4, 4), int(self.labels[key])), "label": self.labels[key]}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, config: str | None) -> dict[str, Rows]:
        if name != "some/thing":
            raise FileNotFoundError(f"no {name}")
        return {"train": Rows(np.arange(6) % 2), "validation": Rows(np.arange(4) % 2)}

    module: Any = ModuleType("datasets")
    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)


@pytest.mark.usefixtures("hub")
def test_hub() -> None:
    data = open_data("hub:some/thing,normalize=none,channels=1")
    assert (data.class_names, data.input_shape, len(data.train.images)) == (("x", "y"), (1, 4, 4), 6)
    assert data.evaluator()(Oracle(2)) == 100.0


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("hub:other/thing,normalize=none", "must be a data set that can be loaded, got no other/thing"),
        ("hub:some/thing,normalize=none,test=exam", "must have a split exam, got train, validation: choose with test="),
        ("hub:some/thing,normalize=none,image=image", r"image= must name a column .*did you mean img"),
        ("hub:some/thing", "must say how the network's images were normalized"),
    ],
)
def test_hub_errors(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_data(spec)


def test_hub_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"slimbit\[hub\]"):
        open_data("hub:some/thing,normalize=none")
