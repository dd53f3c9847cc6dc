"""What the recorder does around its programs: draining beside the rows, changes that touched a snapshot, when it ends."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from collect.command import Command, Interrupts
from collect.drainer import Drainer
from collect.errors import HostError
from collect.live import Status
from collect.meanwhile import Meanwhile
from collect.moments import Moments
from collect.options import Options
from collect.recorder import Recorder
from collect.records import ARRAY, CHANGE, CHUNK, PAGE_EVENT
from collect.schema import ChangeKind, Cpa, Moment
from collect.snapshot_taker import SnapshotTaker

PAGE_OFFSET, VMEMMAP, MAX_PFN = 0xFFFF_9000_4000_0000, 0xFFFF_EA00_0000_0000, 1 << 20
KERNEL: Any = SimpleNamespace(page_offset=PAGE_OFFSET, vmemmap=VMEMMAP, memory={"max_pfn": MAX_PFN})


class Program:
    """Rings as a list of what each draining gives; calls that run, by number of looks left."""

    def __init__(self, *drained: tuple[list[dict[str, Any]], list[dict[str, Any]]]) -> None:
        self.left = list(drained)
        self.rings: dict[str, Any] = {
            name: SimpleNamespace(used=0, size=1 << 20) for name in ("change_ring", "array_ring")
        }
        self.page_rings = None
        self.running: dict[int, int] = {}
        self.drains_while_running = 0
        self.page_events = 0
        self.pages_left = 0

    def drain(self, *, pages: bool = True) -> dict[str, np.ndarray]:
        changes, chunks = self.left.pop(0) if self.left else ([], [])
        self.drains_while_running += bool(self.running)
        drained = {"change_ring": records(CHANGE, changes), "array_ring": records(ARRAY, chunks)}
        self.pages_left += not pages
        return drained | ({"page_events": np.zeros(self.page_events, PAGE_EVENT)} if pages else {})

    def running_calls(self) -> set[int]:
        now = set(self.running)
        self.running = {call: looks - 1 for call, looks in self.running.items() if looks > 1}
        return now


def records(dtype: np.dtype[np.void], rows: list[dict[str, Any]]) -> np.ndarray:
    made = np.zeros(len(rows), dtype)
    for i, row in enumerate(rows):
        for name, value in row.items():
            made[name][i] = value
    return made


def recorder(program: Program) -> Recorder:
    """One that records; nothing is drained but by its asking."""
    made = Recorder.__new__(Recorder)
    made._program = program  # type: ignore[assignment]
    made._kernel = KERNEL
    made._drainer = Drainer(program)  # type: ignore[arg-type]
    made._moments = Moments()
    made._command = made._memory = None
    made._recording, made._begin = True, time.monotonic()
    made._status = Status()
    return made


def taker(program: Program, go_on: Callable[[], object] = lambda: None) -> SnapshotTaker:
    """One that stands in the middle of a snapshot; nothing is drained but by its asking."""
    made = SnapshotTaker(KERNEL, *[SimpleNamespace()] * 2, go_on)  # type: ignore[arg-type]
    made.attached(program, Drainer(program))  # type: ignore[arg-type]
    made._meanwhile = Meanwhile(KERNEL)
    made._drainer.watch(made._meanwhile)
    return made


def change(address: int, n_pages: int = 1, **values: int) -> dict[str, Any]:
    return {"ts": 10, "end": 20, "address": address, "n_pages": n_pages} | values


def touched(made: SnapshotTaker) -> list[tuple[int, int, int, int]]:
    return sorted(zip(*(column.tolist() for column in made.touched()), strict=True))


# --- changes while a snapshot is read --------------------------------------------------------------------------------


def test_changes_of_the_direct_map_touch_it_and_others_do_not() -> None:
    changes = [
        change(PAGE_OFFSET + (5 << 12), 3),
        change(PAGE_OFFSET + (MAX_PFN << 12)),
        change(PAGE_OFFSET - 4096),
        change(0xFFFF_FFFF_8100_0000),
        change(PAGE_OFFSET, ts=30, end=40),
    ]
    assert touched(taker(Program((changes, [])))) == [(10, 20, 5, 3), (30, 40, 0, 1)]


def test_memory_that_comes_meanwhile_is_touched_and_what_is_changed_in_it() -> None:
    came = change(PAGE_OFFSET + (MAX_PFN << 12), 512, kind=int(ChangeKind.HOTPLUG_ADD))
    inside, beyond = (change(PAGE_OFFSET + (pfn << 12)) for pfn in (MAX_PFN + 7, MAX_PFN + 512))
    assert touched(taker(Program(([came, inside, beyond], [])))) == [
        (10, 20, MAX_PFN, 512),
        (10, 20, MAX_PFN + 7, 1),
    ]


def test_a_pages_array_touches_each_of_its_pages() -> None:
    n = CHUNK + 6
    call = change(PAGE_OFFSET + (7 << 12), n, flags=int(Cpa.PAGES_ARRAY), call_id=3)
    pages = [VMEMMAP + 64 * (7 + 2 * i) for i in range(n)] + [0xDEAD] * (2 * CHUNK - n)
    chunks = [{"call_id": 3, "chunk": i, "page": pages[i * CHUNK :][:CHUNK]} for i in (1, 0)]
    other = {"call_id": 4, "chunk": 0, "page": [VMEMMAP] * CHUNK}
    assert touched(taker(Program(([call], [*chunks, other])))) == [(10, 20, 7 + 2 * i, 1) for i in range(n)]


def test_chunks_drained_before_the_snapshot_began_belong_to_a_call_that_ends_in_it() -> None:
    call = change(PAGE_OFFSET + (7 << 12), 1, flags=int(Cpa.PAGES_ARRAY), call_id=3)
    chunk = {"call_id": 3, "chunk": 0, "page": [VMEMMAP + 64 * 7] * CHUNK}
    made = taker(Program(([], [chunk]), ([call], [])))
    made._drainer.watch(None)
    made._drainer.drain()
    made._drainer.watch(made._meanwhile)
    assert touched(made) == [(10, 20, 7, 1)]


def test_all_that_was_seen_since_the_snapshot_began_is_told_each_time() -> None:
    made = taker(Program(([change(PAGE_OFFSET)], []), ([], []), ([change(PAGE_OFFSET + 4096)], [])))
    assert [len(touched(made)) for _ in range(3)] == [1, 1, 2]
    assert sum(len(part) for part in made._drainer.take()["change_ring"]) == 2, "and none is kept from the rows"


def test_it_waits_for_the_calls_that_run() -> None:
    program = Program(([change(PAGE_OFFSET)], []))
    program.running = {1: 2, 2: 5}
    assert len(touched(taker(program))) == 1
    assert program.running == {} and program.drains_while_running == 0


def test_the_recording_goes_on_while_it_waits_for_calls() -> None:
    program, went_on = Program(), []
    program.running = {1: 6}
    touched(taker(program, lambda: went_on.append(program.running.get(1))))
    assert went_on == [5, 4, 3, 2, 1, None]


# --- draining beside the rows ----------------------------------------------------------------------------------------


@pytest.fixture
def started() -> Iterator[Callable[[Drainer], Drainer]]:
    running: list[Drainer] = []

    def start(drainer: Drainer) -> Drainer:
        drainer.start()
        running.append(drainer)
        return drainer

    yield start
    for drainer in running:
        drainer.stop()


def wait_for(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.005)


def test_the_thread_drains_by_itself_and_nothing_is_taken_twice(started: Callable[[Drainer], Drainer]) -> None:
    program = Program(([change(PAGE_OFFSET)], []), ([change(PAGE_OFFSET), change(PAGE_OFFSET)], []))
    drainer = started(Drainer(program))  # type: ignore[arg-type]
    wait_for(lambda: not program.left)
    batch = drainer.take()
    assert sum(len(part) for part in batch["change_ring"]) == 3
    assert set(batch) == {"change_ring", "array_ring", "page_events"}, "every ring has its part, be it empty"
    assert sum(len(part) for part in drainer.take()["change_ring"]) == 0


def test_page_events_wait_in_their_rings_when_too_many_wait_for_rows(started: Callable[[Drainer], Drainer]) -> None:
    program = Program()
    program.page_events = 1000
    bound = 5 * 1000 * PAGE_EVENT.itemsize
    drainer = started(Drainer(program, queue_bytes=bound))  # type: ignore[arg-type]
    wait_for(lambda: program.pages_left > 3)
    assert drainer.page_bytes == bound
    assert sum(part.nbytes for part in drainer.take()["page_events"]) == bound + 1000 * PAGE_EVENT.itemsize
    assert drainer.page_bytes < bound, "and the thread goes on"


def test_what_the_thread_meets_is_told_to_whoever_takes(started: Callable[[Drainer], Drainer]) -> None:
    program = Program()

    def broken(*, pages: bool = True) -> None:
        raise HostError("a ring holds nonsense")

    program.drain = broken  # type: ignore[assignment, method-assign]
    drainer = started(Drainer(program))  # type: ignore[arg-type]
    wait_for(lambda: drainer._error is not None)
    with pytest.raises(HostError, match="nonsense"):
        drainer.take()


# --- when a recording ends -------------------------------------------------------------------------------------------


def idle(monkeypatch: pytest.MonkeyPatch, command: list[str] | None = None) -> Recorder:
    made = recorder(Program())
    made._command = Command(command) if command else None
    monkeypatch.setattr(Recorder, "_tick", lambda self: None)
    return made


def test_it_records_as_long_as_the_command_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert idle(monkeypatch, ["sh", "-c", "exit 3"])._record(None, Interrupts()) == 3


def test_time_over_ends_the_command_too(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = time.monotonic()
    assert idle(monkeypatch, ["sleep", "60"])._record(0.1, Interrupts()) == -15
    assert 0.1 <= time.monotonic() - begin < 20


def test_without_a_command_only_time_or_ctrl_c_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert idle(monkeypatch)._record(0.05, Interrupts()) is None
    stopped = Interrupts()
    stopped.seen = True
    assert idle(monkeypatch)._record(None, stopped) is None


def test_snapshots_are_taken_when_due_and_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    made = idle(monkeypatch)
    taken: list[tuple[float, Moment]] = []
    begin = time.monotonic()

    def take(self: Recorder, moment: Moment) -> None:
        taken.append((time.monotonic() - begin, moment))
        if len(taken) == 1:
            os.kill(os.getpid(), signal.SIGUSR1)

    monkeypatch.setattr(Recorder, "_snapshot_between", take)
    made._moments = Moments(0.25)
    with made._moments:
        made._record(0.9, Interrupts())
    assert [moment for _, moment in taken] == [Moment.PERIODIC, Moment.REQUEST, Moment.PERIODIC, Moment.PERIODIC]
    assert all(
        when >= 0.25 * n for n, when in enumerate((when for when, moment in taken if moment == Moment.PERIODIC), 1)
    )


def test_ticks_go_on_while_a_snapshot_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot that takes three seconds is not a second without counters or saving."""
    made = idle(monkeypatch)
    ticks: list[float] = []
    monkeypatch.setattr(Recorder, "_tick", lambda self: ticks.append(time.monotonic()))
    monkeypatch.setattr("collect.recorder.TICK_SECONDS", 0.05)
    made._next_tick = time.monotonic()
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        made._go_on()
    assert len(ticks) >= 8
    made._recording = False
    n = len(ticks)
    time.sleep(0.1)
    assert made._go_on() is False and len(ticks) == n, "nothing is saved before the start snapshot is"


def test_a_recording_that_is_refused_leaves_no_waiting_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The child is forked first of all, while the privileges are those of the caller."""
    made: list[Command] = []

    def prepared(*arguments: Any) -> Command:
        made.append(Command(*arguments))
        return made[-1]

    def refuse(*, changes: bool) -> None:
        raise HostError("no such kernel")

    monkeypatch.setattr("collect.recorder.ask", lambda wanted: None)
    monkeypatch.setattr("collect.recorder.Command", prepared)
    monkeypatch.setattr("collect.recorder.kernel_for_changes", lambda *, all_pages: refuse(changes=True))
    with pytest.raises(HostError, match="no such kernel"):
        Recorder(Options(tmp_path / "trace"), ["sleep", "60"])
    assert made[0].status is not None


def test_what_lies_behind_a_record_that_is_being_written_is_waited_for() -> None:
    """The ring gives nothing at first, and the call that left its record there is over."""
    program = Program(([], []), ([change(PAGE_OFFSET)], []))
    waits = property(lambda self: 64 if program.left else 0)
    program.rings["change_ring"] = type("Ring", (), {"used": waits, "size": 1 << 20})()
    assert len(touched(taker(program))) == 1


@pytest.mark.parametrize("days", [1, 207, 220, 900])
def test_a_call_that_never_returned_is_told_from_one_that_runs_however_long_the_machine_is_up(
    days: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids hold 54 bits of the time: they begin anew after 208 days."""
    now = days * 86_400 * 10**9
    made = recorder(Program())
    ids = {((now - age) << 10 & (1 << 64) - 1) | 3 for age in (0, 10**9, 7 * 10**9, 3600 * 10**9)}
    monkeypatch.setattr(Program, "running_calls", lambda self: ids)
    monkeypatch.setattr("collect.recorder.time.monotonic_ns", lambda: now)
    assert made._never_returned() == 2
