"""TOML settings: what is accepted, and how a fault is told."""

from pathlib import Path

import pytest

from slimbit.records.config import FrontierConfig, load_config
from slimbit.records.errors import InputError


def written(folder: Path, text: str) -> Path:
    file = folder / "slimbit.toml"
    file.write_text(text)
    return file


def test_everything_can_be_set(tmp_path: Path) -> None:
    found = load_config(
        written(
            tmp_path,
            """
            network = "resnet20-A"
            weights = "net.safetensors"
            data = "cifar10:data,normalize=imagenet"
            input = "3x32x32"
            metric = "esn_analog"
            points = 8
            baselines = false
            calibration_images = 200
            evaluate_images = 1000
            seed = 3
            storage = "sqlite:///x.db"
            likelihood = "gaussian"
            [recipe]
            rounding = "rate_aware"
            statistics = "paired"
            [layout]
            grid = "midtread"
            skip = ["fc"]
            """,
        )
    )
    assert (found.network, found.points, found.baselines, found.layout.skip) == ("resnet20-A", 8, False, ("fc",))
    assert found.recipe.model_dump(exclude_none=True) == {"rounding": "rate_aware", "statistics": "paired"}


def test_options_win_over_the_file(tmp_path: Path) -> None:
    found = load_config(written(tmp_path, "points = 8\nseed = 1")).with_options({"points": 4, "seed": None})
    assert (found.points, found.seed) == (4, 1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("point = 8", r"slimbit\.toml: point must be a known key, got an unknown one; did you mean points"),
        ("[recipe]\nstatistic = 1", r"recipe\.statistic must be a known key.*did you mean statistics"),
        ("[layout]\nsteps = 1", r"layout\.steps must be a known key"),
        ("points = 0", r"points must be greater than or equal to 1, got 0"),
        ("points = '8'", "points must be a valid integer, got '8'"),
        ("points = true", "points must be a valid integer, got True"),
        ("baselines = 1", "baselines must be a valid boolean, got 1"),
        ("metric = 'macs'", "metric must be 'esn_analog', 'esn_digital' or 'esn_filterwise', got 'macs'"),
        ("[recipe]\nrounding = 'up'", r"recipe\.rounding must be 'nearest' or 'rate_aware', got 'up'"),
        ("recipe = 3", "recipe must be"),
        ("[layout]\nskip = [1]", r"layout\.skip\.0 must be a valid string, got 1"),
        ("points = 8\npoints = 9", r"slimbit\.toml must be TOML"),
        ("a = " + "[" * 100_000, r"slimbit\.toml must be TOML"),
        ("points = 1" + " " * (1 << 20), "must have at most 1,048,576 bytes"),
    ],
)
def test_faults_are_told_with_file_and_key(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_config(written(tmp_path, text))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="configuration must exist"):
        load_config(tmp_path / "none.toml")
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="must be UTF-8 text"):
        load_config(tmp_path / "x.toml")


def test_a_wrong_option_is_told_as_one() -> None:
    with pytest.raises(InputError, match="option points must be"):
        FrontierConfig().with_options({"points": 0})
