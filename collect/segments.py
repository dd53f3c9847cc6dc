"""Parts of a table on the disk: a part of the journal, and the Parquet segment that it becomes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from collect.durable import whole_file
from collect.schema import TABLES

__all__ = ["read_cut_stream", "segment_of", "write_segment"]

SORTED_BY_TIME = {"snapshots": "ts_ns", "changes": "ts_ns", "regions": "ts_ns", "pages": "ts_ns", "counters": "ts_ns"}

# Time stamps and page frame numbers of neighbouring rows are close together; so are call ids.
DELTA_COLUMNS = ("ts_ns", "ts_end_ns", "pfn", "call_id", "parent_id", "address", "region_id", "duration_ns")


GROUP_ROWS = 1 << 18


def write_segment(directory: Path, name: str, number: int, batches: list[pa.RecordBatch]) -> dict[str, Any]:
    """Write one Parquet file of a trace and return its entry for the manifest: file, rows, bytes."""
    table = pa.Table.from_batches(batches, TABLES[name])
    path = directory / f"{name}-{number:05d}.parquet"
    # Delta encoding needs dictionary encoding off; all other columns keep theirs, few distinct values being the rule.
    delta = {column: "DELTA_BINARY_PACKED" for column in DELTA_COLUMNS if column in table.column_names}
    with (
        whole_file(path) as file,
        pq.ParquetWriter(
            file,
            TABLES[name],
            compression="zstd",
            compression_level=9,
            use_dictionary=[field.name for field in table.schema if field.name not in delta],
            column_encoding=delta,
            write_page_checksum=True,
            store_schema=True,
        ) as writer,
    ):
        for group in _in_order(table, SORTED_BY_TIME.get(name)):
            writer.write_table(group, row_group_size=GROUP_ROWS)
    return {"file": path.name, "rows": table.num_rows, "bytes": path.stat().st_size}


def _in_order(table: pa.Table, column: str | None) -> Iterator[pa.Table]:
    """The rows of a table by time, in groups: what is read from the journal is not held twice."""
    if column is None or table.num_rows == 0:
        yield table
        return
    order = pc.sort_indices(table[column].combine_chunks())
    for first in range(0, len(order), GROUP_ROWS):
        yield table.take(order[first : first + GROUP_ROWS])


def segment_of(part: Path, directory: Path) -> dict[str, Any] | None:
    """Turn one part of a journal, TABLE-NNNNN.arrows, into its segment, then drop it; None if it holds no whole row."""
    name, _, number = part.stem.rpartition("-")
    with pa.memory_map(str(part)) as file:  # read where it lies: a part is as large as the memory that we may take
        batches = read_cut_stream(file)
        entry = write_segment(directory, name, int(number), batches) if batches else None
        batches.clear()
    part.unlink()
    return entry


def read_cut_stream(source: pa.NativeFile) -> list[pa.RecordBatch]:
    """The whole batches of an Arrow stream that may end anywhere."""
    batches: list[pa.RecordBatch] = []
    try:
        with pa.ipc.open_stream(source) as stream:
            for batch in stream:
                batches.append(batch)
    except (OSError, pa.ArrowException, ValueError):
        pass  # the cut: everything before it was read
    return [batch for batch in batches if batch.num_rows]
