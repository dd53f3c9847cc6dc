"""Totals that the kernel keeps of itself: direct map counters, meminfo, free blocks by order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from collect.schema import TABLES

__all__ = ["counter_rows", "read_counters"]

PROC = Path("/proc")


def read_counters(proc: Path = PROC) -> dict[str, int]:
    """The kernel's counters now, by the names of the table `counters`.

    `vmstat/direct_map_*` is absent before 5.13 (splits, "x86/mm: Tracking linear mapping split events") and 6.15
    (collapses); `buddyinfo/NODE/ZONE/ORDER` counts free blocks.
    """
    found: dict[str, int] = {}
    for line in (proc / "vmstat").read_text().splitlines():
        if line.startswith("direct_map_"):
            name, value = line.split()
            found[f"vmstat/{name}"] = int(value)
    for line in (proc / "meminfo").read_text().splitlines():
        if line.startswith(("DirectMap", "MemFree:", "Cached:")):
            name, value = line.split()[:2]
            found[f"meminfo/{name.rstrip(':')}"] = int(value)
    for line in (proc / "buddyinfo").read_text().splitlines():
        words = line.replace(",", " ").split()  # Node 0, zone Normal 1 2 3 ...
        for order, blocks in enumerate(words[4:]):
            found[f"buddyinfo/{words[1]}/{words[3]}/{order}"] = int(blocks)
    return found


def counter_rows(ts_ns: int, counters: dict[str, int]) -> pa.Table:
    """Rows of the table `counters` for one moment."""
    columns = {
        "ts_ns": np.full(len(counters), ts_ns, np.uint64),
        "counter": list(counters),
        "value": np.array(list(counters.values()), np.uint64),
    }
    return pa.table(columns, schema=TABLES["counters"])
