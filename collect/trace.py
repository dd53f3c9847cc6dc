"""Opens a trace and checks it: sizes before contents, schemas before rows, so that damage is named and never believed.

Example::

    trace = open_trace(Path("sample_traces/6.1-churn"))
    changes = trace.table("changes", ["ts_ns", "pfn", "n_pages"])
"""

from __future__ import annotations

import stat
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from collect import manifest as manifests
from collect.errors import TraceError
from collect.progress import Progress
from collect.schema import TABLES, empty_table

__all__ = ["Trace", "open_trace"]

MAX_SEGMENT_ROWS = 1 << 26
"""No segment of ours holds more: the writer rolls at 64 MiB, and no row takes less than a byte."""

MAX_GROUP_ROWS = 1 << 20
"""A row group of ours has a quarter of that; a larger one is not decoded at once."""

LEAST_UNPACKED = 128 << 20
UNPACKED_EACH = {"pages": 1 << 14, "snapshots": 1 << 10, "counters": 1 << 10}
"""Bytes in memory for each byte of a file, at most: recordings have some 12, but for the tables that repeat themselves, which
are read a part at a time."""

MAX_SEGMENT_BYTES_PER_ROW = 1 << 14
MIN_SEGMENT_BYTES_ALLOWED = 1 << 26


class Trace:
    """An opened trace: its manifest, and its tables on request.

    Attributes:
        path: the directory.
        manifest: the checked `manifest.json` (see `collect.manifest.REQUIRED`).
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest

    def n_rows(self, name: str) -> int:
        """Rows of a table, as the manifest states them."""
        return sum(segment["rows"] for segment in self.manifest["tables"][name])

    def table(
        self, name: str, columns: Sequence[str] | None = None, *, between: tuple[int, int] | None = None
    ) -> pa.Table:
        """A whole table, or the named columns of it, in the order of its segments. Raises TraceError.

        Args:
            between: read only row groups that may hold rows of these times (ts_ns, both included); other rows may be among
                them. Where a footer has no statistics nothing is left out.
        """
        parts = list(self.parts(name, columns, between=between))
        if not parts:
            return empty_table(name).select(list(columns) if columns is not None else TABLES[name].names)
        return pa.concat_tables(parts).combine_chunks()

    def parts(
        self, name: str, columns: Sequence[str] | None = None, *, between: tuple[int, int] | None = None
    ) -> Iterator[pa.Table]:
        """As `table`, one segment after the other: what is not kept takes no memory. Raises TraceError."""
        wanted = list(columns) if columns is not None else TABLES[name].names
        for segment in self.manifest["tables"][name]:
            yield _read_segment(self.path / segment["file"], name, segment, wanted, between)

    def batches(self, name: str, columns: Sequence[str], n_threads: int = 2) -> Iterator[pa.Table]:
        """As `parts`, a row group after the other, decoded ahead by `n_threads` threads. Raises TraceError.

        A terminal is told how far whoever takes them has come.
        """
        n_rows = sum(segment["rows"] for segment in self.manifest["tables"][name])
        with Progress(f"reading {name}", n_rows, "rows") as progress:
            for part in self._batches(name, columns, n_threads):
                yield part
                progress.advance(part.num_rows)

    def _batches(self, name: str, columns: Sequence[str], n_threads: int) -> Iterator[pa.Table]:
        waiting: deque[Future[pa.Table]] = deque()
        with ThreadPoolExecutor(n_threads, "directmap-decode") as pool:
            try:
                for segment in self.manifest["tables"][name]:
                    path = self.path / segment["file"]
                    with _open_segment(path, name, segment) as file:
                        groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
                        if max(groups, default=0) > MAX_GROUP_ROWS:
                            while waiting:
                                yield waiting.popleft().result()
                            yield from _in_steps(file, path, list(columns))
                            continue
                    for i, n_rows in enumerate(groups):
                        waiting.append(pool.submit(_read_group, path, name, segment, list(columns), i, n_rows))
                        if len(waiting) > n_threads + 1:
                            yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()


def open_trace(directory: Path | str) -> Trace:
    """Open a trace and check that every file is there, whole and of the right schema. Raises TraceError.

    Checks the manifest, every file's size and every Parquet footer; the rows themselves are checked (page checksums)
    when they are read.
    """
    path = Path(directory)
    manifest = manifests.read(path)
    for name in TABLES:
        for segment in manifest["tables"][name]:
            _open_segment(path / segment["file"], name, segment).close()
        _check_unpacked(path, name, manifest["tables"][name])
    return Trace(path, manifest)


def _check_unpacked(path: Path, name: str, segments: Sequence[dict[str, Any]]) -> None:
    """Refuse a table that takes far more memory than its files can vouch for: run lengths make millions of rows of a few bytes."""
    rows, size = (sum(segment[key] for segment in segments) for key in ("rows", "bytes"))
    unpacked = rows * sum(-(-_bits(field.type) // 8) for field in TABLES[name])
    if unpacked > LEAST_UNPACKED + size * UNPACKED_EACH.get(name, 64):
        raise TraceError(
            f"{path}: table {name!r} claims {rows} rows in {size} bytes, no recording packs that tight; do not trust this trace"
        )


def _bits(kind: pa.DataType) -> int:
    return int(kind.bit_width) if pa.types.is_integer(kind) else 64  # an offset and a little, of a list or text


def _open_segment(path: Path, name: str, segment: dict[str, Any]) -> pq.ParquetFile:
    """A Parquet file whose size, row count and schema are what the manifest and the format say."""
    try:
        found = path.stat()
    except OSError:
        raise TraceError(
            f"{path}: missing, though the manifest lists it; copy the trace anew from where it was recorded"
        ) from None
    if not stat.S_ISREG(found.st_mode):  # a pipe would let us wait forever, a device never end
        raise TraceError(f"{path}: not a file (a directory, pipe or device); do not trust this trace")
    size = found.st_size
    if size != segment["bytes"]:
        raise TraceError(
            f"{path}: {size} bytes, the manifest says {segment['bytes']}: truncated or replaced; "
            "copy the trace anew from where it was recorded"
        )
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
        footer = file.metadata
        schema = file.schema_arrow.remove_metadata()
    except (OSError, pa.ArrowException, ValueError) as error:
        raise _damaged(path, error) from None
    if not schema.equals(TABLES[name]):
        file.close()
        raise TraceError(
            f"{path}: not the columns of table {name!r} ({_difference(schema, TABLES[name])}); it belongs to another trace or tool"
        )
    if footer.num_rows != segment["rows"] or footer.num_rows > MAX_SEGMENT_ROWS:
        file.close()
        raise TraceError(
            f"{path}: footer says {footer.num_rows} rows, the manifest {segment['rows']}; copy the trace anew"
        )
    unpacked = sum(footer.row_group(i).total_byte_size for i in range(footer.num_row_groups))
    counted = sum(footer.row_group(i).num_rows for i in range(footer.num_row_groups))
    if (
        counted != footer.num_rows
        or unpacked < 0
        or unpacked > max(MIN_SEGMENT_BYTES_ALLOWED, size * MAX_SEGMENT_BYTES_PER_ROW)
    ):
        file.close()
        raise TraceError(
            f"{path}: the footer contradicts itself (rows or unpacked size forged); do not trust this trace"
        )
    return file


def _read_segment(
    path: Path, name: str, segment: dict[str, Any], columns: list[str], between: tuple[int, int] | None
) -> pa.Table:
    with _open_segment(path, name, segment) as file:
        n_rows, groups = _row_groups(file.metadata, between)
        return _checked(path, n_rows, columns, lambda: file.read_row_groups(groups, columns=columns, use_threads=True))


def _read_group(
    path: Path, name: str, segment: dict[str, Any], columns: list[str], group: int, n_rows: int
) -> pa.Table:
    with _open_segment(path, name, segment) as file:
        return _checked(path, n_rows, columns, lambda: file.read_row_group(group, columns=columns, use_threads=False))


def _in_steps(file: pq.ParquetFile, path: Path, columns: list[str]) -> Iterator[pa.Table]:
    """A segment whose row groups are not to be decoded at once."""
    steps = file.iter_batches(MAX_GROUP_ROWS, columns=columns, use_threads=False)
    left = file.metadata.num_rows
    while left > 0:
        part = _checked(path, None, columns, lambda: pa.Table.from_batches([next(steps)]))
        left -= part.num_rows
        yield part


def _checked(path: Path, n_rows: int | None, columns: list[str], read: Callable[[], pa.Table]) -> pa.Table:
    """What `read` gives, if it is `n_rows` (None: any) whole rows. Raises TraceError."""
    try:
        table = read().select(columns)
        table.validate(full=True)
    except (OSError, pa.ArrowException, ValueError, UnicodeDecodeError, StopIteration) as error:
        raise _damaged(path, error) from None
    n_rows = table.num_rows if n_rows is None else n_rows
    if table.num_rows != n_rows or any(column.null_count for column in table.columns):
        raise TraceError(
            f"{path}: holds {table.num_rows} rows or empty cells where {n_rows} whole rows should be; copy the trace anew"
        )
    return table.replace_schema_metadata(None)


def _row_groups(footer: pq.FileMetaData, between: tuple[int, int] | None) -> tuple[int, list[int]]:
    """Rows and numbers of the row groups that may hold rows of a time; of all of them where there is no bound."""
    groups = list(range(footer.num_row_groups))
    if between is not None:
        groups = [i for i in groups if _overlaps(footer.row_group(i), *between)]
    return sum(footer.row_group(i).num_rows for i in groups), groups


def _overlaps(group: pq.RowGroupMetaData, first_ns: int, last_ns: int) -> bool:
    """Whether rows of a time may be in a row group; yes where its statistics do not tell."""
    columns = (group.column(i) for i in range(group.num_columns))
    times = next((column.statistics for column in columns if column.path_in_schema == "ts_ns"), None)
    return times is None or not times.has_min_max or (times.min <= last_ns and times.max >= first_ns)


def _damaged(path: Path, error: BaseException) -> TraceError:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
    return TraceError(f"{path}: damaged, or not Parquet ({reason}); copy the trace anew from where it was recorded")


def _difference(found: pa.Schema, wanted: pa.Schema) -> str:
    missing = [name for name in wanted.names if name not in found.names]
    extra = [name for name in found.names if name not in wanted.names]
    if missing:
        return f"missing {', '.join(missing[:5])}"
    if extra:
        return f"unknown {', '.join(str(name)[:40] for name in extra[:5])}"
    return "types or order differ"
