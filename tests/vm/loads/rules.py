"""Every rule of the choke point, asked of a real kernel: also what no user of a stock kernel asks for.

A module (tests/vm/rules_module) calls __change_page_attr_set_clr as it is told. First each rule of docs/rules.md by
itself, then calls at random. Attributes that matter are changed only on pages that the module holds; elsewhere the
calls change soft bits (asm/pgtable_types.h, _PAGE_BIT_SOFTW1 and _PAGE_BIT_SOFTW2), which mean nothing to the CPU nor, in
the kernel's own map, to the kernel. `python3 -m tests.vm.rules_module KERNEL` builds the module.
"""

from __future__ import annotations

import contextlib
import os
import platform
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

if __package__ in (None, ""):  # run as a file: make the checkout importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.vm.loads.report import Report, parser

FRAME, GIGA = 512, 512 * 512
P, RW, PWT, PCD, D, PAT, G, NX = 0x1, 0x2, 0x8, 0x10, 0x40, 0x80, 0x100, 1 << 63
SOFT, SOFT2, KERNEL_4K = 1 << 9, 1 << 10, 1 << 11  # the last: _PAGE_KERNEL_4K, since 6.15
FORCE, PGD, NO_ALIAS, DECOY = 1, 2, 4, 8
MODULE = Path(__file__).resolve().parents[3] / "lab" / "module"


class Kernel:
    """The module, loaded. Raises OSError where it is not there or does not fit the kernel."""

    def __init__(self, report: Report) -> None:
        if not Path("/proc/cpa_rules").exists():
            file = MODULE / f"cpa_rules-{platform.release()}.ko"
            subprocess.run(["insmod", str(file)], check=True, timeout=60)
        self._file = os.open("/proc/cpa_rules", os.O_RDWR)
        self._report = report

    def _say(self, words: str) -> list[int]:
        os.write(self._file, words.encode("ascii"))
        return [int(word) for word in os.pread(self._file, 64, 0).split()]

    def hold(self, pages: int) -> int | None:
        """First page frame of that many neighbouring pages, naturally aligned; None where there are none."""
        result, pfn = self._say(f"hold {pages}")
        return pfn if result == 0 else None

    def call(self, pfn: int, pages: int, set_bits: int, clear: int, how: int = 0, fail_after: int = -1) -> int:
        """One call; returns the kernel's result."""
        if fail_after >= 0:
            self._say(f"fail {fail_after}")
        result = self._say(f"call {pfn} {pages} {_signed(set_bits)} {_signed(clear)} {how}")[0]
        self._report.counts["calls_failed" if result else "calls"] += 1
        return result

    def array(self, pfn: int, stride: int, pages: int, set_bits: int, clear: int) -> None:
        """One call on a pages array."""
        self._say(f"array {pfn} {stride} {pages} {_signed(set_bits)} {_signed(clear)}")
        self._report.counts["arrays"] += 1

    def protect(self, yes: bool) -> None:
        """Have the kernel protect its rodata, or not."""
        self._say(f"protect {int(yes)}")

    def rox(self, pfn: int, pages: int) -> None:
        """set_memory_rox, where the kernel has it."""
        self._report.counts["rox" if self._say(f"rox {pfn} {pages}")[0] == 0 else "rox_missing"] += 1


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


def memory() -> tuple[list[tuple[int, int]], tuple[int, int] | None]:
    """[first, end) page frames of RAM, and of the kernel's rodata (/proc/iomem)."""
    ram, rodata = [], None
    for line in Path("/proc/iomem").read_text("ascii").splitlines():
        where, _, name = line.strip().partition(" : ")
        first, end = (int(number, 16) for number in where.split("-"))
        if name == "System RAM" and not line.startswith(" "):
            ram.append((-(-first // 4096), (end + 1) // 4096))
        elif name == "Kernel rodata":
            rodata = (first // 4096, (end + 1) // 4096)
    return ram, rodata


def each_rule(kernel: Kernel, ram: list[tuple[int, int]], rodata: tuple[int, int] | None, block: int) -> None:
    """The rules one by one; `block`: eight 2M frames that are ours."""
    frames = [block + i * FRAME for i in range(8)]
    gigas = [giga * GIGA for first, end in ram for giga in range(-(-first // GIGA), end // GIGA)]
    # 1G leaves: kept though a part is asked for, as they hold it already; covered; then split, forced, and failing at the
    # second table. What is split already shows the same of 2M leaves.
    for giga in gigas:
        kernel.call(giga, GIGA, SOFT, 0, NO_ALIAS)
        kernel.call(giga + 3, 70, SOFT, 0, NO_ALIAS)
    for i, giga in enumerate(gigas):
        page = giga + 5 * FRAME + 7
        if i % 3 == 0:
            kernel.call(page, 1, SOFT2, 0, NO_ALIAS, fail_after=1)
        elif i % 3 == 1:
            kernel.call(page, 1, SOFT2, 0, NO_ALIAS)
        else:
            kernel.call(page, 1, 0, 0, NO_ALIAS | FORCE)
    # 2M leaves the same, then a part of one to its end, and into the next.
    kernel.call(frames[0], FRAME, SOFT2, 0)
    kernel.call(frames[0] + 9, 5, SOFT2, 0)
    kernel.call(frames[0], FRAME, 0, SOFT2)
    kernel.call(frames[0] + 100, 600, SOFT2, 0)
    kernel.call(frames[0] + 100, 600, 0, SOFT2)
    # Not present: a whole 2M leaf, which loses G; split while it is so; present again, without G.
    kernel.call(frames[2], FRAME, 0, P | RW)
    kernel.call(frames[2] + 17, 3, P | RW, 0)
    kernel.call(frames[2], FRAME, P | RW, 0)
    kernel.call(frames[3] + 8, 1, 0, P | RW | D)
    kernel.call(frames[3] + 8, 1, P | RW, 0)
    # Caching: the PAT bit lies elsewhere in a large entry, and is lost in one that is not present.
    kernel.call(frames[4], FRAME, PWT | PAT, 0)
    kernel.call(frames[4], FRAME, PWT | PAT, 0)
    kernel.call(frames[4] + 1, 1, PCD, PWT | PAT)
    kernel.call(frames[5], FRAME, PAT, 0)
    kernel.call(frames[5], FRAME, 0, P)
    kernel.call(frames[5], FRAME, P, 0)
    # force_split, with nothing else and with the soft bit of set_memory_4k; nothing asked for at all.
    kernel.call(frames[6], 3, 0, 0, FORCE)
    kernel.call(frames[7], FRAME, KERNEL_4K, 0, FORCE)
    kernel.call(frames[7] + 5, FRAME - 5, 0, 0)
    # A pages array: each page for itself.
    kernel.array(block, 3, 64, PCD, 0)
    kernel.array(block, 3, 64, 0, PCD)
    # rodata: may not become writable, whatever is asked for.
    if rodata is not None:
        first = rodata[0]
        kernel.call(first, min(FRAME, rodata[1] - first), RW, 0, NO_ALIAS)
        kernel.call(first + 4, 3, RW, 0, NO_ALIAS)
        kernel.call(rodata[1] - 2, 2, SOFT2, 0)
    # Failing halfway: the first frame is rewritten, the second one cannot be split.
    halfway = kernel.hold(2 * FRAME)
    if halfway is not None:
        kernel.call(halfway, FRAME + 5, SOFT2, 0, fail_after=0)
        kernel.call(halfway, FRAME + 5, SOFT2, 0)


def collapse(kernel: Kernel, whole: int | None) -> None:
    """Entries put back (6.15 and later): 512 alike; one that differs; 4K on purpose; a whole 1G range (`whole`: one of ours,
    which is made not present before, too).
    """
    block = kernel.hold(3 * FRAME)
    if block is not None:
        for frame in range(block, block + 2 * FRAME, FRAME):
            kernel.call(frame + 30, 1, SOFT2, 0)
        kernel.call(block + 30, 1, 0, SOFT2)
        kernel.call(block + 2 * FRAME, FRAME, KERNEL_4K, 0, FORCE)
        for frame in range(block, block + 3 * FRAME, FRAME):
            kernel.rox(frame, FRAME)
        kernel.call(block, 3 * FRAME, RW | NX, 0)
    if whole is not None:
        kernel.call(whole, GIGA, 0, P)
        kernel.call(whole + 7 * FRAME, 2 * FRAME, P, 0)
        kernel.call(whole, GIGA, P, 0)
        kernel.call(whole + 5, 1, SOFT2, 0)
        kernel.call(whole + 5, 1, 0, SOFT2)
        kernel.rox(whole, GIGA)
        kernel.call(whole, GIGA, RW | NX, 0)


def holes(kernel: Kernel, ram: list[tuple[int, int]]) -> None:
    """Where there are no entries, below 4 GB: passed over; or filled, in pieces, and over what is there already."""
    end = max(end for _, end in ram if end <= 4 * GIGA)
    kernel.call(end - 2, 700, SOFT2, 0, NO_ALIAS)
    hole = -(-end // GIGA) * GIGA
    if hole + GIGA > 4 * GIGA:
        return
    kernel.call(hole + 9, 2000, SOFT2, 0, NO_ALIAS)
    kernel.call(hole + 3, 5, SOFT, 0, PGD)
    kernel.call(hole + 3, 9, SOFT2, 0, PGD)  # five that are there, four that are not
    kernel.call(hole, 20, 0, RW, PGD)  # a hole first: all twenty are written anew
    kernel.call(hole + 2 * FRAME - 3, 2 * FRAME + 8, SOFT, 0, PGD)
    kernel.call(hole + 300 * FRAME + 1, 2, SOFT, 0, PGD, fail_after=0)


def writable_rodata(kernel: Kernel, rodata: tuple[int, int], *, prepare: bool) -> None:
    """Large leaves of the direct map that break the static protections: made while the kernel does not look, before a
    recording begins (`prepare`); then met by calls that ask for something else.
    """
    first = -(-rodata[0] // FRAME) * FRAME
    if prepare:
        kernel.protect(False)
        kernel.call(first, 2 * FRAME, RW, 0, NO_ALIAS)
        kernel.protect(True)
        return
    kernel.call(first + 7, 2, SOFT, 0, NO_ALIAS)
    kernel.call(first + FRAME, FRAME, SOFT, 0, NO_ALIAS)
    kernel.call(first + 9, 1, RW, 0, NO_ALIAS)


def at_random(kernel: Kernel, rng: random.Random, ram: list[tuple[int, int]], block: int, pages: int) -> None:
    """One call that nobody would make."""
    ours = rng.random() < 0.6
    first, end = (block, block + pages) if ours else rng.choice(ram)
    at = rng.randrange(first, end)
    at = max(first, at - at % rng.choice((1, 1, FRAME, FRAME, GIGA)) + rng.choice((0, 0, 0, 1, 511)))
    n = min(rng.choice((1, 1, 2, 7, 511, 512, 513, 1024, GIGA, 3 * GIGA)), max(1, end - at))
    bits = (P, RW, PWT, PCD, PAT, G, NX, RW | D, P | RW, SOFT) if ours else (SOFT, SOFT2)
    set_bits = rng.choice(bits) if rng.random() < 0.5 else 0
    clear = rng.choice(bits) if rng.random() < 0.6 else 0
    set_bits &= ~D
    how = NO_ALIAS if not ours or rng.random() < 0.2 else 0
    if rng.random() < 0.05 and n < 2000:
        how |= FORCE
    if ours and rng.random() < 0.1:
        kernel.array(at, rng.choice((1, 2, 5)), min(40, max(1, (end - at) // 5)), set_bits, clear)
        return
    kernel.call(at, n, set_bits, clear, how, fail_after=rng.choice((0, 1, 1)) if rng.random() < 0.1 else -1)


def together(rng: random.Random, report: Report, block: int, tasks: int, calls: int) -> None:
    """Tasks at once on the same 2M frames, each on pages of its own."""
    children = []
    start = time.monotonic() + 2  # emulated, a fork takes its time
    for task in range(tasks):
        seed = rng.random()
        pid = os.fork()
        if pid == 0:
            status = 1
            with contextlib.suppress(OSError):
                own = random.Random(seed)
                file = os.open("/proc/cpa_rules", os.O_RDWR)
                while time.monotonic() < start:
                    pass
                for i in range(calls):
                    page = block + i % 8 * FRAME + own.randrange(FRAME // 64) * 64 + task * 16
                    bit = own.choice((SOFT2, RW, P, G, PCD))
                    masks = f"{bit} 0" if own.random() < 0.5 else f"0 {bit}"
                    os.write(file, f"call {page} {own.randrange(1, 16)} {masks} 0".encode("ascii"))
                status = 0
            os._exit(status)
        children.append(pid)
    for pid in children:
        os.waitpid(pid, 0)
    report.counts["calls_at_once"] += tasks * calls


def main() -> int:
    """Run the load: each rule once, then 400 calls at random and 2 tasks of 200 calls at once at --scale 1."""
    arguments = parser(__doc__ or "", seconds=200)
    arguments.add_argument(
        "--writable-rodata", choices=("prepare", "meet"), help="only this rule, before or in a recording"
    )
    options = arguments.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    rng = random.Random(options.seed)
    report = Report("rules", options)
    kernel = Kernel(report)
    ram, rodata = memory()
    if options.writable_rodata:
        if rodata is None:
            return report.finish() or 1
        writable_rodata(kernel, rodata, prepare=options.writable_rodata == "prepare")
        return report.finish()
    with contextlib.suppress(KeyboardInterrupt):
        whole = kernel.hold(GIGA)
        block = kernel.hold(8 * FRAME)
        other = kernel.hold(64 * FRAME)
        shared = kernel.hold(8 * FRAME)
        if block is None or other is None or shared is None:
            report.facts["no_memory"] = True
            return report.finish() or 1
        each_rule(kernel, ram, rodata, block)
        holes(kernel, ram)
        collapse(kernel, whole)
        large = [(first, end) for first, end in ram if end - first > GIGA]
        for _ in range(round(400 * options.scale)):
            if report.out_of_time():
                break
            at_random(kernel, rng, large, other, 64 * FRAME)
        together(rng, report, shared, 2, round(200 * options.scale))
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
