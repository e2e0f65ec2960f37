"""Damaged, wrong and hostile hardware files: one sentence with the file and the key, nothing else."""

from pathlib import Path

import pytest

from slimbit.measure.hardware import load_hardware
from slimbit.records.errors import InputError

MODE = "[[mode]]\nweight_bits = 8\nactivation_bits = 8\ncost_per_mac = 1.0\n"
GOOD = 'name = "edge"\n' + MODE


def bits(value: str) -> str:
    return GOOD.replace("weight_bits = 8", f"weight_bits = {value}")


def cost(value: str) -> str:
    return GOOD.replace("1.0", value)


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_hardware(path)
    message = str(caught.value)
    assert path.name in message
    assert "\n" not in message
    assert len(message) < 600
    return message


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "edge.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_the_good_file_is_good(tmp_path: Path) -> None:
    assert load_hardware(written(tmp_path, GOOD)).name == "edge"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # unknown keys
        ("colour = 'red'\n" + GOOD, "must hold only known keys, got colour; known: name, unit"),
        ("skip_zeros = true\n" + GOOD, "got skip_zeros; did you mean skips_zeros?"),
        (GOOD + "wieght_bits = 3\n", r"got mode.0.wieght_bits; did you mean weight_bits"),
        (GOOD + "[cycles]\nx = 1\n", "got cycles"),
        # missing keys
        ("", "must hold mode, got none"),
        ("mode = []\n", "must be a list of at least 1, got []"),
        ("[[mode]]\nweight_bits = 8\ncost_per_mac = 1\n", "must hold mode.0.activation_bits, got none"),
        ("[[mode]]\n", "must hold mode.0.weight_bits, got none"),
        # wrong types: no number hides in a string or a boolean
        (bits('"8"'), "must be a valid integer, got '8'"),
        (bits("true"), "must be a valid integer"),
        (bits("8.0"), "must be a valid integer"),
        (cost("'1.0'"), "must be a valid number, got '1.0'"),
        (cost("[1.0]"), "must be a valid number, got [1.0]"),
        (cost("2024-01-01"), "finite numbers and text only, got datetime.date(2024, 1, 1) at mode.0.cost_per_mac"),
        ("skips_zeros = 1\n" + GOOD, "must be a valid boolean, got 1"),
        ("mode = 3\n", "must be a list, got 3"),
        ("mode = [3]\n", "must be a table with the fields of Mode, got 3"),
        ("name = 3\n" + MODE, "must be a valid string, got 3"),
        # numbers out of range
        (bits("0"), "must be greater than or equal to 1"),
        (bits("-8"), "got -8"),
        (bits("65"), "must be less than or equal to 64, got 65"),
        (bits(f"{10**100}"), "must be"),
        (cost("0"), "must be greater than 0, got 0"),
        (cost("-1"), "must be greater than 0, got -1"),
        (cost("nan"), "finite numbers and text only, got nan"),
        (cost("inf"), "finite numbers and text only, got inf"),
        (cost("1e999"), "finite numbers and text only, got inf"),
        (cost(str(10**400)), "must be"),
        (GOOD + "weight_slice_bits = 0\n", "must be greater than or equal to 1"),
        (GOOD + "picojoules_per_mac = -0.3\n", "must be greater than 0, got -0.3"),
        (
            "skips_zeros = true\nzero_overhead = -1\n" + GOOD,
            "must be greater than or equal to 0",
        ),
        # contradictions
        ("zero_overhead = 0.5\n" + GOOD, "zero_overhead must come with skips_zeros = true"),
        (GOOD + "picojoules_per_mac = 1\n" + MODE, "picojoules_per_mac must be in every [[mode]] or in none"),
        ('name = "simd"\n' + MODE, "name must not be the name of a built-in model, got 'simd'"),
        # texts that would do things to a terminal or a table
        ('name = "\\u001b[2J"\n' + MODE, "name must be one line of printable text"),
        ('name = "a\\nb"\n' + MODE, "name must be one line of printable text"),
        ('name = ""\n' + MODE, "must be text of at least 1 characters"),
        (f'name = "{"x" * 81}"\n' + MODE, "must be text of at most 80 characters"),
        # damaged files
        (GOOD[:-4] + "\n", "must be TOML, got Invalid value"),
        (GOOD + "[[mode]\n", "must be TOML"),
        (GOOD + MODE.partition("\n")[2], "must be TOML, got Cannot overwrite a value"),
        (b'name = "\xff\xfe"\n' + MODE.encode(), "must be UTF-8 text"),
        (b"\x00\x01\x02\x80", "must be UTF-8 text"),
        ("{}", "must be TOML"),
        ("a = " + "[" * 100_000, "must be TOML, got maximum recursion"),
        ("a = " + "9" * 10_000, "must be TOML, got Exceeds the limit"),
        ("#" * 1_000_001, "must have at most 1,000,000 bytes"),
        (MODE * 4097, "must be a list of at most 4096, got [{"),
    ],
)
def test_refused_with_file_and_key(text: str | bytes, message: str, tmp_path: Path) -> None:
    assert message in refusal(written(tmp_path, text))


def test_missing_file(tmp_path: Path) -> None:
    assert "hardware model must exist, got none at" in refusal(tmp_path / "nowhere.toml")


def test_folder(tmp_path: Path) -> None:
    folder = tmp_path / "edge.toml"
    folder.mkdir()
    assert "hardware model must be a file" in refusal(folder)


def test_dangling_link(tmp_path: Path) -> None:
    link = tmp_path / "edge.toml"
    link.symlink_to(tmp_path / "gone")
    assert "hardware model must exist" in refusal(link)


def test_every_cut_is_refused_or_still_a_model(tmp_path: Path) -> None:
    """A file cut anywhere never ends in anything but a model or an `InputError`."""
    outcomes = set()
    for end in range(len(GOOD)):
        path = written(tmp_path, GOOD[:end])
        try:
            load_hardware(path)
            outcomes.add("model")
        except InputError:
            outcomes.add("refused")
    assert outcomes == {"model", "refused"}


def test_nothing_in_the_file_runs(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    code = f"__import__('pathlib').Path('{trap}').touch()"
    refusal(written(tmp_path, cost(f'"{code}"')))
    load_hardware(written(tmp_path, f'name = "{code[:40]}"\n' + MODE))
    assert not trap.exists()
