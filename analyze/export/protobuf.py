"""Protocol buffers in bulk: many messages of one shape as the rows of one byte array, without a loop per message.

All rows of a call have the same length: a varint is written with as many bytes as the largest value of its column needs, and
smaller ones are padded with continuation bytes, which the encoding allows (protobuf.dev/programming-guides/encoding, "Base
128 Varints": readers take up to ten bytes). So lengths of nested messages are constants, and a batch is a few array operations.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["Part", "integers", "message", "packed_rows", "text", "varint"]

Part = bytes | npt.NDArray[np.uint8]
"""A piece of every row: the same bytes in all of them, or an array of shape (rows, width)."""

_MORE = np.uint8(0x80)


def varint(value: int) -> bytes:
    """One number (0 <= value < 2**64) in the fewest bytes."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def integers(number: int, values: npt.NDArray[np.unsignedinteger] | npt.NDArray[np.signedinteger] | int) -> list[Part]:
    """Field `number` of type uint64, int64 or enum, one value a row, or the same in all of them."""
    tag = varint(number << 3)
    if isinstance(values, int):
        return [tag + varint(values & 0xFFFF_FFFF_FFFF_FFFF)]
    words = values.astype(np.uint64)
    largest = int(words.max()) if len(words) else 0
    width = max(1, -(-largest.bit_length() // 7))
    shifts = np.arange(width, dtype=np.uint64) * np.uint64(7)
    digits = ((words[:, None] >> shifts) & np.uint64(0x7F)).astype(np.uint8)
    digits[:, :-1] |= _MORE
    return [tag, digits]


def text(number: int, value: str) -> list[Part]:
    """Field `number` of type string, the same in all rows."""
    encoded = value.encode("utf-8", "replace")
    return [varint(number << 3 | 2) + varint(len(encoded)) + encoded]


def message(number: int, *fields: Sequence[Part]) -> list[Part]:
    """Field `number` that is a message of these fields."""
    parts = [part for field in fields for part in field]
    return [varint(number << 3 | 2) + varint(sum(map(_width, parts))), *parts]


def packed_rows(parts: Sequence[Part], n_rows: int = 1) -> npt.NDArray[np.uint8]:
    """The rows, shape (n_rows, length of a row)."""
    rows = np.empty((n_rows, sum(map(_width, parts))), np.uint8)
    at = 0
    for part in parts:
        width = _width(part)
        rows[:, at : at + width] = np.frombuffer(part, np.uint8) if isinstance(part, bytes) else part
        at += width
    return rows


def _width(part: Part) -> int:
    return len(part) if isinstance(part, bytes) else part.shape[1]
