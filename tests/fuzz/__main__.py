"""Fuzzes everything that reads a trace; the hours add up over runs.

    python -m tests.fuzz run --hours 2 --jobs 2              CPU-hours, over all targets or --target NAME
    python -m tests.fuzz keep                                the smallest corpus of the same coverage, and the ledger, into the repository
    python -m tests.fuzz table                               what was done so far

What is worked with lies in --work (default: ~/.cache/directmap-fuzz), so that it survives `git clean`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from tests.fuzz.answers import MOST_MEMORY, TARGETS
from tests.fuzz.inputs import scratch_of
from tests.fuzz.ledger import Ledger, commit

ROOT = Path(__file__).parents[2]
WORK = Path.home() / ".cache/directmap-fuzz"
SLICE_SECONDS = 1200.0
"""CPU time of a worker before another target has its turn."""
MOST_STILL = 240
"""Seconds that one input may take without CPU time: it waits for something."""
MOST_STOPPED = 20
"""Seconds that a worker may be stopped while we are not."""
SHARE = {"rebuilt": 3, "replayed": 2, "read": 2, "recovered": 1.5, "commanded": 1.5, "drawn": 1}
"""How the time is shared out."""


@dataclass
class Job:
    """A worker at work."""

    target: str
    process: subprocess.Popen[bytes]
    directory: Path
    seconds: float
    still: int = 0
    stopped: int = 0
    last: tuple[int, float] = (0, 0.0)


def run(hours: float, jobs: int, targets: list[str], work: Path) -> None:
    """Keep `jobs` workers busy until they have used that many CPU-hours, or until SIGTERM or Ctrl-C."""
    ledger = Ledger(work / "log.jsonl")
    at = commit(ROOT)
    left = hours * 3600
    running: list[Job] = []

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    try:
        while left > 0 or running:
            while left > 0 and len(running) < min(jobs, len(targets)):
                seconds = min(SLICE_SECONDS, left)
                left -= seconds
                busy = {job.target for job in running}
                free = [name for name in targets if name not in busy]
                running.append(_start(min(free, key=lambda name: ledger.seconds(name) / SHARE[name]), work, seconds))
            time.sleep(1)
            for job in list(running):
                if used := _ended(job):
                    running.remove(job)
                    left += max(0.0, job.seconds - used[0])
                    _enter(ledger, job, *used, at)
    except KeyboardInterrupt:
        pass
    finally:
        for job in running:
            job.process.kill()
            _enter(ledger, job, *_reap(job), at)
    print(ledger.table())


def _start(target: str, work: Path, seconds: float) -> Job:
    directory = work / target
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "state.json").unlink(missing_ok=True)
    environment = os.environ | {
        "NUMBA_BOUNDSCHECK": "1",
        "NUMBA_CACHE_DIR": str(work / "numba"),
        "PYTHONPATH": str(ROOT),
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
    with (directory / "worker.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-m", "tests.fuzz.worker", target, str(directory), str(seconds)],
            cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    return Job(target, process, directory, seconds)


def _ended(job: Job) -> tuple[float, str] | None:
    """CPU seconds of a worker that has ended, and what ended it ("" for its own will); None while it runs."""
    pid, status, used = os.wait4(job.process.pid, os.WNOHANG)
    if pid:
        return _how(job, status, used.ru_utime + used.ru_stime)
    state, ticks, resident = _state(job.process.pid)
    if resident > 3 * MOST_MEMORY:
        job.process.kill()
        return _reap(job)[0], f"took more than {3 * MOST_MEMORY >> 30} GB of memory"
    job.stopped = job.stopped + 1 if state == "T" else 0
    if job.stopped > MOST_STOPPED:  # whoever stopped us all for a measurement has continued us, but not it
        job.process.send_signal(signal.SIGCONT)
    if state == "T":
        return None
    current = job.directory / "current"
    now = ticks, current.stat().st_mtime if current.exists() else 0.0
    job.still = job.still + 1 if now == job.last else 0
    job.last = now
    if job.still > MOST_STILL:
        job.process.kill()
        seconds, _ = _reap(job)
        return seconds, "waits for something that does not come"
    return None


def _reap(job: Job) -> tuple[float, str]:
    _, _, used = os.wait4(job.process.pid, 0)
    job.process.returncode = 0
    return used.ru_utime + used.ru_stime, ""


def _how(job: Job, status: int, seconds: float) -> tuple[float, str]:
    job.process.returncode = os.waitstatus_to_exitcode(status)
    code = job.process.returncode
    if code == 0:
        return seconds, ""
    if code == -signal.SIGPROF:
        return seconds, "took too long"
    return seconds, f"ended with {signal.Signals(-code).name if code < 0 else f'status {code}'}"


def _state(pid: int) -> tuple[str, int, int]:
    """What a process does (R, S, T, ...; proc_pid_stat(5)), its CPU time in tenths of a second, its resident bytes."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "", 0, 0
    return fields[0], (int(fields[11]) + int(fields[12])) // 10, int(fields[21]) * os.sysconf("SC_PAGE_SIZE")


def _enter(ledger: Ledger, job: Job, seconds: float, why: str, at: str) -> None:
    """Write down what a worker did, and keep the input that ended it."""
    state = json.loads((job.directory / "state.json").read_text()) if (job.directory / "state.json").exists() else {}
    causes = list(state.get("findings", {}))
    if why:
        log = (job.directory / "worker.log").read_text(errors="replace")
        current = (
            (job.directory / "current").read_text(errors="replace") if (job.directory / "current").exists() else ""
        )
        cause = f"died: {why}"
        causes.append(cause)
        (job.directory / "findings").mkdir(exist_ok=True)
        name = f"died-{time.time():.0f}.json"
        (job.directory / "findings" / name).write_text(
            json.dumps({"target": job.target, "cause": cause, "input": current, "traceback": log[-6000:]}, indent=1)
        )
    shutil.rmtree(scratch_of(job.process.pid), ignore_errors=True)
    ledger.enter(job.target, at, seconds, int(state.get("runs", 0)), causes)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["run", "keep", "table"])
    parser.add_argument("--hours", type=float, default=1.0, help="CPU-hours, of all workers together")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--target", action="append", choices=list(TARGETS), help="only this (may be repeated)")
    parser.add_argument("--work", type=Path, default=WORK)
    options = parser.parse_args()
    if options.what == "run":
        run(options.hours, options.jobs, options.target or list(TARGETS), options.work.absolute())
    elif options.what == "keep":
        from tests.fuzz.keep import keep

        keep(options.work.absolute(), options.target or list(TARGETS))
        shutil.rmtree(scratch_of(os.getpid()), ignore_errors=True)
    else:
        print(Ledger(options.work / "log.jsonl").table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
