"""Graphics buffers: thousands of scattered pages at once become write-combining, and write-back again.

vgem is a graphics card without hardware whose buffers must be coherent (drivers/gpu/drm/vgem/vgem_drv.c sets map_wc),
so that drm_gem_shmem_get_pages calls set_pages_array_wc for all pages of a buffer, and set_pages_array_wb when it goes
(commit 804b6e5ee613, 2021). Drivers of real cards get there through TTM's pools. On 5.10, which lacks the commit,
buffers of vgem stay write-back.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import random
import signal
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path

if __package__ in (None, ""):  # run as a file: make the checkout importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.vm.loads.actors import PAGE, Act, Cast, Memory, sieve
from tests.vm.loads.report import Report, parser

# include/uapi/drm/drm.h and drm_mode.h: _IOWR('d', number, the struct's size)
_CREATE_DUMB, _MAP_DUMB, _DESTROY_DUMB = 0xC02064B2, 0xC01064B3, 0xC00464B4
_WIDTH_PAGES = 4  # a line of 4096 pixels of 32 bits


def card() -> Path:
    """The device node of vgem's card. Raises FileNotFoundError where there is no vgem (Debian's cloud flavour)."""
    subprocess.run(["modprobe", "vgem"], stdin=subprocess.DEVNULL, timeout=60, check=False)
    for entry in sorted(Path("/sys/class/drm").glob("card[0-9]*")):
        if "vgem" in str(entry.resolve()):
            return Path("/dev/dri", entry.name)
    raise FileNotFoundError("no card of vgem below /sys/class/drm")


def buffers(node: Path, lines: list[int]) -> Act:
    """Make buffers of so many lines of four pages, touch every page, and hold all but the first to the process's end."""

    def act(counts: Counter[str]) -> None:
        _held.append(sieve(4))
        fd = os.open(node, os.O_RDWR)
        handles = []
        for height in lines:
            asked = struct.pack("<IIIIIIQ", height, _WIDTH_PAGES * PAGE // 4, 32, 0, 0, 0, 0)
            made = struct.unpack("<IIIIIIQ", fcntl.ioctl(fd, _CREATE_DUMB, asked))
            handle, size = made[4], made[6]
            offset = struct.unpack("<IIQ", fcntl.ioctl(fd, _MAP_DUMB, struct.pack("<IIQ", handle, 0, 0)))[2]
            with mmap.mmap(fd, size, offset=offset) as area:
                for at in range(0, size, PAGE):
                    area[at] = 1
            counts["buffers"] += 1
            counts["buffer_pages"] += size // PAGE
            handles.append(handle)
        fcntl.ioctl(fd, _DESTROY_DUMB, struct.pack("<I", handles[0]))

    return act


_held: list[object] = []


def main() -> int:
    """Run the load: 12 processes with three buffers of 1 to 12 MB each at --scale 1."""
    options = parser(__doc__ or "", seconds=200).parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    rng = random.Random(options.seed)
    report = Report("drm", options)
    try:
        node = card()
    except FileNotFoundError as error:
        report.facts["unsupported"] = str(error)
        return report.finish()
    cast = Cast(report.counts)
    with contextlib.suppress(KeyboardInterrupt):
        for _ in range(max(1, round(12 * options.scale))):
            if report.out_of_time():
                break
            cast.enter(buffers(node, [rng.randrange(64, 769) for _ in range(3)]), Memory.some(rng))
            if len(cast) > 6:
                cast.leave_one(rng)
    cast.leave_all()
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
