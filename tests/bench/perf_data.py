"""Counts samples and losses in a perf.data file (tools/perf/Documentation/perf.data-file-format.txt)."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

__all__ = ["count"]

MAGIC = b"PERFILE2"
HEADER = struct.Struct("<8sQQQQQQ")  # magic, size, attr_size, attrs {offset, size}, data {offset, size}
RECORD = struct.Struct("<IHH")  # struct perf_event_header: type, misc, size
LOST = struct.Struct("<QQ")  # id, lost
# include/uapi/linux/perf_event.h, enum perf_event_type
RECORD_LOST, RECORD_SAMPLE, RECORD_LOST_SAMPLES = 2, 9, 13


def count(path: Path) -> tuple[int, int]:
    """Samples in the file, and events that it says were lost. Raises ValueError where the file is not perf's."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        magic, _, _, _, _, at, size = HEADER.unpack_from(data, 0)
        if magic != MAGIC:
            raise ValueError(f"{path.name}: not a perf.data file")
        n_samples = n_lost = 0
        end = at + size
        header = RECORD.unpack_from
        while at < end:
            kind, _, length = header(data, at)
            if length < RECORD.size:
                raise ValueError(f"{path.name}: a record of {length} bytes at {at}")
            if kind == RECORD_SAMPLE:
                n_samples += 1
            elif kind == RECORD_LOST:
                n_lost += LOST.unpack_from(data, at + RECORD.size)[1]
            elif kind == RECORD_LOST_SAMPLES:
                n_lost += struct.unpack_from("<Q", data, at + RECORD.size)[0]
            at += length
    return n_samples, n_lost
