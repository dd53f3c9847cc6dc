"""Churn by several processes at once, and twenty snapshots asked of the recorder at random moments in between.

Between two requests the seed decides how long to wait, and some of what changes the map must have happened. The last request
goes through the command, `directmap-collect snapshot --into`. Without a recorder that writes to --trace there is nothing to ask, and it ends at once.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

if __package__ in (None, ""):  # run as a file: make the checkout importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from collect.errors import HostError
from tests.vm.loads import syscalls
from tests.vm.loads.actors import PAGE, Cast, Memory
from tests.vm.loads.churn import choose
from tests.vm.loads.module_cycle import Modules
from tests.vm.loads.probe_sites import Sites
from tests.vm.loads.report import Report, parser

SNAPSHOTS = 20
WORKERS = 3
CROWD = 12
# What each worker draws from; all but the last change the map (secret pages from 6.1 on).
KINDS = ("module", "bpf", "bpf", "kprobe", "ftrace", "secret", "ordinary")
PIPE = 2**19
ACTS_BETWEEN = 3
LONGEST_S = 1.5
# An emulated CPU that never rests leaves a walk of milliseconds minutes to wait for.
REST_S = 0.3
PATIENCE_S = 150.0


def churn(number: int, seed: int, steps: mmap.mmap) -> None:
    """One worker, until it is told to end; `steps` holds how many acts of each worker are done that change the map."""
    stop = False

    def end(signal_number: int, frame: object) -> None:
        nonlocal stop
        stop = True

    signal.signal(signal.SIGTERM, end)
    rng = random.Random(seed * 100 + number)
    modules, sites = Modules(rng, largest=400_000), Sites(rng)
    cast = Cast(Counter())
    done = 0
    while not stop:
        kind = rng.choice(KINDS)
        # A number of its own for each act of all workers: modules and tracing instances are named by it.
        act = choose(kind, done * WORKERS + number, rng, modules, sites)
        memory = Memory(touched=rng.randrange(16, 129) * PAGE, piped=rng.choice((0, PIPE)))
        cast.enter(act, memory).wait()
        done += 1
        if kind != "ordinary":
            steps[number] = (steps[number] + 1) % 256
        if len(cast) > CROWD:
            cast.leave_one(rng)
        time.sleep(rng.uniform(0, REST_S))
    cast.leave_all()


def start(number: int, seed: int, steps: mmap.mmap) -> int:
    """A worker's pid."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            syscalls.die_with_parent()
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            churn(number, seed, steps)
            status = 0
        finally:
            os._exit(status)
    return pid


def acts_since(before: bytes, steps: mmap.mmap) -> int:
    """Acts done since `steps` was `before`."""
    return sum((now - then) % 256 for now, then in zip(bytes(steps), before, strict=True))


def ask(trace: Path, *, by_command: bool) -> None:
    """Ask the recorder for a snapshot, and wait until it is taken. Raises HostError where there is no recorder."""
    if by_command:
        command = [sys.executable, "-m", "collect", "snapshot", "--into", str(trace)]
        subprocess.run(command, cwd=Path(__file__).resolve().parents[3], stderr=subprocess.DEVNULL, check=True)
    else:
        from collect.moments import ask_for_snapshot  # behind the forks: it brings threads (pyarrow's)

        ask_for_snapshot(trace, seconds=PATIENCE_S)


def main() -> int:
    """Run the load; it exits with 1 where there was a recorder and not every snapshot came about."""
    options = parser(__doc__ or "", seconds=500)
    options.add_argument("--trace", type=Path, default=Path("/var/tmp/trace"), help="where the recorder writes")
    told = options.parse_args()
    told.trace = str(told.trace)  # for the report, which is JSON
    trace = Path(told.trace)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    rng = random.Random(told.seed)
    report = Report("moments", told)
    steps = mmap.mmap(-1, WORKERS)
    workers = [start(number, told.seed, steps) for number in range(WORKERS)]
    wanted = max(2, round(SNAPSHOTS * told.scale))
    with contextlib.suppress(KeyboardInterrupt, HostError):
        while report.counts["snapshots"] < wanted and not report.out_of_time():
            before = bytes(steps)
            while acts_since(before, steps) < ACTS_BETWEEN and not report.out_of_time():
                time.sleep(0.02)
            time.sleep(rng.uniform(0, LONGEST_S))
            report.counts["asked"] += trace.exists()
            ask(trace, by_command=report.counts["snapshots"] == wanted - 1)
            report.counts["snapshots"] += 1
    for pid in workers:
        os.kill(pid, signal.SIGTERM)
    report.counts["workers_failed"] = sum(os.waitpid(pid, 0)[1] != 0 for pid in workers)
    report.finish()
    good = report.counts["snapshots"] == wanted or not report.counts["asked"]
    return 0 if good and not report.counts["workers_failed"] else 1


if __name__ == "__main__":
    sys.exit(main())
