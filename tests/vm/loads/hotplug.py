"""Memory that is plugged in while the kernel runs, used, and taken out again.

Two DIMMs. The first, of 1 GB so that it can be one 1G entry, is brought online for the kernel's own allocations and
stays, as when a virtual machine grows; the second for movable pages alone, so that it can go again. Needs the guest's
monitor and free slots.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

if __package__ in (None, ""):  # run as a file: make the checkout importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.vm.loads import syscalls
from tests.vm.loads.actors import Cast, Memory
from tests.vm.loads.monitor import Monitor
from tests.vm.loads.report import Report, parser

MB = 2**20
STAYS_MB = 1024
GOES_MB = 512
_BLOCKS = Path("/sys/devices/system/memory")
_PATIENCE_S = 60


def blocks() -> set[str]:
    """The memory blocks that the kernel knows, by name."""
    return {path.name for path in _BLOCKS.glob("memory[0-9]*")}


def state(block: str, wanted: str | None = None) -> str:
    """A block's state: online, offline or going-offline; set first where one is given. OSError where it is refused."""
    file = _BLOCKS / block / "state"
    if wanted is not None:
        file.write_text(wanted, "ascii")
    return file.read_text("ascii").strip()


def until(true: Callable[[], bool], what: str) -> None:
    """Wait for something that the kernel does in its own time. Raises TimeoutError."""
    deadline = time.monotonic() + _PATIENCE_S
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {_PATIENCE_S} s")
        time.sleep(0.1)


class Slots:
    """The machine's free memory slots, through its monitor."""

    def __init__(self, monitor: Monitor, counts: Counter[str]) -> None:
        self._monitor = monitor
        self._counts = counts

    def plug(self, name: str, megabytes: int, zone: str) -> set[str]:
        """Plug a DIMM in and bring it online ("online_kernel", "online_movable"); returns its memory blocks."""
        before = blocks()
        size = int((_BLOCKS / "block_size_bytes").read_text("ascii"), 16)
        wanted = megabytes * MB // size
        self._monitor.execute(
            "object-add", **{"qom-type": "memory-backend-ram", "id": f"{name}-ram", "size": megabytes * MB}
        )
        self._monitor.execute("device_add", driver="pc-dimm", id=name, memdev=f"{name}-ram")
        until(lambda: len(blocks() - before) == wanted, f"{wanted} memory blocks of the DIMM {name}")
        mine = blocks() - before
        for block in sorted(mine):
            # A distribution may have the kernel bring new memory online by itself.
            if state(block) == "offline":
                state(block, zone)
            self._counts["blocks_online"] += state(block) == "online"
        self._counts["dimms_plugged"] += 1
        self._counts["megabytes_plugged"] += megabytes
        return mine

    def unplug(self, name: str, mine: set[str]) -> None:
        """Take a DIMM out; counts a refusal where the kernel does not let go of all its pages."""
        for block in sorted(mine):
            with contextlib.suppress(OSError):  # EBUSY: something in it cannot be moved
                state(block, "offline")
        if any(state(block) != "offline" for block in mine):
            self._counts["dimms_kept_by_kernel"] += 1
            return
        self._monitor.execute("device_del", id=name)
        until(lambda: not blocks() & mine, f"the DIMM {name} to be gone")
        self._counts["dimms_unplugged"] += 1


def special(number: int) -> Callable[[Counter[str]], None]:
    """An act: some BPF programs, and secret pages where there are any."""

    def act(counts: Counter[str]) -> None:
        for additions in range(400, 4000, 900):
            syscalls.load_filter(additions + number)
            counts["bpf_programs"] += 1
        with contextlib.suppress(OSError):
            fd = syscalls.memfd_secret()
            os.ftruncate(fd, 8 * mmap.PAGESIZE)
            area = mmap.mmap(fd, 8 * mmap.PAGESIZE)
            for page in range(8):
                area[page * mmap.PAGESIZE] = 1
            counts["secret_pages"] += 8
            _held.append(area)

    return act


_held: list[object] = []


def main() -> int:
    """Run the load: two DIMMs, the second out again; processes before, between and after."""
    options = parser(__doc__ or "", seconds=240).parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    rng = random.Random(options.seed)
    report = Report("hotplug", options)
    cast = Cast(report.counts)
    slots = Slots(Monitor(), report.counts)

    def crowd(steps: int) -> None:
        for number in range(max(1, round(steps * options.scale))):
            memory = Memory.some(rng)
            memory.populated = rng.randrange(8, 33) * MB
            cast.enter(special(number), memory)
        cast.wait_all()

    with contextlib.suppress(KeyboardInterrupt):
        crowd(8)
        slots.plug("stays", STAYS_MB, "online_kernel")
        crowd(8)
        mine = slots.plug("goes", GOES_MB, "online_movable")
        crowd(8)
        cast.leave_all()
        slots.unplug("goes", mine)
        crowd(4)
    cast.leave_all()
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
