"""Bounded readers: size, nesting, kind of file; every refusal is one sentence."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from slimbit.records.errors import InputError
from slimbit.records.files import (
    DEEPEST,
    check_regular,
    parse_json,
    parse_toml,
    read_json,
    read_regular,
    read_text,
    read_toml_table,
)


def test_what_is_in_bounds_is_read(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"12345")
    assert read_regular(file, "file", limit=5) == b"12345"
    assert check_regular(file, "file", limit=5) == 5
    assert read_regular(file, "file", limit=2**62) == b"12345"  # and takes no memory for that many
    file.write_text('{"a": "ü"}', encoding="utf-8")
    assert read_json(file, "file") == {"a": "ü"}
    file.write_text("a = 1")
    assert read_toml_table(file, "file") == {"a": 1}


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    start = time.monotonic()
    for name, rule in (
        ("pipe", "must be a file, got .*pipe, which is a pipe or a device"),
        ("link", "which is a pipe or a device"),
        (".", "which is a folder"),
        ("none", "thing must exist, got none at .*none"),
        ("pipe/inside", "thing must exist"),
        ("a" * 5000, "thing must be readable, got .*File name too long"),
        ("null\0byte", "thing must be readable, got .*null byte"),
    ):
        with pytest.raises(InputError, match=rule) as raised:
            read_regular(tmp_path / name, "thing", limit=10)
        assert len(str(raised.value)) < 500
    with pytest.raises(InputError, match="which is a pipe or a device"):
        read_regular("/dev/zero", "thing", limit=10)
    assert time.monotonic() - start < 5


def test_a_pipe_that_takes_the_place_of_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr("slimbit.records.files.check_regular", lambda *_, **__: 0)
    with pytest.raises(InputError, match="which is a pipe or a device"):
        read_regular(tmp_path / "pipe", "thing", limit=10)


def test_one_byte_too_many_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"123456")
    with pytest.raises(InputError, match=r"thing must have at most 5 bytes, got .* with 6"):
        read_regular(file, "thing", limit=5)
    file.write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"thing must be UTF-8 text, got .*: invalid start byte at byte 0"):
        read_text(file, "thing")


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


def test_nesting_is_bounded_and_brackets_in_text_are_not_nesting() -> None:
    assert parse_json(nested(DEEPEST), "x") == json.loads(nested(DEEPEST))
    words = {'a\\"[': "[" * 1000 + "\\" + '"' + "{" * 1000, "b": [[]]}
    assert parse_json(json.dumps(words), "x") == words
    assert parse_json("[" + "[]," * 5000 + "[]]", "x") == [[]] * 5001
    assert parse_toml(f"a = {nested(DEEPEST - 1)}", "x")
    with pytest.raises(InputError, match="x must be nested at most 64 levels deep"):
        parse_toml(f"a = {nested(DEEPEST + 1)}", "x")


LARGE = 2_000_000
TEXTS: dict[str, tuple[Callable[[str, str], object], str, str]] = {
    "lists": (parse_json, "[" * LARGE, "nested at most 64"),
    "closed lists": (parse_json, nested(65), "nested at most 64"),
    "tables": (parse_json, '{"a":' * LARGE, "nested at most 64"),
    "quotes": (parse_json, "[" * 100 + '"' + '\\"' * LARGE, "nested at most 64"),
    "digits": (parse_json, "9" * 5000, "must be complete JSON, got Exceeds the limit"),
    "half": (parse_json, '{"a": ', "must be complete JSON, got Expecting value"),
    "TOML lists": (parse_toml, "a = " + "[" * LARGE, "must be TOML, got .*recursion"),
    "TOML dots": (parse_toml, "a." * 60_000 + "b = 1", "keys of at most 64 parts"),
    "TOML dots inside": (parse_toml, "x = {" + "a . " * 60_000 + "b = 1}", "keys of at most 64 parts"),
    "TOML dots in a header": (parse_toml, "[" + "'a'." * 60_000 + "b]", "keys of at most 64 parts"),
    "TOML digits": (parse_toml, "a = " + "9" * 5000, "must be TOML, got Exceeds the limit"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_texts_made_to_hurt_are_refused_at_once(name: str) -> None:
    parse, text, rule = TEXTS[name]
    start = time.monotonic()
    with pytest.raises(InputError, match=rule) as raised:
        parse(text, "x")
    assert time.monotonic() - start < 10
    assert len(str(raised.value)) < 300
