"""Damaged and hostile versions of files: from flipped bits to values that no program writes, checksums made right."""

import io
import json
import math
import os
import pickle
import re
import sqlite3
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

from isolated import BAIT, MARK

Mutation = Callable[[Random, bytes], bytes]
NUMBERS: tuple[Any, ...] = (
    0, 1, -1, 2, 7, 255, 65536, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**62, 2**63 - 1, 2**63, -(2**63), 2**64, 10**30,
    10**400, 0.0, -0.0, 0.5, -1.5, 1e-320, 1e308, math.nan, math.inf, -math.inf,
)  # fmt: skip
TEXTS: tuple[str, ...] = (
    "", " ", "\0", "\n", "é", "\ud800", "a" * 300, "a" * 100_000, "../../../etc/passwd", "/etc/passwd", "/dev/zero",
    "/dev/stdin", "~nouser/x", "$HOME", "%00", "%s%s%n", "{0}", "[bold]", "[/]", "\x1b[2J", "nan", "inf", "1e999", "0x10",
    "１２", "9" * 5000, "true", "null", f"{BAIT}:build", f"{BAIT}:data", "os:getcwd", "slimbit:cost", f"timm:{BAIT}", "timm:",
    "resnet20", "resnet20@0.01", "resnet20@1e9", "digits", "digits_resnet", "digits_resnet@9999", "vgg7@8", "float64",
    "midtread", "cuda", "xpu:9", "<script>alert(1)</script>", "</script>", "npz:/dev/zero", "images:/proc", "hub:x/y",
    f"__import__('os').system('touch {MARK}')", "sqlite:////proc/x", "postgresql://a:b@c:notaport/d", "0" * 64, "A" * 64,
)  # fmt: skip
JUNK = (
    b"",
    b"\0",
    b"\0" * 64,
    b"\xff" * 8,
    b"[" * 2000,
    b"{",
    b'{"a":' * 2000,
    b"\x80\x02}",
    b"PK\x03\x04",
    b"9" * 5000,
)


def any_value(rng: Random, depth: int = 0) -> Any:
    """Something that JSON can hold, or nearly."""
    kind = rng.randrange(9 if depth < 3 else 6)
    if kind < 2:
        return rng.choice(NUMBERS)
    if kind < 4:
        return rng.choice(TEXTS)
    if kind < 6:
        return rng.choice((None, True, False, [], {}))
    if kind == 6:
        return [any_value(rng, depth + 1)] * rng.choice((1, 2, 3, 100))
    if kind == 7:
        return {rng.choice(TEXTS): any_value(rng, depth + 1) for _ in range(rng.randint(1, 3))}
    value: Any = 1
    for _ in range(rng.choice((5, 70, 900))):
        value = [value] if rng.random() < 0.5 else {"a": value}
    return value


def of_bytes(rng: Random, content: bytes) -> bytes:
    """Bits flipped, parts cut, doubled, moved, overwritten."""
    data = bytearray(content or b"\0")
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        start = rng.randrange(len(data) + 1)
        if rng.random() < 0.4:  # formats keep what matters at both ends
            start = min(len(data), rng.choice((rng.randrange(64), max(0, len(data) - 1 - rng.randrange(200)))))
        length = min(len(data) - start, rng.choice((1, 2, 4, 8, 64, 1000)))
        part, way = slice(start, start + length), rng.randrange(8)
        if way == 0 and start < len(data):
            data[start] ^= 1 << rng.randrange(8)
        elif way == 1:
            data[part] = rng.randbytes(length)
        elif way == 2:
            data[part] = rng.choice((b"\0", b"\xff", b"0", b"9", b"["))[:1] * length
        elif way == 3:
            data[part] = b""
        elif way == 4:
            data[start:start] = data[part] * rng.choice((1, 2, 50))
        elif way == 5:
            data[start:] = b""
        elif way == 6:
            data[start:start] = rng.choice(JUNK)
        else:
            number = rng.choice(
                (0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1, len(data), rng.getrandbits(64))
            )
            data[part] = (number & (1 << 8 * length) - 1 if length <= 8 else number).to_bytes(length, "little")
        data = data or bytearray(b"\0")
    return bytes(data)


def of_text(rng: Random, content: bytes) -> bytes:
    """Numbers and quoted texts in a text replaced."""
    text = content.decode(errors="replace")
    found = list(re.finditer(r'-?\d[\d.e+-]*|"[^"\n]*"|\b(?:true|false|null)\b', text))
    if not found or rng.random() < 0.3:
        return of_bytes(rng, content)
    chosen = rng.choice(found)
    new = json.dumps(any_value(rng)) if rng.random() < 0.8 else rng.choice(TEXTS)
    return (text[: chosen.start()] + new + text[chosen.end() :]).encode(errors="surrogatepass")


def of_json(rng: Random, content: bytes) -> bytes:
    """A value of a JSON text replaced, removed, added, moved."""
    if rng.random() < 0.15:
        return of_bytes(rng, content)
    try:
        data = json.loads(content)
    except ValueError:
        return of_text(rng, content)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        data = _changed(rng, data)
    try:
        return json.dumps(data).encode()
    except RecursionError:  # deeper than Python writes: as deep as it can be read from
        return b"[" * 5000 + content + b"]" * 5000


def of_json_lines(rng: Random, content: bytes) -> bytes:
    """A line changed, doubled, removed."""
    lines = content.split(b"\n")
    place = rng.randrange(len(lines))
    way = rng.randrange(6)
    lines[place : place + 1] = [[], [lines[place]] * 2, *[[of_json(rng, lines[place])]] * 4][way]
    return b"\n".join(lines)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to every value; of long lists to a few."""
    found = [path]
    items = value.items() if isinstance(value, dict) else enumerate(value[:4]) if isinstance(value, list) else ()
    for key, inner in items:
        found += _places(inner, (*path, key))
    return found


def _changed(rng: Random, data: Any) -> Any:
    path = rng.choice(_places(data))
    if not path:
        return any_value(rng) if rng.random() < 0.3 else data
    owner = data
    for step in path[:-1]:
        owner = owner[step]
    key, way = path[-1], rng.randrange(8)
    if way < 4:
        owner[key] = any_value(rng)
    elif way == 4:
        del owner[key]
    elif way == 5:
        (
            owner.__setitem__(rng.choice(TEXTS), 1)
            if isinstance(owner, dict)
            else owner.extend(owner * rng.choice((1, 200)))
        )
    elif way == 6 and isinstance(owner[key], int | float) and not isinstance(owner[key], bool):
        try:
            owner[key] = owner[key] * rng.choice((-1, 0, 0.5, 2, 10, 10**6, 10**12))
        except OverflowError:
            owner[key] = -1
    else:
        other = data
        for step in rng.choice(_places(data)):
            other = other[step]
        owner[key] = json.loads(json.dumps(other))
    return data


def of_toml(rng: Random, content: bytes) -> bytes:
    """Values, keys and tables of a TOML text."""
    lines = content.decode(errors="replace").splitlines()
    way, place = rng.randrange(7), rng.randrange(max(1, len(lines)))
    if way < 3 and lines and "=" in lines[place]:
        key, _, _ = lines[place].partition("=")
        lines[place] = f"{key}= {_toml(rng)}"
    elif way == 3 and lines:
        lines[place] = re.sub(r"\w+", lambda m: m[0][:-1] if rng.random() < 0.5 else m[0] * 2, lines[place], count=1)
    elif way == 4:
        lines.insert(place, rng.choice((
            "[a]", "[[a]]", ".".join("a" * 5000) + " = 1", "[" * 3000, "x = " + "[" * 3000, "x = 2026-13-99", "= 1", '"" = 1',
            "x = " + "9" * 5000, "a = {b = {c = 1}}", "x = '''", "\0", "quant = 1", "[quant]", "[prune.tune.train]",
        )))  # fmt: skip
    elif way == 5 and lines:
        del lines[place]
    else:
        return of_text(rng, content)
    return "\n".join(lines).encode(errors="surrogatepass")


def _toml(rng: Random) -> str:
    value = any_value(rng)
    if isinstance(value, dict) or value is None:
        return rng.choice(
            ("{}", "{a = 1}", "[[1, 2], [3]]", "2026-01-01", "nan", "-inf", "0xFFFFFFFFFFFFFFFFFFFF", "1e400")
        )
    return json.dumps(value).replace("NaN", "nan").replace("Infinity", "inf")


def of_safetensors(rng: Random, content: bytes) -> bytes:
    """Header or values; the header's length made right mostly."""
    way = rng.random()
    if way < 0.25:
        return of_bytes(rng, content)
    length = int.from_bytes(content[:8], "little")
    header, values = content[8 : 8 + length], content[8 + length :]
    if way < 0.35:
        wrong = rng.choice((0, length - 1, length + 1, len(content), 2**32, 2**63, 2**64 - 1))
        return struct.pack("<Q", wrong) + content[8:]
    if way < 0.85:
        header = of_json(rng, header)
    else:
        values = of_bytes(rng, values)
    return struct.pack("<Q", len(header)) + header + values


def of_npy(rng: Random, content: bytes) -> bytes:
    """Header of an array, its length made right, or its values."""
    if rng.random() < 0.3:
        return of_bytes(rng, content)
    length = struct.unpack("<H", content[8:10])[0]
    header = content[10 : 10 + length].decode("latin-1")
    way = rng.randrange(5)
    if way == 0:
        sizes = [
            rng.choice((0, 1, -1, 3, 2**31, 2**40, 10**30, "'a'", "1.5", "None")) for _ in range(rng.randint(0, 40))
        ]
        header = re.sub(r"'shape': \([^)]*\)", f"'shape': ({', '.join(map(str, sizes))}{',' * bool(sizes)})", header)
    elif way == 1:
        kinds = (
            "|O",
            "<f8",
            "<i8",
            ">i4",
            "<c16",
            "|S5",
            "<U4",
            "|V9",
            "<M8[ns]",
            "|b1",
            "x",
            "<f2",
            "<f99",
            "|S0",
            "|V0",
        )
        header = re.sub(r"'descr': '[^']*'", f"'descr': {rng.choice(kinds)!r}", header)
    elif way == 2:
        header = header.replace("False", rng.choice(("True", "1", "None", "__import__('os')")))
    elif way == 3:
        header = rng.choice(
            ("{}", "[]", "{" * 500, "(" * 3000, "9" * 5000, header * 3, "{'descr': [('a', '<f4')], " + header[1:])
        )
    else:
        header = of_bytes(rng, header.encode("latin-1")).decode("latin-1")
    raw = header.encode("latin-1", "replace")[:65000]
    return content[:8] + struct.pack("<H", len(raw)) + raw + content[10 + length :]


def of_pickle(rng: Random, content: bytes) -> bytes:
    """Instructions of a pickle: calls, nested keys, numbers that ask for memory."""
    calls = (
        f"cos\nsystem\n(S'touch {MARK}'\ntR", f"c{BAIT}\nbuild\n(tR", "cbuiltins\neval\n(S'1'\ntR", "cbuiltins\ngetattr\n",
        "cnumpy\nndarray\n(tR", "cbuiltins\nbytearray\n(I4000000000\ntR", "ctorch\nzeros\n(I4000000000\ntR",
        "c_codecs\nencode\n(S'a'\nS'bz2'\ntR", "ccollections\nOrderedDict\n(tR", "cos\nmkdir\n(S'x'\ntR",
    )  # fmt: skip
    way = rng.randrange(6)
    place = rng.randrange(2, max(3, len(content)))
    if way == 0:
        return content[:2] + rng.choice(calls).encode() + (b"0" if rng.random() < 0.5 else b"") + content[2:]
    if way == 1:
        return content[:place] + rng.choice(calls).encode() + content[place:]
    if way == 2:
        value: Any = 1
        for _ in range(rng.choice((2, 60, 200))):
            value = {(value,): 1} if not isinstance(value, dict) else {tuple(value): value}
        return pickle.dumps({(("a",),): value, b"data": value, b"labels": [0]}, protocol=2)
    if way == 3:
        asks = (
            b"r\xff\xff\xff\x7f",
            b"\x8a\xff",
            b"\x8b\xff\xff\xff\x7f",
            b"B\xff\xff\xff\x7f",
            b"X\xff\xff\xff\x7f",
            b"\x96" + b"\xff" * 8,
        )
        return content[:place] + rng.choice(asks) + content[place:]
    if way == 4:
        return b"\x80\x02" + b"(" * rng.choice((10, 100_000)) + b"]" * 1000 + content[2:]
    return of_bytes(rng, content)


def of_zip(rng: Random, content: bytes) -> bytes:
    """A member changed with its checksum, renamed, left out, compressed; or the bytes."""
    if rng.random() < 0.25 or not zipfile.is_zipfile(io.BytesIO(content)):
        return of_bytes(rng, content)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    place, way = rng.randrange(len(members)), rng.randrange(10)
    name, inner = members[place]
    packing = zipfile.ZIP_STORED
    if way == 0:
        del members[place]
    elif way == 1:
        members[place] = (rng.choice(TEXTS[6:12]) or "x", inner)
    elif way == 2:
        members.append((name, inner))
    elif way == 3:
        packing, members[place] = zipfile.ZIP_DEFLATED, (name, inner + bytes(1 << 27))
    else:
        members[place] = (name, by_name(name)(rng, inner))
    stream = io.BytesIO()
    import warnings

    with warnings.catch_warnings(), zipfile.ZipFile(stream, "w", packing) as archive:
        warnings.simplefilter("ignore")  # of names that come twice
        for name, inner in members:
            archive.writestr(zipfile.ZipInfo(name.replace("\0", "0")[:60000] or "x"), inner, packing)
    return stream.getvalue()


def of_sqlite(rng: Random, content: bytes) -> bytes:
    """A cell, a row, a table or a column of a database; or its bytes."""
    if rng.random() < 0.25:
        return of_bytes(rng, content)
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "x.db"
        file.write_bytes(content)
        with closing(sqlite3.connect(file)) as connection:
            tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type='table'")]
            for _ in range(rng.choice((1, 1, 2))):
                _change_table(rng, connection, rng.choice(tables))
            connection.commit()
        return file.read_bytes()


def _change_table(rng: Random, connection: sqlite3.Connection, table: str) -> None:
    columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
    rows = [row[0] for row in connection.execute(f"SELECT rowid FROM {table}")]
    column, way = rng.choice(columns), rng.randrange(8)
    value = any_value(rng)
    if column.endswith("_json") and rng.random() < 0.8:
        old = [row[0] for row in connection.execute(f"SELECT {column} FROM {table}")]
        value = of_json(rng, rng.choice(old).encode()).decode(errors="replace") if old else json.dumps(value)
    if isinstance(value, list | dict) or (isinstance(value, int) and abs(value) >= 2**63):
        value = json.dumps(value)
    if isinstance(value, str):
        value = value.encode(errors="replace").decode()
    try:
        if way < 5 and rows:
            where = f"WHERE rowid = {rng.choice(rows)}" if rng.random() < 0.8 else ""
            connection.execute(f"UPDATE {table} SET {column} = ? {where}", (value,))
        elif way == 5 and rows:
            connection.execute(f"DELETE FROM {table} WHERE rowid = {rng.choice(rows)}")
        elif way == 6:
            connection.execute(
                rng.choice((f"DROP TABLE {table}", f"ALTER TABLE {table} RENAME TO other", f"DELETE FROM {table}"))
            )
        else:
            connection.execute(f"ALTER TABLE {table} RENAME COLUMN {column} TO other")
    except sqlite3.Error:
        connection.execute(f"DELETE FROM {table}")


def of_png(rng: Random, content: bytes) -> bytes:
    """A chunk of a picture with its checksum made right, sizes above all."""
    if rng.random() < 0.3 or content[:4] != b"\x89PNG":
        return of_bytes(rng, content)
    chunks, place = [], 8
    while place < len(content):
        length = struct.unpack(">I", content[place : place + 4])[0]
        chunks.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + length]))
        place += 12 + length
    k = rng.randrange(len(chunks))
    name, body = chunks[k]
    if rng.random() < 0.4:
        name, body = (
            b"IHDR",
            struct.pack(">II", *rng.choices((0, 1, 8, 5000, 30000, 2**31 - 1), k=2)) + chunks[0][1][8:],
        )
        k = 0
    elif rng.random() < 0.3:
        name, body = b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 26))
    else:
        body = of_bytes(rng, body)
    chunks[k] = (name, body)
    return content[:8] + b"".join(
        struct.pack(">I", len(b)) + n + b + struct.pack(">I", zlib.crc32(n + b)) for n, b in chunks
    )


def of_onnx(rng: Random, content: bytes) -> bytes:
    """Fields of the graph: operators, attributes, names, shapes, stored tensors."""
    import onnx
    from google.protobuf.message import DecodeError

    if rng.random() < 0.25:
        return of_bytes(rng, content)
    try:
        model = onnx.load_from_string(content)
    except DecodeError:
        return of_bytes(rng, content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        _change_message(rng, model)
    try:
        return bytes(model.SerializeToString())
    except (ValueError, DecodeError):
        return of_bytes(rng, content)


def _messages(message: Any) -> list[Any]:
    found = [message]
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for inner in value if field.is_repeated else (value,):
                found += _messages(inner)
    return found


OPERATORS = (
    "Conv", "MatMul", "Gemm", "Relu", "Reshape", "Transpose", "Add", "Loop", "If", "Scan", "Constant", "Shape", "Concat",
    "ConvTranspose", "Quant", "QuantizeLinear", "DequantizeLinear", "QLinearConv", "Expand", "Tile", "Range", "Pad", "Resize",
    "ConstantOfShape", "Einsum", "LSTM", "Unknown", "Slice", "Gather", "Cast", "Squeeze", "Flatten", "Split", "Identity",
)  # fmt: skip


def _change_message(rng: Random, model: Any) -> None:
    message = rng.choice(_messages(model))
    fields = [field for field, _ in message.ListFields()] or list(message.DESCRIPTOR.fields)
    field = rng.choice(fields)
    is_list = field.is_repeated
    value = getattr(message, field.name)
    new: Any = None
    if field.cpp_type in (field.CPPTYPE_INT32, field.CPPTYPE_INT64, field.CPPTYPE_UINT64, field.CPPTYPE_UINT32):
        new = rng.choice((0, 1, 2, 3, 7, 16, 21, 255, 2**31 - 1, 2**40, 2**62, -1, -(2**31)))
    elif field.cpp_type in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        new = rng.choice((0.0, -1.0, math.nan, math.inf, 1e30))
    elif field.cpp_type == field.CPPTYPE_STRING:
        names = [
            text
            for one in _messages(model)
            for f, text in one.ListFields()
            if f.cpp_type == f.CPPTYPE_STRING and isinstance(text, str)
        ]
        inputs = [name for node in model.graph.node for name in (*node.input, *node.output)]
        text = rng.choice((*TEXTS[6:16], *OPERATORS, *names, *inputs, "", "", "location"))
        new = text.encode() if field.type == field.TYPE_BYTES else text
        if field.type == field.TYPE_BYTES and isinstance(value, bytes) and rng.random() < 0.7:
            new = of_bytes(rng, value)
    try:
        if field.name == "op_type":
            message.op_type = rng.choice(OPERATORS)
        elif is_list and (new is None or rng.random() < 0.4):
            if len(value) and rng.random() < 0.5:
                del value[rng.randrange(len(value))]
            elif len(value):
                value.extend([value[rng.randrange(len(value))]] * rng.choice((1, 1, 3, 1000)))
        elif is_list and len(value):
            value[rng.randrange(len(value))] = new
        elif new is not None:
            setattr(message, field.name, new)
        elif not is_list:
            message.ClearField(field.name)
    except (TypeError, ValueError):
        message.ClearField(field.name)


def of_place(rng: Random, file: Path) -> str:
    """Something else where a file belongs; says what."""
    content = file.read_bytes()
    file.unlink()
    way = rng.randrange(8)
    if way == 0:
        os.mkfifo(file)
    elif way == 1:
        file.mkdir()
    elif way == 2:
        file.symlink_to("/dev/zero")
    elif way == 3:
        file.symlink_to(file.name)  # to itself
    elif way == 4:
        with file.open("wb") as stream:
            stream.write(content)
            stream.truncate(rng.choice((1 << 30, 1 << 36)))
    elif way == 5:
        file.write_bytes(b"")
    elif way == 6:
        file.symlink_to("/dev/stdin")
    return ("a pipe", "a folder", "/dev/zero", "a link to itself", "64 GB of zeros", "nothing", "/dev/stdin", "gone")[
        way
    ]


BY_SUFFIX: dict[str, Mutation] = {
    ".json": of_json, ".jsonl": of_json_lines, ".toml": of_toml, ".safetensors": of_safetensors, ".npz": of_zip,
    ".npy": of_npy, ".pth": of_zip, ".pt2": of_zip, ".pkl": of_pickle, ".pickle": of_pickle, ".db": of_sqlite,
    ".png": of_png, ".onnx": of_onnx, ".bin": of_bytes, ".jpg": of_bytes,
}  # fmt: skip


def by_name(name: str) -> Mutation:
    """The mutation for a kind of file."""
    return BY_SUFFIX.get(Path(name).suffix.lower(), of_bytes)
