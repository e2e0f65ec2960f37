"""Small numbers to few bytes: several symbols per byte, then DEFLATE's Huffman code (RFC 1951), and back.

A Huffman code spends at least one bit per symbol, too much for levels that are mostly zero. So as many symbols as
fit go into one byte first: ``base^k <= 256``, first symbol most significant. That also lets the code see that
neighbours are alike, so it ends up within 1 % of the entropy of single symbols, and often below. Symbols of more
than 8 bits go as two planes, all high bytes before all low bytes.
"""

import zlib

import numpy as np
from numpy.typing import NDArray

from slimbit.records.errors import InputError

MOST_SYMBOLS = 1 << 16
"""Two planes of bytes hold no more."""
RAW_DEFLATE = -15
"""zlib's name for DEFLATE without header and checksum; the artifact has its own hashes."""
STRATEGIES = (zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE)
"""The second also sees runs: input channels whose levels are all zero."""


def encode(symbols: NDArray[np.integer], base: int) -> bytes:
    """Bytes from which `decode` gives the symbols back.

    Args:
        symbols: Flat, each from 0 to ``base - 1``.
        base: Number of different symbols, 1 to 65536.

    >>> len(encode(np.zeros(8000, np.int64), 3)) < 20
    True
    """
    raw = _grouped(symbols, base)
    return min((_deflated(raw, strategy) for strategy in STRATEGIES), key=len)


def decode(data: bytes, base: int, *, count: int) -> NDArray[np.integer]:
    """What `encode` was given; never more memory than ``count`` symbols need.

    Args:
        data: From `encode`.
        base: As there.
        count: Number of symbols.

    Raises:
        InputError: ``data`` is damaged, or does not hold exactly ``count`` symbols below ``base``.

    >>> decode(encode(np.array([2, 0, 1, 1]), 3), 3, count=4).tolist()
    [2, 0, 1, 1]
    """
    if not 1 <= base <= MOST_SYMBOLS:
        raise InputError(f"number of symbols must be from 1 to {MOST_SYMBOLS}, got {base}")
    per_byte = symbols_per_byte(base)
    raw = _inflated(data, -(-count // per_byte) if per_byte else 2 * count)
    codes = np.frombuffer(raw, np.uint8)
    if per_byte:
        _check_below(codes, base**per_byte)
        return _digits(base, per_byte)[codes].reshape(-1)[:count]
    symbols = (codes[:count].astype(np.uint16) << 8) | codes[count:]
    _check_below(symbols, base)
    return symbols


def symbols_per_byte(base: int) -> int:
    """The largest ``k`` with ``base^k <= 256``, at most 8; 0 where one byte is too small for one symbol.

    >>> [symbols_per_byte(base) for base in (1, 2, 3, 5, 16, 17, 256, 257)]
    [8, 8, 5, 3, 2, 1, 1, 0]
    """
    return max(k for k in range(9) if base**k <= 256)


def _grouped(symbols: NDArray[np.integer], base: int) -> bytes:
    per_byte = symbols_per_byte(base)
    if not per_byte:
        return (symbols >> 8).astype(np.uint8).tobytes() + (symbols & 255).astype(np.uint8).tobytes()
    rows = np.zeros(-(-len(symbols) // per_byte) * per_byte, np.uint8)
    rows[: len(symbols)] = symbols
    digits = rows.reshape(-1, per_byte)
    # Horner's rule; no intermediate exceeds base^k - 1 <= 255
    codes = np.zeros(len(digits), np.uint8)
    for column in digits.T:
        codes = codes * np.uint8(base & 255) + column
    return codes.tobytes()


def _digits(base: int, per_byte: int) -> NDArray[np.uint8]:
    """Row ``c``: the symbols in byte ``c``."""
    powers = base ** np.arange(per_byte - 1, -1, -1)
    table: NDArray[np.uint8] = (np.arange(base**per_byte)[:, None] // powers % base).astype(np.uint8)
    return table


def _deflated(raw: bytes, strategy: int) -> bytes:
    stream = zlib.compressobj(9, zlib.DEFLATED, RAW_DEFLATE, 9, strategy)
    return stream.compress(raw) + stream.flush()


def _inflated(data: bytes, size: int) -> bytes:
    stream = zlib.decompressobj(RAW_DEFLATE)
    try:
        raw = stream.decompress(data, size + 1)
    except zlib.error as error:
        raise InputError(f"coded levels must be a DEFLATE stream, got a damaged one: {error}") from error
    if len(raw) != size or not stream.eof or stream.unused_data:
        raise InputError(f"coded levels must hold {size} bytes, got {'more' if len(raw) > size else 'another length'}")
    return raw


def _check_below(codes: NDArray[np.integer], bound: int) -> None:
    if codes.size and int(codes.max()) >= bound:
        raise InputError(f"coded levels must be below {bound}, got {int(codes.max())}")
