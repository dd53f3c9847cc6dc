"""Ages memory before a recording: fills the page cache, and leaves the rest in small pieces.

Prints /proc/buddyinfo before and after. What it leaves behind is page cache, as on a machine that
has been up for weeks: the files stay, every process of it ends.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import sys
import time
from pathlib import Path

PAGE = 4096
_FOLDER = Path("/var/tmp/age")
_PIECE_MB = 8


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


def fill_page_cache(megabytes: int, deadline: float) -> int:
    """Read a sparse file: every page of it is page cache and costs no disk."""
    _FOLDER.mkdir(parents=True, exist_ok=True)
    path = _FOLDER / "cache"
    done = 0
    with path.open("wb") as file:
        file.truncate(megabytes * 2**20)
    with path.open("rb", buffering=0) as file:
        while done < megabytes and time.monotonic() < deadline and file.read(2**20):
            done += 1
    return done


def fragment(megabytes: int, rng: random.Random, deadline: float) -> int:
    """Take memory in single pages, and give every other one back, at random by twos."""
    done = 0
    pieces: list[mmap.mmap] = []
    while done < megabytes and time.monotonic() < deadline:
        piece = mmap.mmap(-1, _PIECE_MB * 2**20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        piece.madvise(mmap.MADV_NOHUGEPAGE)
        # One call faults them all in, page by page in the kernel; 5.14 and later know it.
        try:
            piece.madvise(23)  # MADV_POPULATE_WRITE
        except OSError:
            for offset in range(0, len(piece), PAGE):
                piece[offset] = 1
        pieces.append(piece)
        done += _PIECE_MB
    for piece in pieces:
        for offset in range(0, len(piece), 2 * PAGE):
            piece.madvise(mmap.MADV_DONTNEED, offset + PAGE * rng.randrange(2), PAGE)
    # The gaps are filled with kernel memory that cannot be moved (small files), so that they
    # are still gaps when this process's pages go.
    wanted = done * 2**20 // PAGE // 2
    for number in range(min(wanted // 64, 6000)):
        if time.monotonic() > deadline:
            break
        (_FOLDER / f"{number:05}").write_bytes(bytes(PAGE * rng.randrange(1, 4)))
    for piece in pieces:
        piece.close()
    return done


def main() -> int:
    """Age the memory."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--share", type=float, default=0.75, help="of the free memory")
    parser.add_argument("--seconds", type=float, default=90)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    started = time.monotonic()
    before = buddyinfo()
    free = int(meminfo("MemFree") * options.share)
    cached = fill_page_cache(free // 2, started + options.seconds / 2)
    taken = fragment(free // 2, rng, started + options.seconds)
    os.sync()
    # Without this the freed pages of this CPU would still wait in its list.
    Path("/proc/sys/vm/stat_refresh").write_text("1", encoding="ascii")
    told = {
        "aged": {"page_cache_mb": cached, "fragmented_mb": taken},
        "seconds": round(time.monotonic() - started, 1),
        "buddyinfo_before": before,
        "buddyinfo_after": buddyinfo(),
        "free_mb_after": meminfo("MemFree"),
    }
    print(json.dumps(told))
    return 0


if __name__ == "__main__":
    sys.exit(main())
