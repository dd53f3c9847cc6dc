"""What the recorder does around its programs: changes that touched a snapshot, Ctrl-C, a command that ends."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from collect.errors import HostError
from collect.recorder import Interrupts, Recorder
from collect.records import ARRAY, CHANGE, CHUNK
from collect.schema import Cpa

PAGE_OFFSET, VMEMMAP, MAX_PFN = 0xFFFF_9000_4000_0000, 0xFFFF_EA00_0000_0000, 1 << 20


class Program:
    """Rings as a list of what each draining gives; calls that run, by number of looks left."""

    def __init__(self, *drained: tuple[list[dict[str, Any]], list[dict[str, Any]]]) -> None:
        self.left = list(drained)
        self.rings: dict[str, Any] = {
            name: SimpleNamespace(used=0, size=1 << 20) for name in ("change_ring", "array_ring")
        }
        self.running: dict[int, int] = {}
        self.drains_while_running = 0

    def drain(self) -> dict[str, np.ndarray]:
        changes, chunks = self.left.pop(0) if self.left else ([], [])
        self.drains_while_running += bool(self.running)
        return {"change_ring": records(CHANGE, changes), "array_ring": records(ARRAY, chunks)}

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
    """One that stands in the middle of a snapshot."""
    made = Recorder.__new__(Recorder)
    made._program = program  # type: ignore[assignment]
    made._kcore = SimpleNamespace(page_offset=PAGE_OFFSET, max_pfn=MAX_PFN)  # type: ignore[assignment]
    made._rows = SimpleNamespace(max_pfn=MAX_PFN)  # type: ignore[assignment]
    made._memory = SimpleNamespace(note=lambda changes: None, take=list)  # type: ignore[assignment]
    made._constants = {"VMEMMAP_BASE": VMEMMAP}
    made._batch = {}
    made._seen_changes = []
    return made


def change(address: int, n_pages: int = 1, **values: int) -> dict[str, Any]:
    return {"ts": 10, "end": 20, "address": address, "n_pages": n_pages} | values


def touched(made: Recorder) -> list[tuple[int, int, int, int]]:
    return sorted(zip(*(column.tolist() for column in made._touched()), strict=True))


def test_changes_of_the_direct_map_touch_it_and_others_do_not() -> None:
    changes = [
        change(PAGE_OFFSET + (5 << 12), 3),
        change(PAGE_OFFSET + (MAX_PFN << 12)),
        change(PAGE_OFFSET - 4096),
        change(0xFFFF_FFFF_8100_0000),
        change(PAGE_OFFSET, ts=30, end=40),
    ]
    assert touched(recorder(Program((changes, [])))) == [(10, 20, 5, 3), (30, 40, 0, 1)]


def test_a_pages_array_touches_each_of_its_pages() -> None:
    n = CHUNK + 6
    call = change(PAGE_OFFSET + (7 << 12), n, flags=int(Cpa.PAGES_ARRAY), call_id=3)
    pages = [VMEMMAP + 64 * (7 + 2 * i) for i in range(n)] + [0xDEAD] * (2 * CHUNK - n)
    chunks = [{"call_id": 3, "chunk": i, "page": pages[i * CHUNK :][:CHUNK]} for i in (1, 0)]
    other = {"call_id": 4, "chunk": 0, "page": [VMEMMAP] * CHUNK}
    assert touched(recorder(Program(([call], [*chunks, other])))) == [(10, 20, 7 + 2 * i, 1) for i in range(n)]


def test_all_that_was_seen_since_the_snapshot_began_is_told_each_time() -> None:
    made = recorder(Program(([change(PAGE_OFFSET)], []), ([], []), ([change(PAGE_OFFSET + 4096)], [])))
    assert [len(touched(made)) for _ in range(3)] == [1, 1, 2]
    assert [len(part) for part in made._batch["change_ring"]] == [1, 0, 1], "and none is kept from the rows"


def test_it_waits_for_the_calls_that_run() -> None:
    program = Program(([change(PAGE_OFFSET)], []))
    program.running = {1: 2, 2: 5}
    assert len(touched(recorder(program))) == 1
    assert program.running == {} and program.drains_while_running == 0


def test_the_first_ctrl_c_ends_and_the_second_aborts() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), Interrupts() as interrupts:
        assert not interrupts.seen
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.seen
        os.kill(os.getpid(), signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def idle(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = recorder(Program())
    monkeypatch.setattr(Recorder, "_tick", lambda self: None)
    return made


def test_it_records_as_long_as_the_command_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert idle(monkeypatch)._record(["sh", "-c", "exit 3"], None, Interrupts()) == 3


def test_time_over_ends_the_command_too(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = time.monotonic()
    assert idle(monkeypatch)._record(["sleep", "60"], 0.1, Interrupts()) == -signal.SIGTERM
    assert 0.1 <= time.monotonic() - begin < 20


def test_without_a_command_only_time_or_ctrl_c_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert idle(monkeypatch)._record(None, 0.05, Interrupts()) is None
    stopped = Interrupts()
    stopped.seen = True
    assert idle(monkeypatch)._record(None, None, stopped) is None


def test_a_command_that_cannot_be_run_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"missing: cannot be run \(No such file or directory\)"):
        idle(monkeypatch)._record([str(tmp_path / "missing")], None, Interrupts())


def test_what_lies_behind_a_record_that_is_being_written_is_waited_for() -> None:
    """The ring gives nothing at first, and the call that left its record there is over."""
    program = Program(([], []), ([change(PAGE_OFFSET)], []))
    waits = property(lambda self: 64 if program.left else 0)
    program.rings["change_ring"] = type("Ring", (), {"used": waits, "size": 1 << 20})()
    assert len(touched(recorder(program))) == 1
