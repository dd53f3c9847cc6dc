"""A known number of everything: 23 modules, 101 BPF programs, 211 secret pages; a recorder must find just these.

Each is made by a process of its own that takes ordinary memory besides, and all are let go again before the load ends.
The numbers are primes, so that no regular mistake (one in two, every CPU once) gives them by chance.
"""

from __future__ import annotations

import contextlib
import platform
import random
import resource
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

if __package__ in (None, ""):  # run as a file: make the checkout importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.vm.loads import syscalls
from tests.vm.loads.actors import Act, Cast, Memory
from tests.vm.loads.churn import secret
from tests.vm.loads.module_cycle import unload
from tests.vm.loads.report import Report, parser

MODULES, PROGRAMS, SECRET_PAGES = 23, 101, 211

# Schedulers, classifiers and actions: all merely register themselves, and none asks for another module when it does,
# as ciphers do for their self-tests.
_PLACE = "kernel/net/sched/"


def loaded() -> set[str]:
    """The modules that are loaded now."""
    return {line.split()[0] for line in Path("/proc/modules").read_text("ascii").splitlines()}


def lone_modules() -> dict[str, Path]:
    """Modules that need no other module and are not loaded: file by name, as /proc/modules spells it."""
    home = Path("/lib/modules") / platform.release()
    found = {}
    for line in (home / "modules.dep").read_text("ascii").splitlines():
        path, _, needs = line.partition(":")
        name = path.rsplit("/", 1)[-1].split(".ko")[0].replace("-", "_")
        if path.startswith(_PLACE) and not needs.strip() and name not in loaded():
            found[name] = home / path
    return found


def module(name: str, file: Path) -> Act:
    """Load one module, and nothing else: insmod resolves neither dependencies nor aliases."""

    def act(counts: Counter[str]) -> Callable[[], None] | None:
        done = subprocess.run(["insmod", str(file)], stdin=subprocess.DEVNULL, timeout=60, check=False)
        if done.returncode != 0:
            counts["modules_refused"] += 1
            return None
        counts["modules_loaded"] += 1
        return lambda: unload(name)

    return act


def program(additions: int) -> Act:
    """Load one BPF program; it goes with the process."""

    def act(counts: Counter[str]) -> None:
        syscalls.load_filter(additions)
        counts["bpf_programs"] += 1

    return act


def parts(total: int, largest: int, rng: random.Random) -> list[int]:
    """Random summands of a number, from 1 to `largest`."""
    found: list[int] = []
    while (left := total - sum(found)) > 0:
        found.append(min(left, rng.randint(1, largest)))
    return found


def main() -> int:
    """Run the load; it exits with 1 where it could not do what it counts (but for secret pages, which 5.10 has not)."""
    options = parser(__doc__ or "", seconds=300).parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    rng = random.Random(options.seed)
    report = Report("counted", options)
    files = lone_modules()
    names = rng.sample(sorted(files), MODULES)
    acts: list[tuple[str, Act]] = [("module", module(name, files[name])) for name in names]
    acts += [("program", program(rng.randrange(100, 6000))) for _ in range(PROGRAMS)]
    acts += [("secret", secret(pages)) for pages in parts(SECRET_PAGES, 16, rng)]
    rng.shuffle(acts)
    before = loaded()
    cast = Cast(report.counts)
    processes: dict[str, list[int]] = {"module": [], "program": [], "secret": []}
    with contextlib.suppress(KeyboardInterrupt):
        for kind, act in acts:
            if report.out_of_time():
                break
            # Modules stay to the end, so that one look there finds whatever came with them.
            actor = cast.enter(act, Memory.some(rng), stays=kind == "module")
            processes[kind].append(actor.pid)
            if len(cast) > MODULES + 12 and rng.random() < 1 / 2:
                cast.leave_one(rng)
        cast.wait_all()
        report.facts["modules"] = sorted(names)
        report.facts["modules_come_besides"] = sorted(loaded() - before - set(names))
    cast.leave_all()
    report.facts["modules_left"] = sorted(loaded() - before)
    report.facts["processes"] = processes
    report.finish()
    wanted = {"modules_loaded": MODULES, "bpf_programs": PROGRAMS}
    if not report.counts["secret_unsupported"]:
        wanted["secret_pages"] = SECRET_PAGES
    return 0 if all(report.counts[name] == number for name, number in wanted.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
