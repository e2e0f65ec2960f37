"""Records of signal and noise as JSON lines: one epoch per line, whole lines only."""

from pathlib import Path

from slimbit.records.codec import pretty
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
    return pretty(record.to_dict(), indent=None) + "\n"


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
    record = EpochSignal.from_dict(parse_json(line, where), where=where)
    _check(record, where)
    return record


def _check(record: EpochSignal, where: str) -> None:
    names = [row.name for row in record.layers]
    if len(set(names)) < len(names):
        raise InputError(f"{where} must hold each layer once, got {printable(', '.join(names))}")
    for row in record.layers:
        name = printable(row.name)
        if row.epoch != record.epoch:
            raise InputError(f"{where} must be of one epoch, got {record.epoch} and {row.epoch} at layer {name}")
        if len(row.filter_signal) != len(row.filter_noise):
            counts = f"{len(row.filter_signal)} and {len(row.filter_noise)}"
            raise InputError(f"{where} must hold as many signals as noises of layer {name}, got {counts}")
