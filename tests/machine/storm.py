"""A storm of page events whose number is known: `python -m tests.machine.storm LOG ROUNDS PAUSE`.

Each round maps memory of our own, has each page of it allocated by a write, and drops it. After each, LOG gains one record
of two 64-bit numbers: when the round began and when all its pages were there (CLOCK_MONOTONIC, ns). ROUNDS 0: until killed.
"""

from __future__ import annotations

import mmap
import os
import sys
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

PAGES_PER_ROUND = 499
USER_GFP = 1 << 1 | 1 << 3
"""___GFP_HIGHMEM and ___GFP_MOVABLE: pages for user space, and not the page tables that map them."""


def rounds(log: Path) -> npt.NDArray[np.int64]:
    """Begin and end of each round that was logged, one a row."""
    whole = log.read_bytes()
    return np.frombuffer(whole[: len(whole) // 16 * 16], np.int64).reshape(-1, 2)


def main() -> None:
    log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    wanted, pause = int(sys.argv[2]), float(sys.argv[3])
    n = 0
    while not wanted or n < wanted:
        begin = time.monotonic_ns()
        with mmap.mmap(-1, PAGES_PER_ROUND * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as area:
            area.madvise(mmap.MADV_NOHUGEPAGE)
            area.madvise(MADV_POPULATE_WRITE)
            end = time.monotonic_ns()
        os.write(log, begin.to_bytes(8, "little") + end.to_bytes(8, "little"))
        n += 1
        time.sleep(pause)


MADV_POPULATE_WRITE = 23  # since 5.14

if __name__ == "__main__":
    main()
