"""Writes a trace: first to a journal that survives a kill, then to Parquet segments, the manifest last.

While a recording runs, the directory holds::

    journal/manifest.json      what is known at the start, for a recovery
    journal/TABLE-NNNNN.arrows an Arrow IPC stream, fsynced once a second: a cut stream still reads up to the cut
    TABLE-NNNNN.parquet        finished segments, written under a temporary name, fsynced, renamed

A segment number is used once: the journal part NNNNN is dropped after segment NNNNN stands under its name, so a kill
in between leaves both, and a recovery lets the segment win.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from collect.errors import HostError, TraceError
from collect.manifest import MANIFEST
from collect.schema import TABLES
from collect.trace import open_trace

__all__ = ["TraceWriter", "recover"]

ROLL_BYTES = 64 << 20
ROLL_SECONDS = 60.0
SORTED_BY_TIME = dict.fromkeys(("snapshots", "changes", "splits", "regions", "pages", "counters"), "ts_ns")

# Time stamps and page frame numbers of neighbouring rows are close together; so are call ids.
DELTA_COLUMNS = ("ts_ns", "ts_end_ns", "pfn", "call_id", "parent_id", "address", "region_id", "duration_ns")


class TraceWriter:
    """Writes one trace. Not for several threads.

    Args:
        directory: made if missing; refused if it holds anything, unless `force` and it is a trace of ours.
        manifest: what is known when the recording starts; kept in the journal for a recovery.
    Raises:
        HostError: directory in use, not empty, or not writable.
    """

    def __init__(self, directory: Path, manifest: dict[str, Any], *, force: bool = False) -> None:
        self.path = directory
        self._part = 0
        self._segments: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
        self._pending: dict[str, list[pa.RecordBatch]] = {name: [] for name in TABLES}
        self._streams: dict[str, tuple[BinaryIO, pa.RecordBatchStreamWriter]] = {}
        self._bytes = 0
        self._rolled = time.monotonic()
        try:
            _claim(directory, force)
            self._journal = directory / "journal"
            self._journal.mkdir(mode=0o700)
            self._lock = _lock(self._journal)
            write_json(self._journal / MANIFEST, manifest)
            give_to_sudo_user(directory)
            give_to_sudo_user(self._journal)
        except OSError as error:
            raise HostError(f"{directory}: cannot be written ({error.strerror}); choose another -o") from None

    def append(self, name: str, rows: pa.Table | pa.RecordBatch) -> None:
        """Add rows to a table. They are safe from a kill after the next `sync`."""
        if rows.num_rows == 0:
            return
        batches = rows.to_batches() if isinstance(rows, pa.Table) else [rows]
        for batch in batches:
            if not batch.schema.equals(TABLES[name]):
                raise AssertionError(f"{name}: rows do not fit the schema:\n{batch.schema}\nwanted\n{TABLES[name]}")
            self._stream(name).write_batch(batch)
            self._pending[name].append(batch)
            self._bytes += batch.nbytes

    def sync(self) -> None:
        """Make everything appended so far survive a kill and a power cut; roll to segments when it is time."""
        for file, _ in self._streams.values():
            file.flush()
            os.fsync(file.fileno())
        if self._bytes >= ROLL_BYTES or time.monotonic() - self._rolled >= ROLL_SECONDS:
            self.roll()

    def roll(self) -> None:
        """Turn the journal so far into Parquet segments and drop that part of it."""
        for name, batches in self._pending.items():
            if batches:
                self._segments[name].append(write_segment(self.path, name, self._part, batches))
        for name, (file, stream) in self._streams.items():
            stream.close()
            file.close()
            (self._journal / f"{name}-{self._part:05d}.arrows").unlink()
        self._streams = {}
        self._pending = {name: [] for name in TABLES}
        self._bytes = 0
        self._part += 1
        self._rolled = time.monotonic()

    def restate(self, manifest: dict[str, Any]) -> None:
        """What a recovery would take for the manifest: to be called when that has changed."""
        write_json(self._journal / MANIFEST, manifest)

    def close(self, manifest: dict[str, Any]) -> None:
        """Write what is left, then the manifest with `tables` filled in; after this the trace is whole."""
        self.roll()
        write_json(self.path / MANIFEST, {**manifest, "tables": self._segments})
        shutil.rmtree(self._journal)
        self._lock.close()
        sync_directory(self.path)

    def abandon(self) -> None:
        """Leave the journal as it is, for a recovery, and let go of the directory."""
        for file, _ in self._streams.values():
            file.close()
        self._lock.close()

    def discard(self) -> None:
        """Nothing worth keeping was recorded: leave the directory empty, or not at all if it was made for this."""
        self.abandon()
        for name in [*self._journal.parent.glob("*.parquet"), *self._journal.parent.glob("*.tmp")]:
            name.unlink()
        shutil.rmtree(self._journal)
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def _stream(self, name: str) -> pa.RecordBatchStreamWriter:
        if name not in self._streams:
            file = open_private(self._journal / f"{name}-{self._part:05d}.arrows")
            self._streams[name] = (file, pa.ipc.new_stream(file, TABLES[name]))
        return self._streams[name][1]


def recover(directory: Path) -> dict[str, Any]:
    """Finish the trace of a recorder that was killed; returns the manifest that was written.

    Raises TraceError if there is no journal, or if the trace is whole already; HostError if a recorder still runs.
    """
    journal = directory / "journal"
    if (directory / MANIFEST).is_file():
        raise TraceError(f"{directory}: whole already, nothing to recover; analyze it as it is")
    if not (journal / MANIFEST).is_file():
        raise TraceError(f"{journal}: no journal here; give the directory of a recording that was killed")
    lock = _lock(journal)
    try:
        manifest = json.loads((journal / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TraceError(f"{journal / MANIFEST}: unreadable ({error}); the trace cannot be recovered") from None
    tables: dict[str, list[dict[str, Any]]] = {}
    for name in TABLES:
        whole = sorted(directory.glob(f"{name}-*.parquet"))
        tables[name] = [_segment_entry(path) for path in whole]
        numbers = {path.stem for path in whole}
        for part in sorted(journal.glob(f"{name}-*.arrows")):
            batches = _read_cut_stream(part)
            if part.stem not in numbers and batches:
                tables[name].append(write_segment(directory, name, int(part.stem.rsplit("-", 1)[1]), batches))
    manifest |= {"tables": tables, "complete": False}
    write_json(directory / MANIFEST, manifest)
    open_trace(directory)
    shutil.rmtree(journal)
    lock.close()
    return manifest  # type: ignore[no-any-return]


def write_segment(directory: Path, name: str, number: int, batches: list[pa.RecordBatch]) -> dict[str, Any]:
    """Write one Parquet file of a trace and return its entry for the manifest: file, rows, bytes."""
    table = pa.Table.from_batches(batches, TABLES[name])
    if name in SORTED_BY_TIME:
        table = table.sort_by(SORTED_BY_TIME[name])
    path = directory / f"{name}-{number:05d}.parquet"
    temporary = path.with_suffix(".tmp")
    # Delta encoding needs dictionary encoding off; all other columns keep theirs, few distinct values being the rule.
    delta = {column: "DELTA_BINARY_PACKED" for column in DELTA_COLUMNS if column in table.column_names}
    with open_private(temporary) as file:
        pq.write_table(
            table,
            file,
            compression="zstd",
            compression_level=9,
            use_dictionary=[field.name for field in table.schema if field.name not in delta],
            column_encoding=delta,
            write_page_checksum=True,
            store_schema=True,
        )
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    give_to_sudo_user(path)
    sync_directory(directory)
    return {"file": path.name, "rows": table.num_rows, "bytes": path.stat().st_size}


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON file whole or not at all, readable by its owner only."""
    temporary = path.with_suffix(".tmp")
    with open_private(temporary) as file:
        file.write((json.dumps(value, indent=1) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    give_to_sudo_user(path)


def open_private(path: Path) -> BinaryIO:
    """A new file for writing with mode 0600; a link in its place is not followed."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o600), "wb")


def give_to_sudo_user(path: Path) -> None:
    """Under sudo, let the trace belong to whoever called it."""
    if os.geteuid() == 0 and "SUDO_UID" in os.environ:
        uid, gid = int(os.environ["SUDO_UID"]), int(os.environ.get("SUDO_GID", "-1"))
        os.chown(path, uid, gid, follow_symlinks=False)


def sync_directory(directory: Path) -> None:
    """Make renames in a directory survive a power cut."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _claim(directory: Path, force: bool) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    held = sorted(entry.name for entry in directory.iterdir())
    if not held:
        return
    ours = [name for name in held if name in (MANIFEST, "journal") or name.endswith((".parquet", ".tmp"))]
    if len(ours) < len(held):
        raise HostError(
            f"{directory}: not empty and not a trace (holds {next(n for n in held if n not in ours)!r}); choose another -o"
        )
    if not force:
        raise HostError(f"{directory}: holds a trace already; choose another -o, or --force to replace it")
    if (directory / "journal").is_dir():
        _lock(directory / "journal").close()  # refuses while another recorder writes here
    for name in held:
        path = directory / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _lock(journal: Path) -> BinaryIO:
    file = open_private(journal / "lock")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise HostError(f"{journal.parent}: another recorder writes here; wait for it or choose another -o") from None
    return file


def _read_cut_stream(path: Path) -> list[pa.RecordBatch]:
    """The whole batches of an Arrow stream that may end anywhere."""
    batches: list[pa.RecordBatch] = []
    try:
        with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as stream:
            for batch in stream:
                batches.append(batch)
    except (OSError, pa.ArrowException, ValueError):
        pass  # the cut: everything before it was read
    return batches


def _segment_entry(path: Path) -> dict[str, Any]:
    try:
        rows = pq.ParquetFile(path).metadata.num_rows
    except (OSError, pa.ArrowException, ValueError) as error:
        raise TraceError(f"{path}: damaged ({error}); remove it and recover again") from None
    return {"file": path.name, "rows": rows, "bytes": path.stat().st_size}
