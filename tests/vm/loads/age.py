"""Ages memory before a recording: most of it in use, what is free in small pieces.

Prints /proc/buddyinfo before and after. What stays behind is page cache and one sleeping process
with a large heap, as on a machine that has been up for weeks.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import signal
import sys
import time
from pathlib import Path

PAGE = 4096
_FOLDER = Path("/var/tmp/age")


def meminfo(name: str) -> int:
    """A line of /proc/meminfo, in MB."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) // 1024
    raise KeyError(name)


def buddyinfo() -> dict[str, list[int]]:
    """Free blocks per zone, by order."""
    found: dict[str, list[int]] = {}
    for line in Path("/proc/buddyinfo").read_text(encoding="ascii").splitlines():
        words = line.replace(",", " ").split()
        found[f"{words[1]}/{words[3]}"] = [int(word) for word in words[4:]]
    return found


def interleave(megabytes: int, rng: random.Random, deadline: float) -> int:
    """Fill memory with the page cache of two files by turns, then give the second one's back.

    Sparse files: their pages cost memory and no disk. What is free afterwards lies in holes of 16
    to 128 kB between page cache, which is how a machine looks after weeks.
    """
    _FOLDER.mkdir(parents=True, exist_ok=True)
    paths = (_FOLDER / "stays", _FOLDER / "goes")
    half = megabytes * 2**20 // 2
    buffer = bytearray(128 * 1024)
    done = 0
    with paths[0].open("w+b", buffering=0) as stays, paths[1].open("w+b", buffering=0) as goes:
        for file in (stays, goes):
            file.truncate(half)
            # Readahead would make the runs of one file longer than what is asked for.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        while done < half and time.monotonic() < deadline:
            size = rng.randrange(4, 33) * PAGE
            for file in (stays, goes):
                file.readinto(memoryview(buffer)[:size])
            done += size
    paths[1].unlink()
    return done // 2**20


def settle(megabytes: int) -> int:
    """Leave a process behind that holds a heap of huge pages until the guest goes down."""
    ready, ready_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            nothing = os.open(os.devnull, os.O_RDWR)
            for standard in (0, 1, 2):
                os.dup2(nothing, standard)
            heap = mmap.mmap(-1, megabytes * 2**20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            heap.madvise(mmap.MADV_HUGEPAGE)
            for offset in range(0, len(heap), PAGE * 512):
                heap[offset] = 1
            os.write(ready_write, b".")
            while True:
                signal.pause()
        finally:
            os._exit(1)
    os.close(ready_write)
    settled = bool(os.read(ready, 1))
    os.close(ready)
    return megabytes if settled else 0


def main() -> int:
    """Age the memory."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--share", type=float, default=0.9, help="of the free memory")
    parser.add_argument("--held", type=float, default=0.6, help="of that, by a sleeping process")
    parser.add_argument("--seconds", type=float, default=120)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    started = time.monotonic()
    before = buddyinfo()
    free = int(meminfo("MemFree") * options.share)
    held = settle(int(free * options.held))
    cached = interleave(free - held, rng, started + options.seconds)
    told = {
        "aged": {"held_mb": held, "page_cache_mb": cached, "given_back_mb": cached},
        "seconds": round(time.monotonic() - started, 1),
        "buddyinfo_before": before,
        "buddyinfo_after": buddyinfo(),
        "free_mb_after": meminfo("MemFree"),
    }
    print(json.dumps(told))
    return 0


if __name__ == "__main__":
    sys.exit(main())
