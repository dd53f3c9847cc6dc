"""--max-overhead: what the page programs cost is measured, and page events step down before it costs more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from collect.overhead import CALL_NS, OFF, STEPS, Governor
from collect.syscalls import Runs, program_runs

ROOT = Path(__file__).parents[2]
SECOND = 1_000_000_000


class Machine:
    """Two CPUs on which page programs take so many nanoseconds in a second, less where fewer blocks are recorded."""

    def __init__(self, ns_per_second: int, n_per_second: int = 0) -> None:
        self.ns_per_second, self.n_per_second = ns_per_second, n_per_second
        self.now, self.ns, self.n = 0, 0, 0
        self.sample = 1
        self.steps: list[int] = []

    def runs(self) -> Runs:
        return Runs(self.n, self.ns)

    def set_sample(self, sample: int) -> None:
        self.sample = sample
        self.steps.append(sample)

    def second(self) -> None:
        self.now += SECOND
        self.ns += self.ns_per_second // self.sample if self.sample else 0
        self.n += self.n_per_second

    def governor(self, limit: float, sample: int = 1, *, can_sample: bool = True) -> Governor:
        return Governor(limit, 2, sample, self.runs, self.set_sample, can_sample=can_sample, now_ns=lambda: self.now)


def after(machine: Machine, governor: Governor, seconds: int) -> Machine:
    for _ in range(seconds):
        machine.second()
        governor.tick()
    return machine


def test_the_cost_is_a_share_of_all_cpus_time() -> None:
    machine = Machine(ns_per_second=20_000_000)  # 20 ms of 2 s
    governor = machine.governor(limit=5)
    after(machine, governor, 3)
    assert governor.percent == pytest.approx(1.0)
    assert machine.steps == []


def test_calling_a_program_costs_too_where_it_records_nothing() -> None:
    machine = Machine(ns_per_second=0, n_per_second=1_000_000)
    governor = machine.governor(limit=100)
    after(machine, governor, 1)
    assert governor.percent == pytest.approx(100 * 1_000_000 * CALL_NS / (2 * SECOND))


def test_it_steps_down_until_the_limit_holds_and_stays_there(capsys: pytest.CaptureFixture[str]) -> None:
    machine = Machine(ns_per_second=100_000_000)  # 5 %: a quarter of it is 1.25 %, a 16th 0.3 %
    governor = machine.governor(limit=1)
    after(machine, governor, 30)
    assert machine.steps == [4, 16]
    assert [step["page_sample"] for step in governor.steps] == [4, 16]
    assert governor.steps[0]["percent"] == pytest.approx(5)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert "cost 5 % of all CPUs' time, more than --max-overhead 1" in said[0]
    assert "one page block in 4 is recorded; changes are recorded as before" in said[0]


def test_where_no_sampling_is_enough_page_events_are_off(capsys: pytest.CaptureFixture[str]) -> None:
    machine = Machine(ns_per_second=0, n_per_second=10_000_000)  # calls alone
    governor = machine.governor(limit=1)
    after(machine, governor, 30)
    assert machine.steps == [4, 16, 64, 0]
    assert governor.sample == OFF
    assert "no more page events are recorded; changes are" in capsys.readouterr().err.splitlines()[-1]


def test_a_recording_that_was_sampled_from_the_start_steps_down_from_there() -> None:
    machine = Machine(ns_per_second=0, n_per_second=10_000_000)
    after(machine, machine.governor(limit=1, sample=32), 30)
    assert machine.steps == [64, 0]


def test_where_there_is_nothing_to_sample_the_first_step_is_off() -> None:
    machine = Machine(ns_per_second=100_000_000)
    after(machine, machine.governor(limit=1, can_sample=False), 30)
    assert machine.steps == [0]


def test_one_burst_takes_no_step() -> None:
    machine = Machine(ns_per_second=0)
    governor = machine.governor(limit=1)
    for second in range(10):
        machine.ns_per_second = 500_000_000 if second % 2 else 0
        after(machine, governor, 1)
    assert machine.steps == []


def test_steps_go_down() -> None:
    assert list(STEPS[:-1]) == sorted(STEPS[:-1]) and STEPS[-1] == OFF


@pytest.mark.skipif(os.geteuid() != 0, reason="loads a program: run make test as root")
def test_the_kernel_times_a_program_while_it_is_asked_to() -> None:
    """In a process of its own, which ends the timing with it; a raw tracepoint that any process passes all the time."""
    code = (
        "import sys, time\n"
        "from collect.compiler import compile_program, import_bcc\n"
        "from collect.errors import HostError\n"
        "from collect.overhead import time_programs\n"
        "from collect.syscalls import program_runs\n"
        "try: bpf = compile_program(import_bcc(), 'RAW_TRACEPOINT_PROBE(sys_enter) { return 0; }', []).bpf\n"
        "except HostError as error: print('skip', error); sys.exit()\n"
        "fds = [function.fd for function in bpf.funcs.values()]\n"
        "before = program_runs(fds)\n"
        "fd = time_programs()\n"
        "for _ in range(1000): time.sleep(0)\n"
        "after = program_runs(fds)\n"
        "print(*before, after.n >= 1000, 0 < after.ns / max(after.n, 1) < 100_000)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    if done.stdout.startswith("skip"):
        pytest.skip(f"raw tracepoints are refused here ({done.stdout.strip()}); python -m collect check says more")
    assert done.stdout.split() == ["0", "0", "True", "True"]


def test_descriptors_of_no_programs_have_no_runs() -> None:
    assert program_runs([]) == Runs(0, 0)
