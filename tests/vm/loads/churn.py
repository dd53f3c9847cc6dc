"""Everything that changes the direct map, in turn: modules, BPF, secret memory, kprobes, ftrace.

Hundreds of processes, each of which does one thing, takes ordinary memory beside it, and stays for a
while. The seed decides the sequence; the load ends when all steps are done and all is let go.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path

if __package__ in (None, ""):  # run as a file: make the checkout importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.vm.loads import syscalls
from tests.vm.loads.actors import PAGE, Act, Cast, Memory, sieve
from tests.vm.loads.module_cycle import Modules
from tests.vm.loads.probe_sites import Sites
from tests.vm.loads.report import Report, parser

# Steps of each kind at --scale 1, and how many actors make a crowd.
STEPS = {"module": 40, "bpf": 96, "secret": 28, "kprobe": 26, "ftrace": 14, "ordinary": 40}
CROWD = 40
MB = 2**20


def bpf(sizes: list[int]) -> Act:
    """Load BPF programs of these numbers of instructions and hold them."""

    def act(counts: Counter[str]) -> None:
        _held.append(sieve(4))
        for size in sizes:
            syscalls.load_filter(size)
            counts["bpf_programs"] += 1
            counts["bpf_instructions"] += size

    return act


def secret(pages: int) -> Act:
    """Fault pages of secret memory and hold them."""

    def act(counts: Counter[str]) -> None:
        try:
            fd = syscalls.memfd_secret()
        except OSError as error:
            if error.errno != errno.ENOSYS:
                raise
            counts["secret_unsupported"] += 1
            return
        os.ftruncate(fd, pages * PAGE)
        area = mmap.mmap(fd, pages * PAGE)
        for page in range(pages):
            area[page * PAGE] = 1
        counts["secret_pages"] += pages
        _held.append(area)

    return act


# A mapping goes when Python forgets it; the actor keeps it until it ends.
_held: list[object] = []


def nothing(counts: Counter[str]) -> None:
    """An ordinary process."""
    counts["ordinary"] += 1


def steps(rng: random.Random, scale: float) -> list[str]:
    """The sequence of kinds."""
    sequence = [kind for kind, number in STEPS.items() for _ in range(round(number * scale))]
    rng.shuffle(sequence)
    return sequence


def choose(kind: str, number: int, rng: random.Random, modules: Modules, sites: Sites) -> Act:
    """What the next actor of a kind does."""
    match kind:
        case "module":
            return modules.act(number)
        case "bpf":
            return bpf([rng.randrange(500, 9500) for _ in range(rng.randrange(4, 9))])
        case "secret":
            return secret(rng.randrange(4, 64))
        case "kprobe":
            return sites.kprobes(rng.randrange(6, 16))
        case "ftrace":
            return sites.function_tracer(f"churn-{number}", 4)
    return nothing


def main() -> int:
    """Run the load."""
    options = parser(__doc__ or "", seconds=200).parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    rng = random.Random(options.seed)
    report = Report("churn", options)
    modules = Modules(rng, largest=400_000)
    sites = Sites(rng)
    cast = Cast(report.counts)
    folder = tempfile.mkdtemp(prefix="churn-", dir="/var/tmp")
    done: Counter[str] = Counter()
    with contextlib.suppress(KeyboardInterrupt):
        for number, kind in enumerate(steps(rng, options.scale)):
            if report.out_of_time():
                break
            memory = Memory.some(rng, f"{folder}/{number % 40}")
            if kind == "ordinary":
                # Programs of some size push the special pages on into other gigabytes.
                memory.populated = rng.randrange(8, 65) * MB
            # Two thirds of the programs stay, so that a kernel which packs them needs several packs.
            stays = kind == "bpf" and rng.random() < 2 / 3
            cast.enter(choose(kind, done[kind], rng, modules, sites), memory, stays=stays)
            done[kind] += 1
            # A third as many leave as enter, once there is a crowd.
            if len(cast) > CROWD and rng.random() < 1 / 3:
                cast.leave_one(rng)
    cast.leave_all()
    shutil.rmtree(folder, ignore_errors=True)
    report.facts["steps"] = dict(done)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
