"""The published experiment: many processes, each of which holds one small BPF program.

Aaron Lu ran 0, 512, 1024 and 2048 instances of sockex1 in 8 GB and read DirectMap4k. An instance
here is a process that loads a program of three pages and touches 1 MB of its own.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections import Counter
from pathlib import Path

if __package__ in (None, ""):  # run as a file: make the checkout importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.vm.loads import syscalls
from tests.vm.loads.actors import Cast, Memory
from tests.vm.loads.report import Report, direct_map, parser

# Seven bytes of machine code an addition, and the kernel's header before the program.
THREE_PAGES = 1600
EVERY = 128


def load(counts: Counter[str]) -> None:
    """Load one program; it goes with the process."""
    syscalls.load_filter(THREE_PAGES)
    counts["bpf_programs"] += 1


def fill_page_cache(path: Path) -> int:
    """Read a file as large as memory, so that whoever needs memory now has to take the page cache's; MB that it has.

    A sparse file: its pages cost memory and no disk.
    """
    with path.open("w+b", buffering=0) as file:
        file.truncate(memory_kb("MemTotal") * 1024)
        buffer = memoryview(bytearray(2**20))
        while file.readinto(buffer):
            pass
    return memory_kb("Cached") // 1024


def memory_kb(name: str) -> int:
    """A line of /proc/meminfo, in kB."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def main() -> int:
    """Run the load: 1024 programs at --scale 1."""
    options = parser(__doc__ or "", seconds=240)
    options.add_argument("--programs", type=int, help="default: 1024 times --scale")
    options.add_argument("--touch", type=int, default=1024, metavar="KB", help="by each process")
    options.add_argument("--page-cache", metavar="FILE", help="fill memory with the cache of this file first")
    chosen = options.parse_args()
    if chosen.programs is None:
        chosen.programs = round(1024 * chosen.scale)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    filled = fill_page_cache(Path(chosen.page_cache)) if chosen.page_cache else 0
    report = Report("bpf", chosen)
    cast = Cast(report.counts)
    course: list[dict[str, int]] = []
    with contextlib.suppress(KeyboardInterrupt):
        for number in range(chosen.programs):
            if number % EVERY == 0:
                course.append({"programs": number} | direct_map())
            if report.out_of_time():
                break
            cast.enter(load, Memory(touched=chosen.touch * 1024))
        cast.wait_all()
        course.append({"programs": len(cast)} | direct_map())
    cast.leave_all()
    report.facts["course"] = course
    report.facts["page_cache_mb"] = filled
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
