"""Records of signal and noise as JSON lines: one epoch per line, whole lines only."""

import json
import math
from pathlib import Path
from typing import Any

from slimbit.records.errors import InputError
from slimbit.records.files import parse_json, read_regular
from slimbit.records.signal import EpochSignal
from slimbit.records.text import printable

LARGEST_FILE = 1 << 30
"""Bytes; an epoch of a network of ten thousand filters has about half a million."""


def signal_line(record: EpochSignal) -> str:
    """One line of the file; a number that is not finite becomes null.

    >>> from slimbit.records.signal import LayerSignal
    >>> powers = {"filter_signal": (4.0,), "filter_noise": (1.0,)}
    >>> layer = LayerSignal(name="a", epoch=1, nonzero_weights=1, positions=1, **powers)
    >>> signal_line(EpochSignal(epoch=1, iterations=9, layers=(layer,)))[:44]
    '{"epoch": 1, "iterations": 9, "layers": [{"l'
    """
    data = record.to_dict()
    for row in data["layers"]:
        for name in ("filter_signal", "filter_noise"):
            row[name] = [value if math.isfinite(value) else None for value in row[name]]
    return json.dumps(data, allow_nan=False) + "\n"


def read_signal(path: str | Path) -> tuple[EpochSignal, ...]:
    """Read the epochs that `slimbit.training.writers.JsonLinesWriter` wrote, in order.

    A last line without its end is being written, or was when the machine went down: it is not read. What was not
    finite is nan.

    Args:
        path: The file.

    Raises:
        InputError: There is no such file, or a line of it is damaged; the sentence names both.
    """
    content = read_regular(path, "signal file", limit=LARGEST_FILE)
    lines = content.split(b"\n")[:-1]
    records: list[EpochSignal] = []
    for number, line in enumerate(lines, 1):
        where = f"line {number} of {path}"
        record = _record(line, where)
        if records and record.epoch <= records[-1].epoch:
            raise InputError(f"{where} must be of a later epoch than {records[-1].epoch}, got {record.epoch}")
        records.append(record)
    return tuple(records)


def _record(line: bytes, where: str) -> EpochSignal:
    try:
        data = parse_json(line, "it")
        for row in data["layers"]:
            for name in ("filter_signal", "filter_noise"):
                row[name] = [_number(value) for value in row[name]]
        record = EpochSignal.from_dict(data)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else printable(str(error))
        raise InputError(f"{where} must be a record of one epoch in JSON, got {reason}") from error
    _check(record, where)
    return record


def _number(value: Any) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} where a number belongs")
    return float(value)


def _check(record: EpochSignal, where: str) -> None:
    if record.epoch < 1 or record.iterations < 1:
        counted = f"epoch {record.epoch}, iterations {record.iterations}"
        raise InputError(f"{where} must count epochs and iterations from 1, got {counted}")
    names = [row.name for row in record.layers]
    if len(set(names)) < len(names):
        raise InputError(f"{where} must hold each layer once, got {printable(', '.join(names))}")
    for row in record.layers:
        name = printable(row.name)
        if row.epoch != record.epoch:
            raise InputError(f"{where} must be of one epoch, got {record.epoch} and {row.epoch} at layer {name}")
        if len(row.filter_signal) != len(row.filter_noise) or not row.filter_signal:
            counts = f"{len(row.filter_signal)} and {len(row.filter_noise)}"
            raise InputError(f"{where} must hold as many signals as noises of layer {name}, got {counts}")
        if any(value < 0 for value in (row.nonzero_weights, row.positions or 0, *row.filter_signal, *row.filter_noise)):
            raise InputError(f"{where} must hold no negative numbers, got some at layer {name}")
