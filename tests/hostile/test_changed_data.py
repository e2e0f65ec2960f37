"""A run that is continued with other data is refused: what its accuracy was measured on belongs to the run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from slimbit.cli import app
from slimbit.records.errors import InputError
from slimbit.zoo import shipped_weights
from slimbit.zoo.data import open_data

FRONTIER = ["frontier", "digits_resnet", "--weights", str(shipped_weights("digits_resnet")), "--data", "npz:d.npz",
            "--points", "1", "--no-baselines", "--calibration-images", "20", "--evaluate-images", "100",
            "--out", "run"]  # fmt: skip
TRAIN = ["train", "digits_resnet", "--data", "npz:d.npz", "--epochs", "1", "--batch-size", "32", "--train-images", "64",
         "--validation-images", "40", "--out", "trained"]  # fmt: skip


def invoke(*arguments: str) -> str:
    return CliRunner().invoke(app, arguments, catch_exceptions=False).output


@pytest.fixture
def arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(tmp_path)
    data = open_data("digits")
    parts = {"train": data.train, "test": data.test}
    # the values that the network knows, 0 to 1, as float32
    arrays: dict[str, Any] = {f"{n}_images": part.images.astype(np.float32) / 16 for n, part in parts.items()}
    arrays |= {f"{name}_labels": part.labels for name, part in parts.items()}
    np.savez("d.npz", **arrays)
    return arrays


def changed(arrays: dict[str, Any], name: str) -> None:
    """The file with one value of one of its arrays changed everywhere where it may be looked at."""
    other = arrays[name].copy()
    if name.endswith("labels"):
        other = (other + 1) % 10
    else:
        other[:, 0, 3, 3] += 0.125
    np.savez("d.npz", **{**arrays, name: other})


def test_a_frontier_is_continued_with_its_evaluation_data_only(arrays: dict[str, Any]) -> None:
    assert "accuracy" in invoke(*FRONTIER)
    stored = Path("run/run.json").read_bytes()
    for name in ("test_labels", "test_images"):
        changed(arrays, name)
        with pytest.raises(InputError, match=r"evaluation data \(images, labels, normalization\) of run run must be"):
            invoke(*FRONTIER)
    np.savez_compressed("d.npz", **arrays)  # another file with the same content
    invoke(*FRONTIER)
    assert Path("run/run.json").read_bytes() == stored


def test_other_versions_and_runs_without_a_digest_are_told(arrays: dict[str, Any]) -> None:
    del arrays
    invoke(*FRONTIER)
    file = Path("run/run.json")
    info = json.loads(file.read_text())
    info["versions"]["torch"] = "1.0"
    info["evaluate_digest"] = ""
    file.write_text(json.dumps(info))
    said = invoke(*FRONTIER)
    assert f"the run began with torch 1.0 (now {__import__('torch').__version__})" in said
    assert "the run keeps no digest of its evaluation data" in said


@pytest.mark.parametrize("name", ["test_labels", "test_images", "train_labels", "train_images"])
def test_a_training_is_continued_with_its_data_only(arrays: dict[str, Any], name: str) -> None:
    invoke(*TRAIN)
    changed(arrays, name)
    with pytest.raises(InputError, match=r"run trained must be continued with its .*, got others of the same name"):
        invoke(*TRAIN)


def test_other_versions_of_a_training_are_told(arrays: dict[str, Any]) -> None:
    del arrays
    invoke(*TRAIN)
    file = Path("trained/train.json")
    settings = json.loads(file.read_text())
    settings["environment"]["torch"] = "1.0"
    file.write_text(json.dumps(settings))
    assert "the run began with torch 1.0 (now " in invoke(*TRAIN)


def test_the_digest_follows_pixels_labels_normalization_and_number(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for label in ("a", "b"):
            folder = tmp_path / split / label
            folder.mkdir(parents=True)
            for number in range(3):
                Image.new("RGB", (4, 4), (number, ord(label), 9)).save(folder / f"{number}.png")
    spec = f"images:{tmp_path},normalize=none"
    digest = open_data(spec).evaluator().digest
    others = {
        open_data(f"images:{tmp_path},normalize=half").evaluator().digest,
        open_data(f"{spec},size=4").evaluator().digest,
        open_data(spec).evaluator(4).digest,
    }
    Image.new("RGB", (4, 4), (7, 7, 7)).save(tmp_path / "train" / "a" / "0.png")
    assert open_data(spec).evaluator().digest == open_data(spec).evaluator(batch_size=1).digest == digest
    Image.new("RGB", (4, 4), (7, 7, 7)).save(tmp_path / "test" / "a" / "0.png")
    others.add(open_data(spec).evaluator().digest)
    (tmp_path / "test" / "a" / "1.png").rename(tmp_path / "test" / "b" / "9.png")
    others.add(open_data(spec).evaluator().digest)
    assert len(others | {digest}) == 6
