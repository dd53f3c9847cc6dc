"""The page programs on this kernel, under a storm, beside a count of our own: `python -m tests.machine.counting WHAT LOG`.

WHAT is `losses` or `off`; prints one JSON object. LOG is the storm's, see tests/machine/storm.py.
"""

from __future__ import annotations

import json
import mmap
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from collect.compiler import compile_program, import_bcc
from collect.host import possible_cpus
from collect.kernel import kernel_for_pages
from collect.program import Program
from collect.syscalls import enable_stats, program_runs, recursion_misses

N_ROUNDS = 3001
QUIET_SECONDS, PATIENCE_SECONDS = 0.001, 30.0

COUNTER = """
struct slot { u64 n; u64 pad[7]; };
BPF_F_TABLE("array", u32, struct slot, slots, N_CPUS, 1024 /* BPF_F_MMAPABLE */);

static __always_inline void count(void)
{
	u32 cpu = bpf_get_smp_processor_id();
	struct slot *slot = slots.lookup(&cpu);

	if (slot)
		__sync_fetch_and_add(&slot->n, 1);
}
RAW_TRACEPOINT_PROBE(mm_page_alloc) { if (ctx->args[0]) count(); return 0; }
RAW_TRACEPOINT_PROBE(mm_page_free) { count(); return 0; }
"""


class Counter:
    """Every event of both tracepoints, counted in memory that we share: reading it allocates nothing."""

    def __init__(self, n_cpus: int) -> None:
        self._bpf = compile_program(import_bcc(), COUNTER, [f"-DN_CPUS={n_cpus}"]).bpf
        length = -(-n_cpus * 64 // mmap.PAGESIZE) * mmap.PAGESIZE
        area = mmap.mmap(self._bpf["slots"].map_fd, length, mmap.MAP_SHARED, mmap.PROT_READ)
        self._slots = np.frombuffer(area, np.uint64, n_cpus * 8)[::8]

    def produced(self) -> int:
        """Events so far, those included for which the program was not run, being run already."""
        missed = sum(recursion_misses(function.fd) or 0 for function in self._bpf.funcs.values())
        return int(self._slots.sum()) + missed


def storm(log: str, n_rounds: int) -> subprocess.Popen[bytes]:
    """One with its first round behind it."""
    process = subprocess.Popen([sys.executable, "-m", "tests.machine.storm", log, str(n_rounds), "0"])
    while not (Path(log).exists() and Path(log).stat().st_size):
        time.sleep(0.01)
    return process


def page_program(ring_bytes: int | None) -> Program:
    kernel = kernel_for_pages()
    return Program(kernel.features, kernel.constants, pages="all", changes=False, ring_bytes=ring_bytes)


def losses(log: str) -> dict[str, int]:
    """What a storm produced between two moments at which no event was under way, and what became of it."""
    program, counter = page_program(ring_bytes=1), Counter(possible_cpus())
    rings = program.page_rings
    assert rings is not None
    positions = rings._positions

    def totals() -> dict[str, int]:
        # The rings' own words: places taken, events without a place; and what neither program of a tracepoint saw (below
        # 0: what both did).
        seen = program._lost_until_now()
        return {
            "produced": counter.produced(),
            "taken": int(positions["head"].sum()),
            "lost": program.losses()["pages_ring_full"],
            "not_run": seen["pages_programs_not_run"] - seen["rescued"],
        }

    recorded = 0

    def still() -> dict[str, int]:
        nonlocal recorded
        give_up = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < give_up:
            before = totals()
            recorded += len(program.drain()["page_events"])
            time.sleep(QUIET_SECONDS)
            if before == totals() and rings.used == 0:
                return before | {"recorded": recorded}
        raise SystemExit("this machine allocates pages all the time")

    program.arm()
    begin = still()
    load = storm(log, N_ROUNDS)
    while load.poll() is None:
        recorded += len(program.drain()["page_events"])
        time.sleep(0.005)
    end = still()
    program.detach()
    return {name: end[name] - begin[name] for name in begin}


def off(log: str) -> dict[str, Any]:
    """Runs of the page programs in half a second of a storm, for each sample."""
    program = page_program(ring_bytes=None)
    timing = enable_stats()
    program.arm()
    load = storm(log, 0)
    fds = program.page_program_fds()
    result = {}
    for sample in (1, 64, 0):
        program.set_sample(sample)
        program.drain()
        time.sleep(0.1)
        before = program_runs(fds)
        time.sleep(0.5)
        after = program_runs(fds)
        result[f"one in {sample}"] = {
            "runs": after.n - before.n, "ns": after.ns - before.ns, "events": len(program.drain()["page_events"])
        }  # fmt: skip
    load.kill()
    load.wait()
    result["not_run"] = program.losses()["pages_programs_not_run"]
    program.detach()
    assert timing >= 0
    return result


if __name__ == "__main__":
    print(json.dumps({"losses": losses, "off": off}[sys.argv[1]](sys.argv[2])))
