"""Memory errors: the kernel takes a poisoned page out of its map, through an address that is not the page's.

A machine check of "action optional", as a memory scrubber raises, makes uc_decode_notifier
(arch/x86/kernel/cpu/mce/core.c; 5.10 has it as well) call memory_failure, then set_mce_nospec, which unmaps the page
in the direct map by a decoy address with bit 63 flipped, lest the CPU speculate into it (commit 284ce4011ba6). Needs
the guest's monitor, and a CPU of Intel's: AMD's errors are graded otherwise (arch/x86/kernel/cpu/mce/severity.c).
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import random
import signal
import sys
import time
from pathlib import Path

if __package__ in (None, ""):  # run as a file: make the checkout importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.vm.loads.actors import PAGE, sieve
from tests.vm.loads.monitor import Monitor
from tests.vm.loads.report import Report, parser

# Intel SDM volume 3B, 15.9.3: valid, uncorrected, enabled, MISC and ADDR valid, signalled; memory scrubbing error (0xC0).
_STATUS = 1 << 63 | 1 << 61 | 1 << 60 | 1 << 59 | 1 << 58 | 1 << 56 | 0xC0
_MCG_STATUS = 1 << 2 | 1 << 0  # machine check in progress, restart IP valid
_MISC = 2 << 6 | 12  # a physical address, good to 4 KiB
_BANK = 9
_PATIENCE_S = 20


def poisoned_kb() -> int:
    """HardwareCorrupted of /proc/meminfo."""
    for line in Path("/proc/meminfo").read_text("ascii").splitlines():
        if line.startswith("HardwareCorrupted:"):
            return int(line.split()[1])
    return 0


def frame(address: int) -> int:
    """The page frame number behind an address of this process (Documentation/admin-guide/mm/pagemap.rst)."""
    with Path("/proc/self/pagemap").open("rb") as pagemap:
        pagemap.seek(address // PAGE * 8)
        return int.from_bytes(pagemap.read(8), "little") & ((1 << 55) - 1)


def main() -> int:
    """Run the load: 24 pages at --scale 1, far from each other."""
    options = parser(__doc__ or "", seconds=200).parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    rng = random.Random(options.seed)
    report = Report("decoy", options)
    monitor = Monitor()
    # Pages of a heap that holds a large part of memory, so that they come from many frames.
    pages = 64 * 2**20 // PAGE
    heap = mmap.mmap(-1, pages * PAGE)
    heap.madvise(mmap.MADV_NOHUGEPAGE)
    kept = sieve(4)
    for page in range(pages):
        heap[page * PAGE] = 1
    start = ctypes.addressof(ctypes.c_char.from_buffer(heap))
    frames: list[int] = []
    with contextlib.suppress(KeyboardInterrupt):
        for page in rng.sample(range(pages), max(1, round(24 * options.scale))):
            if report.out_of_time():
                break
            before = poisoned_kb()
            pfn = frame(start + page * PAGE)
            # -b: Intel's machine checks reach every CPU, and the kernel waits for them all.
            monitor.human(f"mce -b 0 {_BANK} {_STATUS:#x} {_MCG_STATUS:#x} {pfn * PAGE:#x} {_MISC:#x}")
            deadline = time.monotonic() + _PATIENCE_S
            while poisoned_kb() == before and time.monotonic() < deadline:
                time.sleep(0.1)
            report.counts["pages_poisoned" if poisoned_kb() > before else "checks_ignored"] += 1
            frames.append(pfn)
        time.sleep(1)  # set_mce_nospec comes after the page is counted
    report.facts["frames"] = frames
    del kept
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
