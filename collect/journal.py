"""Writes a trace: first to a journal that survives a kill, then to Parquet segments, the manifest last.

While a recording runs, the directory holds::

    journal/manifest.json      what is known so far, for a recovery
    journal/TABLE-NNNNN.arrows an Arrow IPC stream, fsynced once a second: a cut stream still reads up to the cut
    journal/reserve            room kept back, to finish with when the disk is full
    TABLE-NNNNN.parquet        finished segments, written under a temporary name, fsynced, renamed

A segment number is used once: the journal part NNNNN is dropped after segment NNNNN stands under its name, so a kill
in between leaves both, and a recovery lets the segment win. Segments are made by a thread, so that the journal goes on
meanwhile; it reads them back from the journal, so that no row stays in memory.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from collect.durable import JOURNAL, claim, open_private, sync_directory, write_json
from collect.errors import HostError
from collect.manifest import MANIFEST
from collect.schema import TABLES
from collect.segments import JOURNAL_TABLES, segment_of, table_of

__all__ = ["RESERVE_BYTES", "TraceWriter"]

ROLL_BYTES = 32 << 20
ROLL_SECONDS = 60.0
RESERVE_BYTES = 32 << 20
"""A part of the journal, ROLL_BYTES and a tick's worth, is at least three times as large as its segment."""


class TraceWriter:
    """Writes one trace. Not for several threads.

    Args:
        directory: made if missing; refused if it holds anything, unless `force` and it is a trace of ours.
        manifest: what is known when the recording starts; kept in the journal for a recovery.
        roll_bytes, roll_seconds: how large or old a part of the journal becomes before it is made a segment.
        reserve_bytes: room kept back for the end of a recording that has filled the disk.
    Raises:
        HostError: directory in use, not empty, not writable, or on a full disk.
    """

    def __init__(
        self,
        directory: Path,
        manifest: dict[str, Any],
        *,
        force: bool = False,
        roll_bytes: int = ROLL_BYTES,
        roll_seconds: float = ROLL_SECONDS,
        reserve_bytes: int = RESERVE_BYTES,
    ) -> None:
        self.path = directory
        self._roll_bytes, self._roll_seconds = roll_bytes, roll_seconds
        self._part = 0
        self._segments: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
        self._streams: dict[str, tuple[BinaryIO, pa.RecordBatchStreamWriter]] = {}
        self._new_streams = False
        self._bytes = 0
        self._rolled = time.monotonic()
        self._roller: threading.Thread | None = None
        self._roll_error: BaseException | None = None
        self._left: list[Path] = []
        self._journal = directory / JOURNAL
        try:
            self._lock = claim(directory, force=force)
        except OSError as error:
            raise HostError(f"{directory}: cannot be written ({error.strerror}); choose another -o") from None
        try:
            write_json(self._journal / MANIFEST, manifest)
            with open_private(self._journal / "reserve") as file:
                os.posix_fallocate(file.fileno(), 0, reserve_bytes)
        except OSError as error:
            self.discard()
            raise HostError(
                f"{directory}: cannot be written ({error.strerror}; {reserve_bytes >> 20} MiB must be free to begin with); "
                "choose another -o"
            ) from None

    def note(self, manifest: dict[str, Any]) -> None:
        """What is known by now, for a recovery."""
        write_json(self._journal / MANIFEST, manifest)

    def append(self, name: str, rows: pa.Table | pa.RecordBatch) -> None:
        """Add rows to a table. They are safe from a kill after the next `sync`."""
        if rows.num_rows == 0:
            return
        batches = rows.to_batches() if isinstance(rows, pa.Table) else [rows]
        for batch in batches:
            if not batch.schema.equals(JOURNAL_TABLES[name]):
                raise AssertionError(
                    f"{name}: rows do not fit the schema:\n{batch.schema}\nwanted\n{JOURNAL_TABLES[name]}"
                )
            self._stream(name).write_batch(batch)
            self._bytes += batch.nbytes

    def sync(self) -> None:
        """Make everything appended so far survive a kill and a power cut; roll to segments when it is time.

        Raises OSError, also for a segment that could not be written meanwhile.
        """
        for file, _ in self._streams.values():
            file.flush()  # all of them first: from here on a kill costs nothing
        for file, _ in self._streams.values():
            os.fsync(file.fileno())
        if self._new_streams:
            sync_directory(self._journal)
            self._new_streams = False
        if self._roller and not self._roller.is_alive():
            self._await_roll()
        due = self._bytes >= self._roll_bytes or time.monotonic() - self._rolled >= self._roll_seconds
        if due and self._roller is None and self._streams:
            self._begin_roll()

    def roll(self) -> None:
        """Turn the journal so far into Parquet segments and drop that part of it. Raises OSError."""
        self._await_roll()
        self._begin_roll()
        self._await_roll()

    def bytes_on_disk(self) -> int:
        """Size of the segments and of the journal, without the room that is kept back."""
        total = 0
        for folder in (self.path, self._journal):
            with os.scandir(folder) as entries:
                for entry in entries:
                    # A segment may get its name, and a part lose its, while we look.
                    with contextlib.suppress(FileNotFoundError):
                        if entry.is_file(follow_symlinks=False) and entry.name != "reserve":
                            total += entry.stat(follow_symlinks=False).st_size
        return total

    def close(self, manifest: dict[str, Any]) -> None:
        """Write what is left, then the manifest with `tables` filled in; after this the trace is whole. Raises OSError."""
        self.roll()
        write_json(self.path / MANIFEST, {**manifest, "tables": self._segments})
        self._drop_journal()

    def close_on_full_disk(self, manifest: dict[str, Any]) -> None:
        """As `close`, with the room kept back, and with whatever the journal holds whole. Raises OSError if it fails too."""
        (self._journal / "reserve").unlink(missing_ok=True)
        if self._roller:
            self._roller.join()
            self._roller, self._roll_error = None, None
        self._left += [self._part_path(name) for name in self._streams]
        self._close_files()
        # The largest last: each segment that stands gives back the room of its part.
        for part in sorted(filter(Path.exists, self._left), key=lambda path: path.stat().st_size):
            self._make_segment(part)
        for segments in self._segments.values():
            segments.sort(key=lambda segment: str(segment["file"]))
        write_json(self.path / MANIFEST, {**manifest, "tables": self._segments})
        self._drop_journal()

    def abandon(self) -> None:
        """Leave the journal as it is, for a recovery, and let go of the directory."""
        if self._roller:
            self._roller.join()
        self._close_files()
        self._lock.close()

    def discard(self) -> None:
        """Nothing worth keeping was recorded: leave the directory empty, or not at all if it was made for this."""
        self.abandon()
        for name in [*self.path.glob("*.parquet"), *self.path.glob("*.tmp")]:
            name.unlink()
        shutil.rmtree(self._journal)
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def _part_path(self, name: str) -> Path:
        return self._journal / f"{name}-{self._part:05d}.arrows"

    def _stream(self, name: str) -> pa.RecordBatchStreamWriter:
        if name not in self._streams:
            file = open_private(self._part_path(name))
            self._streams[name] = (file, pa.ipc.new_stream(file, JOURNAL_TABLES[name]))
            self._new_streams = True
        return self._streams[name][1]

    def _begin_roll(self) -> None:
        """End this part of the journal, begin the next, and have the segments of the old one made."""
        self._left = [self._part_path(name) for name in self._streams]
        for file, stream in self._streams.values():
            stream.close()
            file.flush()
            os.fsync(file.fileno())
            file.close()
        self._streams = {}
        self._bytes = 0
        self._part += 1
        self._rolled = time.monotonic()
        self._roller = threading.Thread(target=self._make_segments, args=(self._left,), name="directmap-roll")
        self._roller.start()

    def _make_segments(self, parts: list[Path]) -> None:
        try:
            for part in parts:
                self._make_segment(part)
        except BaseException as error:  # told by whoever waits for the segments; the journal stays
            self._roll_error = error

    def _make_segment(self, part: Path) -> None:
        entry = segment_of(part, self.path)
        if entry:
            self._segments[table_of(part)].append(entry)

    def _await_roll(self) -> None:
        if self._roller is None:
            return
        self._roller.join()
        self._roller = None
        if self._roll_error:
            error, self._roll_error = self._roll_error, None
            raise error
        self._left = []

    def _close_files(self) -> None:
        for file, _ in self._streams.values():
            with contextlib.suppress(OSError):  # its buffer finds no room either
                file.close()
        self._streams = {}

    def _drop_journal(self) -> None:
        shutil.rmtree(self._journal)
        self._lock.close()
        sync_directory(self.path)
