"""Takes the snapshots of a recording: with an eye on the changes that run meanwhile, and into the trace."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from collect.counters import counter_rows
from collect.drainer import Drainer
from collect.journal import TraceWriter
from collect.kernel import Kernel
from collect.meanwhile import Meanwhile
from collect.pagetables import Walker
from collect.program import Program
from collect.rows import RowMaker
from collect.schema import Moment
from collect.snapshot import RangeSnapshot, Snapshot, Touched, still, still_range, walk_once

__all__ = ["CALL_ID_SHIFT", "RUNNING_CALL_SECONDS", "SnapshotTaker"]

WAIT_SECONDS = 0.01
RUNNING_CALL_SECONDS = 5.0
CALL_ID_SHIFT = 10
"""A call's id is the low 54 bits of its time of entry in nanoseconds (208 days), then ten bits of its CPU (new_id in
collect/bpf/records.h)."""

OUTSIDE = (Moment.BEFORE_ATTACH, Moment.AFTER_DETACH)
BETWEEN = (Moment.PERIODIC, Moment.REQUEST)

S = TypeVar("S", Snapshot, RangeSnapshot)


class SnapshotTaker:
    """Numbers, takes and saves the snapshots of one recording.

    Args:
        kernel: whose page tables are read; without them there are no snapshots.
        rows: for the parts of changes that wait there.
        writer: where snapshots go.
        go_on: called often while a snapshot is read: the rest of the recording cannot wait for it.

    Attributes:
        n_unstable: frames that never came to rest in snapshots on which the rebuilding rests (START, END, HOTPLUG).
        n_between: snapshots taken between START and END.
        n_between_unstable: frames of these that never came to rest. Nothing is rebuilt from them: they prove less.
    """

    def __init__(self, kernel: Kernel, rows: RowMaker, writer: TraceWriter, go_on: Callable[[], object]) -> None:
        self._kernel, self._rows, self._writer, self._go_on = kernel, rows, writer, go_on
        self._n = 0
        self.n_unstable = self.n_between = self.n_between_unstable = 0

    def attached(self, program: Program, drainer: Drainer) -> None:
        """From now on changes are seen, by these."""
        self._program, self._drainer = program, drainer

    def take(self, moment: Moment) -> Snapshot | None:
        """Take one and save it; None where there are no page tables to read."""
        walker = self._kernel.walker
        if walker is None:
            return None
        if moment in OUTSIDE:
            snapshot = walk_once(walker)
        else:
            snapshot = self._exact(partial(still, walker, self.touched, self._go_on))
        self._writer.append("snapshots", snapshot.table(self._n, moment))
        if moment not in OUTSIDE:
            self._account(snapshot, moment)
        self._n += 1
        return snapshot

    def take_range(self, walker: Walker, first_pfn: int, end_pfn: int) -> None:
        """Take one of the pages [first_pfn, end_pfn) alone, where memory came or went, and save it."""
        part = self._exact(partial(still_range, walker, self.touched, first_pfn, end_pfn))
        self.n_unstable += part.n_unstable
        self._writer.append("snapshots", part.table(self._n))
        self._n += 1

    def _account(self, snapshot: Snapshot, moment: Moment) -> None:
        """What had to be read again goes into the trace beside the snapshot, by its number."""
        if moment in BETWEEN:
            self.n_between += 1
            self.n_between_unstable += snapshot.n_unstable
        else:
            self.n_unstable += snapshot.n_unstable
        counters = {
            "recorder/snapshot": self._n,
            "recorder/snapshot_rounds": snapshot.n_rounds,
            "recorder/snapshot_frames_again": snapshot.n_again,
            "recorder/snapshot_frames_unstable": snapshot.n_unstable,
        }
        self._writer.append("counters", counter_rows(time.monotonic_ns(), counters))

    def _exact(self, read: Callable[[], S]) -> S:
        """Read a snapshot with an eye on the changes that run meanwhile."""
        self._meanwhile = Meanwhile(self._kernel)
        self._meanwhile.add_chunks(self._rows.unclaimed_chunks)
        self._drainer.watch(self._meanwhile)
        try:
            return read()
        finally:
            self._drainer.watch(None)

    def touched(self) -> Touched:
        """Changes seen since the snapshot began, after those that run now have ended."""
        running = self._program.running_calls()
        give_up = time.monotonic() + RUNNING_CALL_SECONDS
        while running and time.monotonic() < give_up:
            self._wait()
            running &= self._program.running_calls()
        # Calls that never end (their return was missed) are a loss of their own. A ring gives what lies before the first
        # record that is still being written: what a call left behind another's is waited for.
        self._drainer.drain()
        while any(self._program.rings[name].used for name in ("change_ring", "array_ring")) and (
            time.monotonic() < give_up
        ):
            self._wait()
            self._drainer.drain()
        return self._meanwhile.touched()

    def _wait(self) -> None:
        self._go_on()
        time.sleep(WAIT_SECONDS)
