"""A trace with one table changed: for tests that damage it, or take something out of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from collect.schema import TABLES
from collect.segments import write_segment
from collect.trace import open_trace


def rewrite(source: Path, target: Path, name: str, table: pa.Table) -> Path:
    """Copy the trace `source` to `target` with `table` in place of the table `name`."""
    if target != source:
        shutil.copytree(source, target)
    manifest = json.loads((target / "manifest.json").read_text())
    for segment in manifest["tables"][name]:
        (target / segment["file"]).unlink()
    batches = table.cast(TABLES[name]).combine_chunks().to_batches()
    manifest["tables"][name] = [write_segment(target, name, 0, batches)] if table.num_rows else []
    (target / "manifest.json").write_text(json.dumps(manifest))
    return target


def without_rows(source: Path, target: Path, name: str, rows: list[int]) -> Path:
    """The trace without some rows of a table."""
    table = open_trace(source).table(name)
    return rewrite(source, target, name, table.take(np.setdiff1d(np.arange(len(table)), rows)))


def with_cell(source: Path, target: Path, name: str, column: str, row: int, value: Any) -> Path:
    """The trace with one cell changed."""
    table = open_trace(source).table(name)
    cells = table[column].to_pylist()
    cells[row] = value
    at = table.column_names.index(column)
    field = TABLES[name].field(at)
    return rewrite(source, target, name, table.set_column(at, field, pa.array(cells, field.type)))


def with_manifest(source: Path, target: Path, **changed: Any) -> Path:
    """The trace with some keys of its manifest changed; a dict is merged into the dict that is there."""
    if target != source:
        shutil.copytree(source, target)
    manifest = json.loads((target / "manifest.json").read_text())
    for key, value in changed.items():
        manifest[key] = manifest[key] | value if isinstance(value, dict) else value
    (target / "manifest.json").write_text(json.dumps(manifest))
    return target


def with_strings(trace: Path, text: str) -> Path:
    """Give every process, module and program of a trace another name, in place."""
    table = open_trace(trace).table("strings")
    names = pa.array([text] * table.num_rows, pa.string())
    return rewrite(trace, trace, "strings", table.set_column(1, TABLES["strings"].field(1), names))
