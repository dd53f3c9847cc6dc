"""Records a trace on the running kernel: attach, snapshot, drain, snapshot, detach."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from collect.command import Command, Interrupts
from collect.counters import counter_rows, read_counters
from collect.drainer import Drainer
from collect.errors import HostError
from collect.heap import give_back, give_back_compiler
from collect.journal import TraceWriter
from collect.kernel import ANY_FRAME, Kernel, kernel_for_changes, kernel_for_pages
from collect.live import Status, View, tell, view_for
from collect.memory_watch import memory_watch
from collect.moments import LAST_BEGAN, Moments
from collect.options import Options, first_manifest
from collect.overhead import Governor, time_programs
from collect.page_events import PACKED_TABLE, bulk_allocations, of_records, pack, with_blocks
from collect.page_ring import is_sampled
from collect.privileges import ask, give_up, needed, raise_memlock
from collect.program import Program
from collect.recovery import finish_after
from collect.rows import RowMaker
from collect.schema import Moment, RegionEvent, RegionKind
from collect.snapshot import Snapshot, frames_split
from collect.snapshot_taker import CALL_ID_SHIFT, RUNNING_CALL_SECONDS, SnapshotTaker
from collect.syscalls import program_runs

__all__ = ["Recorder", "Summary"]

TICK_SECONDS = 1.0
WAIT_SECONDS, IDLE_WAIT_SECONDS = 0.01, 0.05
"""Each look costs some ten microseconds of a CPU that the load could have had."""

BATCH_BYTES = 8 << 20
"""Page events for which rows are made before their second is over, so that memory stays small."""


class Summary(dict[str, int]):
    """What was recorded, for the closing line: rows by table, `seconds`, `lost`, `own_frames`, `snapshots_between`,
    `snapshot_frames_unstable` (of those between)."""


class Recorder:
    """One recording.

    Args:
        options: see there.
        command: to run meanwhile, if any, and its environment (by default, ours).
    Raises:
        HostError: this machine cannot be recorded, or the directory not be written.
    """

    def __init__(
        self, options: Options, command: Sequence[str] | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        if sys.platform != "linux" or os.uname().machine != "x86_64":
            raise HostError(
                f"{sys.platform} {os.uname().machine}: only x86-64 Linux has the direct map that is recorded here"
            )
        self._options = options
        ask(needed(changes=not options.only_pages, statistics=options.max_overhead is not None))
        # Before anything is attached or given up: see Command.
        self._command = Command(command, environment) if command else None
        self._view: View = view_for(live=False)
        try:
            raise_memlock()
            self._kernel: Kernel = (
                kernel_for_pages() if options.only_pages else kernel_for_changes(all_pages=options.pages == "all")
            )
            self._manifest = first_manifest(self._kernel, options)
            self._rows = RowMaker(
                self._kernel.symbols,
                self._kernel.page_offset,
                self._kernel.memory["max_pfn"],
                self._kernel.vmemmap,
                self._kernel.memory["physical_mask"] or ANY_FRAME,
                derive_pages=options.pages == "scoped",
            )
            self._memory = memory_watch(self._kernel, self._rows)
            self._writer = TraceWriter(options.output, self._manifest, force=options.force)
            self._view = view_for(live=options.live)
        except BaseException:
            if self._command:
                self._command.abandon()
            raise
        self._taker = SnapshotTaker(self._kernel, self._rows, self._writer, self._go_on)
        self._moments = Moments(options.snapshot_every)
        self._begin = self._next_tick = time.monotonic()
        self._summary = Summary()
        self._recording = False
        self._blocks: dict[int, int] = {}
        self._blocks_gone = 0
        self._governor: Governor | None = None
        self._status = Status(page_sample=options.sample)
        self._start_levels: tuple[dict[str, int], dict[str, int]] | None = None

    def run(self, duration: float | None) -> Summary:
        """Record until the command ends, the duration is over, or Ctrl-C."""
        try:
            with Interrupts() as interrupts, self._moments:
                return self._run(duration, interrupts)
        except OSError as error:
            raise self._failed(error) from None
        except BaseException:
            # What was recorded stays in the journal; if nothing was, no half trace is left behind.
            if self._recording:
                self._writer.abandon()
            else:
                self._writer.discard()
            raise
        finally:
            with contextlib.suppress(OSError):
                self._view.close()
            if self._command:
                self._command.abandon()

    def _failed(self, error: OSError) -> HostError:
        """Save what can be saved after a write failed; the line that says what happened."""
        if not self._recording:
            self._writer.discard()
            return HostError(f"{self._writer.path}: {error.strerror}; nothing was recorded")
        manifest = self._manifest | {"ts_end_ns": time.monotonic_ns(), "losses": self._status.lost}
        return finish_after(error, self._writer, manifest, self._status.seconds)

    def _run(self, duration: float | None, interrupts: Interrupts) -> Summary:
        self._count()
        before = self._snapshot(Moment.BEFORE_ATTACH)
        self._attach()
        try:
            self._kernel.symbols.reread()  # our own programs have names now, and can be left out of the stacks
            self._drop_privileges()
            self._program.arm()
            self._drainer.start()
            self._begin = time.monotonic()
            self._count()
            start = self._snapshot(Moment.START)
            self._manifest["ts_start_ns"] = time.monotonic_ns()
            own = frames_split(before.leaves, start.leaves) if before and start else 0
            self._manifest["recorder"]["frames_split_by_attaching"] = own
            self._writer.note(self._manifest)
            self._count(self._losses())
            self._writer.sync()
            self._start_levels = (start.counts_kb(), read_counters()) if start else None
            self._recording = True
            tell("recording ...")
            status = self._record(duration, interrupts)
            self._write_rows()  # memory that came in the last second is part of what is read now
            self._read_hotplugged()
            self._manifest["ts_end_ns"] = time.monotonic_ns()
            self._snapshot(Moment.END)
            self._drainer.stop()
            self._tick()
            if self._rows.held:
                self._tick()
            if self._memory:
                self._memory.finish()
            if self._kernel.walker:
                self._blocks_gone = sum(self._kernel.walker.frame_at(at) != pfn for at, pfn in self._blocks.items())
            losses = self._losses()
            losses["entry_without_exit"] += self._never_returned()
        finally:
            self._drainer.stop()
            self._program.detach()
        self._count()
        self._snapshot(Moment.AFTER_DETACH)
        self._summary |= {
            "seconds": round(time.monotonic() - self._begin),
            "lost": sum(losses.values()),
            "own_frames": own,
            "snapshots_between": self._taker.n_between,
            "snapshot_frames_unstable": self._taker.n_between_unstable,
        }
        self._writer.close(self._manifest | {"complete": True, "losses": losses, "command_status": status})
        return self._summary

    def _attach(self) -> None:
        options = self._options
        self._program = Program(
            self._kernel.features,
            self._kernel.constants,
            pages=options.pages,
            changes=not options.only_pages,
            sample=options.sample,
            ring_bytes=options.ring_bytes,
        )
        self._drainer = Drainer(self._program)
        self._taker.attached(self._program, self._drainer)
        self._manifest["probes"]["attached"] += self._program.stand_ins
        self._manifest["probes"]["missing"] += [vars(missing) for missing in self._program.missing]
        self._manifest["recorder"]["headers"] = self._program.headers
        give_back()
        give_back_compiler()
        if options.max_overhead is not None and options.pages != "none":
            time_programs()  # until we end
            fds = self._program.page_program_fds()
            self._governor = Governor(
                options.max_overhead,
                os.cpu_count() or 1,
                options.sample,
                lambda: program_runs(fds),
                self._program.set_sample,
                can_sample=options.pages == "all",
            )

    def _drop_privileges(self) -> None:
        kept = give_up(
            self._writer.path,
            kprobes=bool(self._program.stand_ins),
            hotplug=bool(self._kernel.features.hotplug),
            command=self._command is not None,
        )
        self._manifest["recorder"]["capabilities_kept"] = [capability.label for capability in sorted(kept)]

    def _record(self, duration: float | None, interrupts: Interrupts) -> int | None:
        """Drain until it is time to stop; exit status of the command, if there was one."""
        if self._command and not interrupts.seen:
            try:
                self._command.start()
            except HostError:
                self._recording = False  # there is no such command: nothing is worth keeping
                raise
        stop = time.monotonic() + duration if duration is not None else None
        self._status.duration = duration
        now = time.monotonic()
        self._next_tick = now + TICK_SECONDS
        self._moments.begin(now)
        while not interrupts.seen:
            if self._command and self._command.poll() is not None:
                break
            now = time.monotonic()
            if stop is not None and now >= stop:
                break
            self._read_hotplugged()
            if moment := self._moments.due(now):
                self._snapshot_between(moment)
            elif not self._go_on():
                time.sleep(WAIT_SECONDS if self._drainer.page_bytes else IDLE_WAIT_SECONDS)
        return self._command.stop() if self._command else None

    def _go_on(self) -> bool:
        """What cannot wait for long, whatever else is done: a tick once a second, rows when many page events wait.

        True where there was something to do.
        """
        now = time.monotonic()
        if not self._recording:  # the start snapshot: nothing is saved yet
            return False
        if now >= self._next_tick:
            self._status.seconds = now - self._begin
            self._next_tick = max(self._next_tick + TICK_SECONDS, now)
            self._tick()
        elif self._drainer.page_bytes >= BATCH_BYTES:
            self._write_rows()
        else:
            return False
        return True

    def _snapshot_between(self, moment: Moment) -> None:
        """Take a snapshot in the middle of the recording."""
        self._write_rows()  # memory that came in the last second is part of what is read now
        self._read_hotplugged()
        began = time.monotonic_ns()
        if self._snapshot(moment):
            self._manifest["recorder"][LAST_BEGAN] = began
            self._writer.note(self._manifest)

    def _write_rows(self) -> None:
        """Rows of what was drained, into the journal."""
        batch = self._drainer.take()
        for changes in batch["change_ring"]:
            self._status.count_splits(changes)
            if self._memory:
                self._memory.note(changes)
        events, in_scope = batch.pop("page_events", []), []
        bulk = [bulk_allocations(records, self._kernel.vmemmap) for records in batch.pop("bulk_ring", [])]
        for records in [*bulk, *batch["page_ring"]]:
            scoped = (records["scope"] != 0) | (records["region_id"] != 0)
            in_scope.append(records[scoped])
            others = with_blocks(records[~scoped])
            events.append(of_records(others[is_sampled(others["pfn"], self._page_sample)]))
        for name, table in self._rows.tables(batch | {"page_ring": in_scope}).items():
            self._writer.append(name, table)
            if name == "regions":
                self._follow_blocks(table)
            self._summary[name] = self._summary.get(name, 0) + table.num_rows
        for part in events:
            self._writer.append(PACKED_TABLE, pack(part))
            self._summary["pages"] += len(part)

    @property
    def _page_sample(self) -> int:
        return self._governor.sample if self._governor else self._options.sample

    def _tick(self) -> None:
        """Once a second: rows, counters and losses into the journal, and the journal to the disk."""
        self._write_rows()
        if self._governor and self._governor.tick():
            self._manifest["sampling"]["steps"] = self._governor.steps
        losses = self._losses()
        self._count(losses)
        self._writer.sync()
        if self._recording:
            self._show(losses)
        self._status.end_tick()

    def _show(self, losses: dict[str, int]) -> None:
        status = self._status
        n_pages = self._summary["pages"]
        status.pages_per_second = (n_pages - status.rows.get("pages", 0)) / TICK_SECONDS
        status.rows, status.lost = dict(self._summary), losses
        status.trace_bytes = self._writer.bytes_on_disk()
        if self._governor:
            status.page_sample, status.overhead_percent = self._governor.sample, self._governor.percent
        with contextlib.suppress(OSError):  # whoever looked has gone, or the terminal; the recording goes on
            self._view.update(status)

    def _follow_blocks(self, regions: pa.Table) -> None:
        """Keep the live blocks of the ROX cache, by address, with the first frame of each."""
        for row in regions.filter(pc.equal(regions["kind"], RegionKind.ROX_BLOCK)).to_pylist():
            if row["event"] == RegionEvent.ALLOC and row["pfns"]:
                self._blocks[row["address"]] = row["pfns"][0]
            else:
                self._blocks.pop(row["address"], None)

    def _count(self, losses: dict[str, int] | None = None) -> None:
        counters = read_counters()
        self._levels(counters)
        if losses is not None:
            counters |= {f"lost/{name}": lost for name, lost in losses.items()}
            counters["recorder/page_programs_not_run"] = self._program.page_programs_not_run()
            if self._options.pages != "none":
                counters["recorder/page_sample"] = self._page_sample
            if self._governor:
                counters["recorder/page_programs_ppm"] = round(self._governor.percent * 10_000)
            counters["recorder/only_stand_ins_saw"] = max(0, self._program.only_stand_ins_saw())
        self._writer.append("counters", counter_rows(time.monotonic_ns(), counters))

    def _levels(self, counters: dict[str, int]) -> None:
        """Levels now: meminfo's totals drift at boot, but what it adds and takes away since the start is right."""
        if self._start_levels:
            walked, claimed = self._start_levels
            self._status.levels_kb = {
                name: kb + counters.get(f"meminfo/{name}", 0) - claimed.get(f"meminfo/{name}", 0)
                for name, kb in walked.items()
            }

    def _losses(self) -> dict[str, int]:
        return self._program.losses() | {
            "snapshot_frames_unstable": self._taker.n_unstable,
            "blocks_gone_unseen": self._blocks_gone,
        }

    def _read_hotplugged(self) -> None:
        """Read again the ranges where memory came or went."""
        if self._memory is None:
            return
        for first, end in self._memory.take():
            self._taker.take_range(self._memory.walker, first, end)
            self._writer.note(self._manifest)

    def _never_returned(self) -> int:
        """Calls that have been inside the choke point for longer than any call takes: their return was missed."""
        now, kept = time.monotonic_ns(), (1 << 64 - CALL_ID_SHIFT) - 1
        ages = [(now - (call_id >> CALL_ID_SHIFT)) & kept for call_id in self._program.running_calls()]
        return sum(RUNNING_CALL_SECONDS * 1e9 < age < kept // 2 for age in ages)

    def _snapshot(self, moment: Moment) -> Snapshot | None:
        """Take one and save it; None where there are no page tables to read."""
        snapshot = self._taker.take(moment)
        if moment in (Moment.END, Moment.AFTER_DETACH):
            self._count()
        return snapshot
