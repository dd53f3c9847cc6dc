"""Runs loads under contestants, one at a time, in rounds; whatever happens, nothing is left running or attached."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from collect.errors import HostError
from tests.bench.contestants import UNTRACED, Contestant, Recorded
from tests.bench.loads import Load
from tests.bench.watch import Watch

__all__ = ["QUIET", "Run", "rounds", "run_once"]

ROOT = Path(__file__).parents[2]
POLL_SECONDS = 0.02
QUIET = 0.1
"""Most of the CPU time that others may use in a quiet run. What the kernel does for a tracer in threads of its own (as
writing to the disk) counts here as done by others, and stays well below."""
STOP_SECONDS = 30.0
NAME_OF_LOAD = 'echo $$ >"$0"; exec "$@"'
"""Says which process the load is, and that the tracer has attached: all of them start it only then."""


@dataclass(frozen=True)
class Run:
    """One run of a load under a contestant.

    Attributes:
        pages: that the load touched; 0 for a load of another kind.
        seconds, cpu_seconds: of the load itself, by its own clock.
        tracer_cpu_seconds: of the tracer's processes, from the start of the load to their own end.
        attach_cpu_seconds: of the same, before.
        others_share: of all CPU time there was during the run, what processes used that are none of the benchmark's
            (and what the hypervisor took away), 0 to 1.
    """

    load: str
    contestant: str
    round: int
    pages: int
    seconds: float
    cpu_seconds: float
    tracer_cpu_seconds: float
    attach_cpu_seconds: float
    others_share: float
    recorded: Recorded

    @property
    def seconds_per_unit(self) -> float:
        """Per page, or of the whole where the work is fixed."""
        return self.seconds / (self.pages or 1)

    @property
    def cpu_seconds_per_unit(self) -> float:
        return self.cpu_seconds / (self.pages or 1)


def rounds(load: Load, everyone: Sequence[Contestant], n_rounds: int, scratch: Path) -> tuple[list[Run], list[Run]]:
    """Each contestant in turn, until `n_rounds` rounds were quiet, but no more than twice as many.

    The one that begins changes from round to round, so that none always follows the same. Returns the runs of the
    `n_rounds` quietest rounds, which leave whole rounds out only and so favour nobody, and those left out.
    """
    made: list[list[Run]] = []
    while len(made) < 2 * n_rounds and sum(_others_share(one) <= QUIET for one in made) < n_rounds:
        shift = len(made) % len(everyone)
        made.append([])
        for contestant in [*everyone[shift:], *everyone[:shift]]:
            run, _ = run_once(load, contestant, scratch, number=len(made))
            print(f"{load.name}, round {len(made)}, {contestant.title}: {_headline(run)}", file=sys.stderr, flush=True)
            made[-1].append(run)
    kept = sorted(sorted(made, key=_others_share)[:n_rounds], key=lambda one: one[0].round)
    left_out = [run for one in made if one not in kept for run in one]
    return [run for one in kept for run in one], left_out


def _others_share(one_round: Sequence[Run]) -> float:
    """Of the run of a round in which others used most."""
    return max(run.others_share for run in one_round)


def _headline(run: Run) -> str:
    speed = f"{run.pages / run.seconds:,.0f} pages/s" if run.pages else f"{run.seconds:.2f} s"
    noise = f", others used {run.others_share:.0%}" if run.others_share > QUIET else ""
    return f"{speed}, {run.recorded.lost:,} events lost{noise}"


def run_once(
    load: Load, contestant: Contestant, scratch: Path, *, number: int = 0, sample_seconds: float | None = None
) -> tuple[Run, Watch]:
    """One run, and what was seen of the tracer meanwhile. Raises HostError where it failed, with its last line."""
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=scratch))
    try:
        return _run_in(folder, load, contestant, number, sample_seconds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.sync()  # what this run left to be written is not the next one's burden


def _run_in(
    folder: Path, load: Load, contestant: Contestant, number: int, sample_seconds: float | None
) -> tuple[Run, Watch]:
    result, pid_file = folder / "load.json", folder / "load.pid"
    before = _cpu_seconds()
    began = time.monotonic()
    argv = contestant.command(["sh", "-c", NAME_OF_LOAD, str(pid_file), *load.argv(result)], folder)
    with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=ROOT, start_new_session=True
        )
    watch = Watch(process.pid, pid_file, sample_seconds)
    try:
        status, used = _wait(process.pid, time.monotonic() + load.limit_seconds)
        process.returncode = status
    except BaseException:
        _stop(process)
        raise
    finally:
        watch.close()
    others = (_cpu_seconds() - before - used) / (time.monotonic() - began) / len(os.sched_getaffinity(0))
    if status is None:
        _stop(process)
        raise HostError(f"{contestant.title}: did not end in {load.limit_seconds:.0f} s under {load.name}; stopped")
    if status or not result.is_file():
        raise HostError(f"{contestant.title}: failed under {load.name} with status {status}: {_last_lines(folder)}")
    said = json.loads(result.read_text())
    own = used - said["cpu_seconds"] - watch.attach_cpu_seconds if contestant.name != UNTRACED else 0.0
    run = Run(
        load=load.name,
        contestant=contestant.name,
        round=number,
        pages=int(said.get("pages", 0)),
        seconds=said["seconds"],
        cpu_seconds=said["cpu_seconds"],
        tracer_cpu_seconds=max(0.0, own),
        attach_cpu_seconds=watch.attach_cpu_seconds,
        others_share=max(0.0, others),
        recorded=contestant.recorded(folder, said.get("pids", [])),
    )
    return run, watch


def _wait(pid: int, until: float) -> tuple[int | None, float]:
    """Exit status of `pid` (None: it still runs) and the CPU seconds of it and of all that it waited for."""
    while time.monotonic() < until:
        done, status, used = os.wait4(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime
        time.sleep(POLL_SECONDS)
    return None, 0.0


def _cpu_seconds() -> float:
    """CPU time that all but this process have used, or that the hypervisor gave to other guests, since boot."""
    # Documentation/filesystems/proc.rst: user, nice, system, idle, iowait, irq, softirq, steal
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK") - time.process_time()


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the tracer and its load to end, as Ctrl-C would; then make them. BPF programs go with their process."""
    for number in (signal.SIGINT, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            continue


def _last_lines(folder: Path) -> str:
    """What it said last: its stderr, or else its stdout."""
    for name in ("stderr", "stdout"):
        lines = [line.strip() for line in (folder / name).read_text(errors="replace").splitlines() if line.strip()]
        if lines:
            return " / ".join(lines[-2:])[:300]
    return "it said nothing"
