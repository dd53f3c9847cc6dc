"""Records a trace on the running kernel: attach, snapshot, drain, snapshot, detach."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from collect import __version__
from collect.btf import Btf
from collect.counters import counter_rows, read_counters
from collect.errors import HostError
from collect.host import cpu_facts, kernel_facts, lockdown, memory_facts
from collect.journal import TraceWriter
from collect.kallsyms import Kallsyms
from collect.kcore import Kcore
from collect.manifest import FORMAT
from collect.memory_watch import MemoryWatch
from collect.pagetables import Walker
from collect.probes import Features, probe_features
from collect.program import Program
from collect.records import CHANGE, CHUNK
from collect.rows import Batch, RowMaker
from collect.schema import FORMAT_VERSION, Cpa, Moment, RegionEvent, RegionKind
from collect.snapshot import RangeSnapshot, Snapshot, Touched, still, still_range, walk_once

__all__ = ["Recorder", "Summary"]

TICK_SECONDS = 1.0
IDLE_SECONDS, BUSY_SECONDS = 0.05, 0.002
RUNNING_CALL_SECONDS = 5.0
CALL_ID_SHIFT = 10
"""A call's id is its time of entry in nanoseconds, then ten bits of its CPU (new_id in collect/bpf/records.h)."""


S = TypeVar("S", Snapshot, RangeSnapshot)


class Summary(dict[str, int]):
    """What was recorded, for the closing line: rows by table, `seconds`, `lost`."""


class Interrupts:
    """The first Ctrl-C ends the recording cleanly, the second aborts it. SIGTERM counts as a Ctrl-C."""

    def __init__(self) -> None:
        self.seen = False

    def __enter__(self) -> Interrupts:
        self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.seen:
            raise KeyboardInterrupt
        self.seen = True


class Recorder:
    """One recording.

    Args:
        output: directory of the trace.
        force: replace a trace that is there.
        pages: `scoped` or `none`.
        command_line: as it goes into the manifest.
    Raises:
        HostError: this machine cannot be recorded, or the directory not be written.
    """

    def __init__(self, output: Path, *, force: bool, pages: str, command_line: Sequence[str]) -> None:
        if sys.platform != "linux" or os.uname().machine != "x86_64":
            raise HostError(
                f"{sys.platform} {os.uname().machine}: only x86-64 Linux has the direct map that is recorded here"
            )
        if os.geteuid() != 0:
            raise HostError("recording loads BPF programs and reads /proc/kcore: run it as root (sudo)")
        self._pages = pages
        self._symbols = Kallsyms()
        self._features: Features = probe_features(self._symbols, Btf())
        self._kcore = Kcore()
        memory = memory_facts(self._kcore, self._symbols)
        self._walker = Walker(self._kcore, memory["physical_mask"])
        self._manifest: dict[str, Any] = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "tool_version": __version__,
            "complete": False,
            "command": list(command_line),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "clock": "CLOCK_MONOTONIC",
            "ts_start_ns": time.monotonic_ns(),
            "ts_end_ns": time.monotonic_ns(),
            "kernel": kernel_facts() | {"lockdown": lockdown()},
            "cpu": cpu_facts(),
            "memory": memory,
            "recorder": {"pid": os.getpid(), "tgid": os.getpid()},
            "probes": {
                "attached": self._features.attached
                + (["raw_tracepoint:mm_page_alloc", "raw_tracepoint:mm_page_free"] if pages == "scoped" else []),
                "missing": [vars(missing) for missing in self._features.missing],
            },
            "sampling": {"pages": pages},
            "losses": {},
        }
        vmemmap = self._kernel_u64("vmemmap_base", 0xFFFF_EA00_0000_0000)
        self._constants = {
            "TOP_PGT": self._kcore.top_pgt,
            "PAGE_OFFSET_BASE": self._kcore.page_offset,
            "VMEMMAP_BASE": vmemmap,
            "PHYS_MASK": memory["physical_mask"] & 0x000F_FFFF_FFFF_F000,
            "LEVELS": self._kcore.paging_levels,
        }
        self._rows = RowMaker(
            self._symbols, self._kcore.page_offset, self._kcore.max_pfn, vmemmap, memory["physical_mask"]
        )
        self._memory = MemoryWatch(self._kcore, self._symbols, self._walker, self._rows, memory)
        self._writer = TraceWriter(output, self._manifest, force=force)
        self._batch: Batch = {}
        self._seen_changes: list[Any] | None = None
        self._n_snapshots = 0
        self._summary = Summary()
        self._unstable = 0
        self._recording = False
        self._blocks: dict[int, int] = {}
        self._blocks_gone = 0

    def run(self, command: Sequence[str] | None, duration: float | None) -> Summary:
        """Record until the command ends, the duration is over, or Ctrl-C."""
        try:
            with Interrupts() as interrupts:
                return self._run(command, duration, interrupts)
        except OSError as error:
            if not self._recording:
                self._writer.discard()
                raise HostError(f"{self._writer.path}: {error.strerror}; nothing was recorded") from None
            self._writer.abandon()
            raise HostError(
                f"{self._writer.path}: {error.strerror}; what was saved is in its journal: "
                f"`directmap-collect recover {self._writer.path}`"
            ) from None
        except BaseException:
            # What was recorded stays in the journal; if nothing was, no half trace is left behind.
            if self._recording:
                self._writer.abandon()
            else:
                self._writer.discard()
            raise

    def _run(self, command: Sequence[str] | None, duration: float | None, interrupts: Interrupts) -> Summary:
        self._count()
        self._save(walk_once(self._walker), Moment.BEFORE_ATTACH)
        self._program = Program(self._features, self._constants, pages=self._pages)
        try:
            self._manifest["probes"]["attached"] += self._program.stand_ins
            self._manifest["recorder"]["headers"] = self._program.headers
            self._symbols.reread()  # our own programs have names now, and can be left out of the stacks
            self._program.arm()
            begin = time.monotonic()
            self._count()
            self._save(self._still(), Moment.START)
            self._manifest["ts_start_ns"] = time.monotonic_ns()
            self._recording = True
            print("recording ...", file=sys.stderr, flush=True)
            status = self._record(command, duration, interrupts)
            self._read_hotplugged()
            self._manifest["ts_end_ns"] = time.monotonic_ns()
            end = self._still()
            self._save(end, Moment.END)
            self._tick()
            if self._rows.held:
                self._tick()
            self._memory.finish()
            self._blocks_gone = sum(self._walker.frame_at(at) != pfn for at, pfn in self._blocks.items())
            losses = self._losses()
            losses["entry_without_exit"] += self._never_returned()
        finally:
            self._program.detach()
        self._count()
        self._save(walk_once(self._walker), Moment.AFTER_DETACH)
        self._summary |= {"seconds": round(time.monotonic() - begin), "lost": sum(losses.values())}
        self._writer.close(self._manifest | {"complete": True, "losses": losses, "command_status": status})
        return self._summary

    def _record(self, command: Sequence[str] | None, duration: float | None, interrupts: Interrupts) -> int | None:
        """Drain until it is time to stop; exit status of the command, if there was one."""
        try:
            process = subprocess.Popen(list(command)) if command else None
        except OSError as error:
            raise HostError(f"{next(iter(command or ()))}: cannot be run ({error.strerror})") from None
        stop = time.monotonic() + duration if duration is not None else None
        next_tick = time.monotonic() + TICK_SECONDS
        while not interrupts.seen:
            if process and process.poll() is not None:
                break
            now = time.monotonic()
            if stop is not None and now >= stop:
                break
            busy = self._drain()
            self._read_hotplugged()
            if now >= next_tick:
                self._tick()
                next_tick = max(next_tick + TICK_SECONDS, now)
            time.sleep(BUSY_SECONDS if busy else IDLE_SECONDS)
        if process and process.poll() is None:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
        return process.wait() if process else None

    def _drain(self) -> bool:
        """Take what the rings hold; True if one of them was filling fast."""
        drained = self._program.drain()
        for name, records in drained.items():
            self._batch.setdefault(name, []).append(records)
        self._memory.note(drained["change_ring"])
        if self._seen_changes is not None:
            self._seen_changes.append((drained["change_ring"], drained["array_ring"]))
        return any(ring.used > ring.size // 16 for ring in self._program.rings.values())

    def _tick(self) -> None:
        """Once a second: rows, counters and losses into the journal, and the journal to the disk."""
        self._drain()
        for name, table in self._rows.tables(self._batch).items():
            self._writer.append(name, table)
            if name == "regions":
                self._follow_blocks(table)
            self._summary[name] = self._summary.get(name, 0) + table.num_rows
        self._batch = {}
        losses = self._losses()
        self._count(losses)
        self._writer.sync()
        if sys.stderr.isatty() and self._recording:
            changes, lost = self._summary.get("changes", 0), sum(losses.values())
            print(f"{changes} changes, {lost} lost", end="\r", file=sys.stderr, flush=True)

    def _follow_blocks(self, regions: pa.Table) -> None:
        """Keep the live blocks of the ROX cache, by address, with the first frame of each."""
        for row in regions.filter(pc.equal(regions["kind"], RegionKind.ROX_BLOCK)).to_pylist():
            if row["event"] == RegionEvent.ALLOC and row["pfns"]:
                self._blocks[row["address"]] = row["pfns"][0]
            else:
                self._blocks.pop(row["address"], None)

    def _count(self, losses: dict[str, int] | None = None) -> None:
        counters = read_counters()
        if losses is not None:
            counters |= {f"lost/{name}": lost for name, lost in losses.items()}
            counters["recorder/page_programs_not_run"] = self._program.page_programs_not_run()
            counters["recorder/only_stand_ins_saw"] = max(0, self._program.only_stand_ins_saw())
        self._writer.append("counters", counter_rows(time.monotonic_ns(), counters))

    def _losses(self) -> dict[str, int]:
        return self._program.losses() | {
            "snapshot_frames_unstable": self._unstable,
            "blocks_gone_unseen": self._blocks_gone,
        }

    def _still(self) -> Snapshot:
        return self._exact(lambda: still(self._walker, self._touched))

    def _read_hotplugged(self) -> None:
        """Read again the ranges where memory came or went."""
        for first, end in self._memory.take():
            part = self._exact(lambda first=first, end=end: still_range(self._walker, self._touched, first, end))  # type: ignore[misc]
            self._writer.append("snapshots", part.table(self._n_snapshots))
            self._n_snapshots += 1
            self._writer.restate(self._manifest)

    def _exact(self, read: Callable[[], S]) -> S:
        """Read a snapshot with an eye on the changes that run meanwhile."""
        # Chunks of a pages array are older than their call: those of calls that run now are in this tick's batch.
        self._drain()
        no_changes = np.empty(0, CHANGE)
        self._seen_changes = [(no_changes, chunks) for chunks in self._batch["array_ring"]]
        try:
            snapshot = read()
        finally:
            self._seen_changes = None
        self._unstable += snapshot.n_unstable
        return snapshot

    def _touched(self) -> Touched:
        """Changes seen since the snapshot began, after those that run now have ended."""
        running = self._program.running_calls()
        give_up = time.monotonic() + RUNNING_CALL_SECONDS
        while running and time.monotonic() < give_up:
            time.sleep(BUSY_SECONDS)
            running &= self._program.running_calls()
        # Calls that never end (their return was missed) are a loss of their own. A ring gives what lies before the first
        # record that is still being written: what a call left behind another's is waited for.
        self._drain()
        while any(self._program.rings[name].used for name in ("change_ring", "array_ring")) and (
            time.monotonic() < give_up
        ):
            time.sleep(BUSY_SECONDS)
            self._drain()
        seen = self._seen_changes or []
        changes = np.concatenate([change for change, _ in seen])
        chunks = np.concatenate([chunk for _, chunk in seen])
        listed = changes["flags"] & np.uint32(Cpa.PAGES_ARRAY) != 0
        pfn = (changes["address"] - np.uint64(self._kcore.page_offset)) >> np.uint64(12)
        direct = (
            ~listed & (changes["address"] >= np.uint64(self._kcore.page_offset)) & (pfn < np.uint64(self._rows.max_pfn))
        )
        parts = [(changes["ts"][direct], changes["end"][direct], pfn[direct], changes["n_pages"][direct])]
        for call in changes[listed]:
            mine = chunks[chunks["call_id"] == call["call_id"]]
            left = np.maximum(int(call["n_pages"]) - mine["chunk"].astype(np.int64) * CHUNK, 0)
            pages = mine["page"][np.arange(CHUNK)[None, :] < left[:, None]]
            n = len(pages)
            frames = (pages - np.uint64(self._constants["VMEMMAP_BASE"])) >> np.uint64(6)
            parts.append((np.full(n, call["ts"]), np.full(n, call["end"]), frames, np.ones(n, np.uint64)))
        return Touched(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def _never_returned(self) -> int:
        """Calls that have been inside the choke point for longer than any call takes: their return was missed."""
        oldest = time.monotonic_ns() - int(RUNNING_CALL_SECONDS * 1e9)
        return sum(call_id >> CALL_ID_SHIFT < oldest for call_id in self._program.running_calls())

    def _save(self, snapshot: Snapshot, moment: Moment) -> None:
        self._writer.append("snapshots", snapshot.table(self._n_snapshots, moment))
        self._n_snapshots += 1
        if moment in (Moment.END, Moment.AFTER_DETACH):
            self._count()

    def _kernel_u64(self, symbol: str, default: int) -> int:
        at = self._symbols.address(symbol)
        return self._kcore.read_u64(at) if at is not None else default
