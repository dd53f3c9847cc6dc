"""Writes the enriched tables as Parquet or CSV, in batches, so that texts take no more memory than a batch of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq

from analyze.analysis import Analysis
from analyze.enriched import ENRICHED
from collect.errors import HostError

__all__ = ["FORMATS", "write_tables"]

FORMATS = ("parquet", "csv")
BATCH_ROWS = 1 << 14


def write_tables(analysis: Analysis, out: Path, kind: str) -> list[Path]:
    """Write every table of `enriched.ENRICHED` into the directory `out` as TABLE.parquet or TABLE.csv; returns the files.

    Raises HostError where they cannot be written.
    """
    paths = []
    for name, make in ENRICHED.items():
        table = make(analysis)
        path = out / f"{name}.{kind}"
        try:
            _write(table, path, kind)
        except OSError as error:
            raise HostError(f"{path}: cannot be written ({error.strerror or error}); choose another -o") from None
        paths.append(path)
    return paths


def _write(table: pa.Table, path: Path, kind: str) -> None:
    plain = pa.schema([(field.name, _plain_type(field.type)) for field in table.schema])
    if kind == "parquet":
        with pq.ParquetWriter(path, plain, compression="zstd") as parquet:
            for batch in _batches(table, plain):
                parquet.write_batch(batch, row_group_size=BATCH_ROWS)
    else:
        with csv.CSVWriter(path, plain) as rows:
            for batch in _batches(table, plain):
                rows.write_batch(batch)


def _batches(table: pa.Table, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Batches with texts as plain strings, which every reader takes for what they are."""
    for batch in table.to_batches(max_chunksize=BATCH_ROWS):
        yield pa.RecordBatch.from_arrays(
            [column.cast(field.type) for column, field in zip(batch.columns, schema, strict=True)], schema=schema
        )


def _plain_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind
