"""Parts of a table on the disk: a part of the journal, and the Parquet segment that it becomes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from collect.durable import whole_file
from collect.errors import TraceError
from collect.heap import give_back
from collect.page_events import PACKED, PACKED_TABLE, unpack
from collect.schema import TABLES

__all__ = ["JOURNAL_TABLES", "read_cut_stream", "segment_of", "table_of", "write_segment"]

JOURNAL_TABLES = TABLES | {PACKED_TABLE: PACKED}
"""What a part of a journal may hold, by its name."""

SORTED_BY_TIME = dict.fromkeys(("snapshots", "changes", "splits", "regions", "pages", "counters"), "ts_ns")

# Time stamps and page frame numbers of neighbouring rows are close together; so are call ids.
DELTA_COLUMNS = ("ts_ns", "ts_end_ns", "pfn", "call_id", "parent_id", "address", "region_id", "duration_ns")


GROUP_ROWS = 1 << 18


LEVELS = {"pages": 3}
"""zstd's level: of a million page events a second, each twentieth of a microsecond counts, and level 9 saves 4 %."""


def table_of(part: Path) -> str:
    """The table whose rows a part of the journal holds."""
    name = part.stem.rpartition("-")[0]
    return "pages" if name == PACKED_TABLE else name


def write_segment(directory: Path, name: str, number: int, batches: list[pa.RecordBatch]) -> dict[str, Any]:
    """Write one Parquet file of a trace and return its entry for the manifest: file, rows, bytes."""
    table = pa.Table.from_batches(batches, TABLES[name])
    return _write(directory, name, number, _in_order(table, SORTED_BY_TIME.get(name)))


def _write(directory: Path, name: str, number: int, groups: Iterator[pa.Table]) -> dict[str, Any]:
    schema, rows = TABLES[name], 0
    path = directory / f"{name}-{number:05d}.parquet"
    # Delta encoding needs dictionary encoding off; all other columns keep theirs, few distinct values being the rule.
    delta = {column: "DELTA_BINARY_PACKED" for column in DELTA_COLUMNS if column in schema.names}
    with (
        whole_file(path) as file,
        pq.ParquetWriter(
            file,
            schema,
            compression="zstd",
            compression_level=LEVELS.get(name, 9),
            use_dictionary=[column for column in schema.names if column not in delta],
            column_encoding=delta,
            write_page_checksum=True,
            store_schema=True,
        ) as writer,
    ):
        for group in groups:
            writer.write_table(group, row_group_size=GROUP_ROWS)
            rows += group.num_rows
    return {"file": path.name, "rows": rows, "bytes": path.stat().st_size}


def _in_order(table: pa.Table, column: str | None) -> Iterator[pa.Table]:
    """The rows of a table by time, in groups: what is read from the journal is not held twice."""
    if column is None or table.num_rows == 0:
        yield table
        return
    order = pc.sort_indices(table[column].combine_chunks())
    for first in range(0, len(order), GROUP_ROWS):
        yield table.take(order[first : first + GROUP_ROWS])


def _pages_in_order(packed: list[pa.RecordBatch], rows: pa.Table) -> Iterator[pa.Table]:
    """Rows of `pages` by time, in groups, from packed events and from what are rows already.

    With numpy, batch by batch: Arrow's take() would first make one array of all batches, for each group again.
    """
    times = np.concatenate([batch["ts"].to_numpy() for batch in packed] + [rows["ts_ns"].to_numpy()])
    # Nearly sorted, which a stable sort makes use of; 32 bits do for what a part of a journal may hold.
    order = np.argsort(times, kind="stable").astype(np.uint32)
    del times
    starts = np.cumsum([0] + [batch.num_rows for batch in packed]).astype(np.uint32)
    for first in range(0, len(order), GROUP_ROWS):
        places = order[first : first + GROUP_ROWS]
        of_packed = places < starts[-1]
        group = unpack([_gathered(packed, starts, places[of_packed])])
        if not of_packed.all():
            group = pa.concat_tables([group, rows.take(places[~of_packed] - starts[-1])]).sort_by("ts_ns")
        yield group


def _gathered(
    packed: list[pa.RecordBatch], starts: npt.NDArray[np.uint32], places: npt.NDArray[np.uint32]
) -> pa.RecordBatch:
    """The events at some places of all batches together; `starts` says where each batch begins there."""
    columns = {name: np.empty(len(places), np.uint64) for name in PACKED.names}
    batch_of = np.searchsorted(starts, places, side="right") - 1
    for i in np.unique(batch_of).tolist():
        here = batch_of == i
        at = places[here] - starts[i]
        for name, column in columns.items():
            column[here] = packed[i][name].to_numpy()[at]
    return pa.record_batch(list(columns.values()), schema=PACKED)


def segment_of(part: Path, directory: Path) -> dict[str, Any] | None:
    """Turn one part of a journal, TABLE-NNNNN.arrows, into its segment, then drop it; None if it holds no whole row.

    Page events are in up to two parts, packed and not, which become one segment when the packed one's turn comes; the
    other's turn may come before or after it.
    """
    name, _, number = part.stem.rpartition("-")
    packed, beside = (part.with_name(f"{of}-{number}.arrows") for of in (PACKED_TABLE, "pages"))
    if name == "pages" and (packed.exists() or not part.exists()):
        return None
    entry = None
    with contextlib.ExitStack() as files:
        # Read where it lies: a part is as large as the memory that we may take.
        batches = read_cut_stream(files.enter_context(_mapped(part)), JOURNAL_TABLES[name])
        if name == PACKED_TABLE:
            at = files.enter_context(_mapped(beside)) if beside.exists() else None
            rows = read_cut_stream(at, TABLES["pages"]) if at else []
            if batches or rows:
                table = pa.Table.from_batches(rows, TABLES["pages"])
                entry = _write(directory, "pages", int(number), _pages_in_order(batches, table))
                del table
            rows.clear()
        elif batches:
            entry = write_segment(directory, name, int(number), batches)
        batches.clear()
    part.unlink()
    if name == PACKED_TABLE:
        beside.unlink(missing_ok=True)
    give_back()
    return entry


def read_cut_stream(source: pa.NativeFile, schema: pa.Schema) -> list[pa.RecordBatch]:
    """The whole batches of an Arrow stream that may end anywhere, up to the first that is not what `schema` says.

    Arrow does not look into what it reads: a batch whose offsets or lengths were damaged would be read past its end.
    """
    batches: list[pa.RecordBatch] = []
    try:
        with pa.ipc.open_stream(source) as stream:
            if not stream.schema.equals(schema):
                return []
            for batch in stream:
                batch.validate(full=True)
                if any(column.null_count for column in batch.columns):
                    break
                batches.append(batch)
    except (OSError, pa.ArrowException, ValueError):
        pass  # the cut: everything before it was read
    return [batch for batch in batches if batch.num_rows]


def _mapped(part: Path) -> pa.MemoryMappedFile:
    if not part.is_file():  # a pipe would let us wait forever
        raise TraceError(f"{part}: not a file; this journal is not a recorder's, do not trust it")
    return pa.memory_map(str(part))
