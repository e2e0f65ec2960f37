"""The number of classes is that of the network's outputs, never guessed from the labels at hand."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from slimbit.cli import app
from slimbit.records.errors import InputError
from slimbit.zoo import network, open_data, read_card, shipped_weights
from slimbit.zoo.files import read_weights


def subset(file: Path, most: int, *, shift: int = 0) -> None:
    """Digits up to a label only, as float values from 0 to 1."""
    data = open_data("digits")
    arrays = {}
    for name, part in (("train", data.train), ("test", data.test)):
        assert part.labels is not None
        chosen = np.flatnonzero(part.labels <= most)
        arrays[f"{name}_images"] = part.images[chosen].astype(np.float32) / 16
        arrays[f"{name}_labels"] = part.labels[chosen] + shift
    np.savez(file, **arrays)


def frontier(data: str, out: Path) -> None:
    weights = str(shipped_weights("digits_resnet"))
    arguments = ["frontier", "digits_resnet", "--weights", weights, "--data", data, "--points", "1", "--no-baselines",
                 "--calibration-images", "20", "--evaluate-images", "60", "--out", str(out)]  # fmt: skip
    CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_fewer_labels_than_outputs(tmp_path: Path) -> None:
    subset(tmp_path / "d.npz", 7)
    frontier(f"npz:{tmp_path / 'd.npz'}", tmp_path / "run")
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert info["classes"] == 10
    assert info["float_accuracy"] > 90


def test_a_label_beyond_the_outputs(tmp_path: Path) -> None:
    subset(tmp_path / "d.npz", 9, shift=3)
    match = re.escape("labels of npz:d.npz must be 0 to 9 for a network of 10 outputs, got 12")
    with pytest.raises(InputError, match=match):
        frontier(f"npz:{tmp_path / 'd.npz'}", tmp_path / "run")


def train(data: str, out: Path, network_name: str = "digits_resnet@0.25") -> str:
    arguments = ["train", network_name, "--data", data, "--epochs", "1", "--batch-size", "32", "--train-images", "64",
                 "--validation-images", "10", "--out", str(out)]  # fmt: skip
    return CliRunner().invoke(app, arguments, catch_exceptions=False).output


def test_training_on_fewer_labels_has_the_outputs_of_the_network(tmp_path: Path) -> None:
    subset(tmp_path / "d.npz", 7)
    train(f"npz:{tmp_path / 'd.npz'}", tmp_path / "run")
    weights = tmp_path / "run" / "model.safetensors"
    assert read_weights(weights)["linear.weight"].shape[0] == 10
    card = read_card(weights)
    assert card is not None
    assert card["classes"] == 10
    train(f"npz:{tmp_path / 'd.npz'},classes=9", tmp_path / "nine")
    assert read_weights(tmp_path / "nine" / "model.safetensors")["linear.weight"].shape[0] == 9


def test_training_refuses_labels_beyond_the_outputs_before_it_begins(tmp_path: Path) -> None:
    subset(tmp_path / "d.npz", 9, shift=3)
    match = re.escape("labels of npz:d.npz must be 0 to 9 for a network of 10 outputs, got 12")
    with pytest.raises(InputError, match=match):
        train(f"npz:{tmp_path / 'd.npz'}", tmp_path / "run")
    assert not (tmp_path / "run" / "epochs.jsonl").exists()
    with pytest.raises(InputError, match=r"labels of npz:d\.npz must be 0 to 8, got 9 at image"):
        train(f"npz:{tmp_path / 'd.npz'},classes=9", tmp_path / "nine")


def test_known_classes_stay_strict() -> None:
    with pytest.raises(InputError, match=re.escape("must have shape (images, classes) = (50, 10), got shape (50, 12)")):
        open_data("digits").evaluator(50)(network("digits_resnet", classes=12))
