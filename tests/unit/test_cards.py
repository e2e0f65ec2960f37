"""Model cards beside weights and inside safetensors files."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from slimbit.records.errors import InputError
from slimbit.zoo import open_data, read_card


def weights(folder: Path, metadata: dict[str, str] | None = None) -> Path:
    file = folder / "net.safetensors"
    save_file({"w": np.zeros(1, np.float32)}, file, metadata=metadata)
    return file


def test_no_card(tmp_path: Path) -> None:
    assert read_card(weights(tmp_path)) is None
    assert read_card(tmp_path / "absent.safetensors") is None
    assert read_card(tmp_path / "absent.pth") is None


def test_card_in_metadata(tmp_path: Path) -> None:
    card = {"normalize": {"mean": [0.5], "std": [0.25]}, "size": 224, "accuracy": 91.73}
    assert read_card(weights(tmp_path, {"slimbit": json.dumps(card), "format": "pt"})) == card
    assert read_card(weights(tmp_path, {"normalize": "imagenet"})) == {"normalize": "imagenet"}


def test_the_file_beside_wins(tmp_path: Path) -> None:
    file = weights(tmp_path, {"normalize": "imagenet"})
    Path(f"{file}.card.json").write_text('{"normalize": "half"}')
    card = read_card(file)
    assert card == {"normalize": "half"}
    assert open_data("digits", card=card).normalization.mean == (0.5,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be complete JSON"),
        ("[]", "must be a table"),
        ('{"normalise": "none"}', "only known keys, got normalise; did you mean normalize"),
        ('{"normalize": "imagnet"}', "normalize must be one of .*did you mean imagenet"),
        ('{"normalize": {"mean": [0.5, 0.5], "std": [0.5]}}', "as many numbers in mean as in std"),
        ('{"normalize": {"mean": [0.5], "std": [0]}}', "normalize.*greater than 0"),
        ('{"normalize": {"mean": [NaN], "std": [1]}}', "must be complete JSON, got the number NaN"),
        ('{"size": "224"}', "size of model card .* must be a valid integer"),
        ('{"size": 0}', "must be greater than or equal to 1"),
        ("[" * 100_000, "must be nested at most"),
    ],
)
def test_bad_card(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "net.pth.card.json").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_card(tmp_path / "net.pth")
    assert "net.pth.card.json" in str(caught.value)
    assert len(str(caught.value)) < 800


def test_unreadable_cards(tmp_path: Path) -> None:
    (tmp_path / "net.pth.card.json").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="model card must be UTF-8 text"):
        read_card(tmp_path / "net.pth")
    (tmp_path / "net.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(InputError, match="must be a complete safetensors file"):
        read_card(tmp_path / "net.safetensors")
