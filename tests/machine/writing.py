"""Processes that write traces with the real writer, to be killed: `python -m tests.machine.writing`.

For each line "DIRECTORY ACKNOWLEDGED SEED" on stdin a child is forked, whose pid is answered. It appends rows that count
from 0, in tables `counters` and `pages` (packed or not), rolls often, and after each sync writes to the file ACKNOWLEDGED how many rows
are safe by now; after some rounds it closes the trace.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from collect.journal import TraceWriter
from collect.page_events import PACKED_TABLE, pack
from collect.records import PAGE_EVENT
from collect.schema import TABLES

ROLL_BYTES, RESERVE_BYTES = 1 << 15, 1 << 20
N_ROUNDS = 120


def rows(name: str, first: int, n: int) -> pa.Table:
    """Rows `first` to `first + n - 1`: their number is their time and, in `counters`, their value."""
    numbers = np.arange(first, first + n, dtype=np.uint64)
    columns: dict[str, Any] = {field.name: np.zeros(n, field.type.to_pandas_dtype()) for field in TABLES[name]}
    columns["ts_ns"] = numbers + np.uint64(1)
    if name == "counters":
        columns |= {"counter": ["test/n"] * n, "value": numbers}
    return pa.table(columns, schema=TABLES[name])


def packed(first: int, n: int) -> pa.RecordBatch:
    """As `rows` of `pages`, packed."""
    events = np.zeros(n, PAGE_EVENT)
    events["ts"] = np.arange(first + 1, first + n + 1)
    return pack(events)


def write(directory: Path, acknowledged: Path, seed: int, manifest: dict[str, Any]) -> None:
    """Write and close one trace, saying after each sync what is safe."""
    chance = random.Random(seed)
    writer = TraceWriter(directory, manifest, roll_bytes=ROLL_BYTES, reserve_bytes=RESERVE_BYTES)
    said = os.open(acknowledged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    n = 0
    for _ in range(N_ROUNDS):
        for _ in range(chance.randrange(4)):
            size = chance.randrange(1, 400)
            writer.append("counters", rows("counters", n, size))
            n_packed = chance.randrange(size + 1)  # the rest are rows at once, as those in scope of regions are
            writer.append(PACKED_TABLE, packed(n, n_packed))
            writer.append("pages", rows("pages", n + n_packed, size - n_packed))
            n += size
        writer.sync()
        os.pwrite(said, n.to_bytes(8, "little"), 0)
    writer.close(manifest)
    os.pwrite(said, n.to_bytes(8, "little"), 0)


def main(manifest: dict[str, Any]) -> None:
    for line in sys.stdin:
        directory, acknowledged, seed = line.split()
        pid = os.fork()
        if pid == 0:
            try:
                write(Path(directory), Path(acknowledged), int(seed), manifest)
                signal.pause()
            finally:
                os._exit(1)
        print(pid, flush=True)
        os.waitpid(pid, 0)
        print("gone", flush=True)


if __name__ == "__main__":
    import json

    main(json.loads(sys.argv[1]))
