"""A trace with some edits made to it, each a JSON list whose first element says what it does.

Edits of tables: ``["cell", TABLE, COLUMN, ROW, VALUE]``, ``["column", TABLE, COLUMN, VALUE]``, ``["add", TABLE, ROW, {COLUMN:
VALUE}, TIMES]`` (copies of a row), ``["take", TABLE, [ROW, ...]]``, ``["order", TABLE, SEED]``, ``["raw", TABLE, COLUMN, ROW,
HEX]`` (bytes of a string that need not be UTF-8), ``["schema", TABLE, HOW]``, ``["loose", TABLE, SEED]`` (Parquet as others
write it: no checksums of pages, other encodings). Rows count modulo the table's length.

Edits of the manifest: ``["set", [KEY, ...], VALUE]``, ``["del", [KEY, ...]]``, ``["claim", TABLE, KEY, VALUE]`` (what it says of
a table's first file, whatever that holds).

Edits of files, after those: ``["poke", FILE, AT, HEX]`` (AT < 0: from the end), ``["cut", FILE, SIZE]``, ``["pad", FILE, HEX]``,
``["swap", FILE, FILE]``, ``["gone", FILE]``, ``["kind", FILE, "fifo"|"link"|"directory"|"zero"]``, ``["extra", FILE, HEX]``. The manifest's sizes follow what
these leave, unless claimed otherwise.

An edit that does not fit (a column that is no more) is left out.
"""

from __future__ import annotations

import copy
import io
import json
import os
import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from collect.durable import JOURNAL
from collect.manifest import MANIFEST

__all__ = ["MOST_ROWS", "Base", "Draft", "parse", "written"]

Edit = list[Any]

MOST_ROWS = 4000
"""That edits may add to a table."""
MOST_BYTES = 1 << 20
"""That edits may add to a file."""


class Base:
    """The files of a whole trace, or of one that was being recorded when the recorder was killed, in memory."""

    def __init__(self, directory: Path) -> None:
        self.files = {
            str(path.relative_to(directory)): path.read_bytes()
            for path in sorted(directory.rglob("*"))
            if path.suffix in (".parquet", ".arrows")
        }
        self.killed = not (directory / MANIFEST).exists()
        self.manifest_file = f"{JOURNAL}/{MANIFEST}" if self.killed else MANIFEST
        self.manifest = json.loads((directory / self.manifest_file).read_text())
        self.tables = {}
        for file, content in self.files.items():
            name = Path(file).name.rpartition("-")[0]
            if file.endswith(".arrows"):
                self.tables[name] = pa.ipc.open_stream(content).read_all()
            elif not self.killed:
                self.tables[name] = pq.read_table(io.BytesIO(content))


class Draft:
    """A trace in the making."""

    def __init__(self, base: Base) -> None:
        self.manifest_file, self.killed = base.manifest_file, base.killed
        self.manifest = copy.deepcopy(base.manifest)
        self.files = dict(base.files)
        self.tables = dict(base.tables)
        self.kinds: dict[str, str] = {}
        self._as_others: dict[str, int] = {}

    def make(self, edits: list[Edit]) -> None:
        """Make the edits: those of tables first, then those of the manifest, then those of files."""
        before = dict(self.tables)
        self._each(edits, "cell column add take order raw schema loose")
        for name, table in self.tables.items():
            if table is not before[name] or name in self._as_others:
                self._write(name)
        self._each(edits, "set del")
        self._each(edits, "poke cut pad swap gone kind extra")
        self._state_sizes()
        self._each(edits, "claim")

    def _each(self, edits: list[Edit], kinds: str) -> None:
        for edit in edits:
            if edit[0] in kinds.split():
                try:
                    getattr(self, f"_{edit[0]}")(*edit[1:])
                except (TypeError, ValueError, KeyError, IndexError, OverflowError, AttributeError, pa.ArrowException):
                    continue  # it does not fit this trace, or another edit

    # tables

    def _cell(self, name: str, column: str, row: int, value: Any) -> None:
        cells = self.tables[name][column].to_pylist()
        cells[row % len(cells)] = value
        self._replace(name, column, cells)

    def _column(self, name: str, column: str, value: Any) -> None:
        self._replace(name, column, [value] * len(self.tables[name]))

    def _add(self, name: str, row: int, values: dict[str, Any], times: int) -> None:
        table = self.tables[name]
        times = min(max(1, times), MOST_ROWS)
        cells = table.slice(row % len(table), 1).to_pylist()[0] | {
            k: v for k, v in values.items() if k in table.schema.names
        }
        more = pa.Table.from_pylist([cells], schema=table.schema)
        self.tables[name] = pa.concat_tables([table, more.take([0] * times)]).combine_chunks()

    def _take(self, name: str, rows: list[int]) -> None:
        table = self.tables[name]
        self.tables[name] = table.take([row % len(table) for row in rows[:MOST_ROWS]] if len(table) else [])

    def _order(self, name: str, seed: int) -> None:
        table = self.tables[name]
        self.tables[name] = table.take(np.random.default_rng(seed & 0xFFFF).permutation(len(table)))

    def _raw(self, name: str, column: str, row: int, content: str) -> None:
        kind = self.tables[name].schema.field(column).type
        text = bytes.fromhex(content)
        if pa.types.is_list(kind):
            cells = [[t.encode() for t in texts] for texts in self.tables[name][column].to_pylist()]
            cells[row % len(cells)] = [text, *cells[row % len(cells)]]
            lists = pa.array(cells, pa.list_(pa.binary()))
            values = _as_text(lists.values)
            array = pa.ListArray.from_arrays(lists.offsets, values, type=kind)
        else:
            cells = [t.encode() for t in self.tables[name][column].to_pylist()]
            cells[row % len(cells)] = text
            array = _as_text(pa.array(cells, pa.binary()))
        at = self.tables[name].schema.get_field_index(column)
        self.tables[name] = self.tables[name].set_column(at, self.tables[name].schema.field(column), array)

    def _schema(self, name: str, how: str) -> None:
        table = self.tables[name]
        what, _, column = how.partition(":")
        at = table.schema.get_field_index(column)
        if what == "drop":
            self.tables[name] = table.drop_columns([column])
        elif what == "extra":
            self.tables[name] = table.append_column(column, pa.array([0] * len(table)))
        elif what == "twice":
            self.tables[name] = table.append_column(table.schema.field(column), table[column])
        elif what == "nullable":
            cells = [*table[column].to_pylist()[:-1], None]
            kind = table.schema.field(column).type
            self.tables[name] = table.set_column(at, pa.field(column, kind), pa.array(cells, kind))
        elif what == "text":
            cells = [str(cell) for cell in table[column].to_pylist()]
            self.tables[name] = table.set_column(at, pa.field(column, pa.string(), nullable=False), pa.array(cells))
        elif what == "large":
            self.tables[name] = table.set_column(at, column, table[column].cast(pa.large_string()))
        elif what == "meta":
            self.tables[name] = table.replace_schema_metadata({"pandas": column, "ARROW:schema": column})

    def _loose(self, name: str, seed: int) -> None:
        self._as_others[name] = int(seed)

    def _replace(self, name: str, column: str, cells: list[Any]) -> None:
        table = self.tables[name]
        at = table.schema.get_field_index(column)
        field = table.schema.field(at)
        self.tables[name] = table.set_column(at, field, pa.array(cells, field.type))

    def _write(self, name: str) -> None:
        if self.killed:
            self._write_journal(name)
            return
        for part in self.manifest["tables"][name]:
            self.files.pop(part["file"], None)
        table = self.tables[name]
        chance = random.Random(self._as_others[name]) if name in self._as_others else None
        options: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True}
        if chance:
            options = {
                "compression": chance.choice(["none", "none", "snappy", "gzip", "zstd", "lz4"]),
                "use_dictionary": chance.random() < 0.5,
                "data_page_version": chance.choice(["1.0", "2.0"]),
                "row_group_size": chance.choice([1, 7, 100, 1 << 18]) if len(table) < 500 else 1 << 18,
                "data_page_size": chance.choice([64, 1 << 20]),
                "write_statistics": chance.random() < 0.5,
                "version": chance.choice(["1.0", "2.4", "2.6"]),
                "store_schema": True,
            }
        out = io.BytesIO()
        pq.write_table(table, out, **options)
        file = f"{name}-00000.parquet"
        self.files[file] = out.getvalue()
        self.manifest["tables"][name] = [{"file": file, "rows": len(table), "bytes": len(out.getvalue())}]

    def _write_journal(self, name: str) -> None:
        out = io.BytesIO()
        with pa.ipc.new_stream(out, self.tables[name].schema) as stream:
            stream.write_table(self.tables[name], max_chunksize=100)
        self.files[f"{JOURNAL}/{name}-00001.arrows"] = out.getvalue()

    # manifest

    def _set(self, path: list[str | int], value: Any) -> None:
        at = self.manifest
        for key in path[:-1]:
            at = at[key]
        if isinstance(at, list):
            if path[-1] == len(at):
                at.append(value)
            else:
                at[int(path[-1])] = value
        else:
            at[str(path[-1])] = value

    def _del(self, path: list[str | int]) -> None:
        at = self.manifest
        for key in path[:-1]:
            at = at[key]
        del at[path[-1]]

    def _claim(self, name: str, key: str, value: Any) -> None:
        self.manifest["tables"][name][0][key] = value

    def _state_sizes(self) -> None:
        tables = self.manifest.get("tables") if isinstance(self.manifest, dict) else None
        for segments in tables.values() if isinstance(tables, dict) else ():
            for segment in segments if isinstance(segments, list) else ():
                if isinstance(segment, dict) and str(segment.get("file")) in self.files:
                    segment["bytes"] = len(self.files[segment["file"]])

    # files

    def _text(self, file: str) -> bytes:
        if file == self.manifest_file and file not in self.files:
            self._state_sizes()
            return json.dumps(self.manifest, indent=1).encode()
        return self.files[file]

    def _poke(self, file: str, at: int, content: str) -> None:
        old, new = self._text(file), bytes.fromhex(content)
        begin = at % len(old)
        self.files[file] = old[:begin] + new[: len(old) - begin] + old[begin + len(new) :]

    def _cut(self, file: str, size: int) -> None:
        self.files[file] = self._text(file)[: size if size >= 0 else len(self._text(file)) + size]

    def _pad(self, file: str, content: str) -> None:
        self.files[file] = (self._text(file) + bytes.fromhex(content))[: len(self._text(file)) + MOST_BYTES]

    def _swap(self, one: str, other: str) -> None:
        self.files[one], self.files[other] = self._text(other), self._text(one)

    def _gone(self, file: str) -> None:
        del self.files[file]

    def _kind(self, file: str, kind: str) -> None:
        self.kinds[file] = kind

    def _extra(self, file: str, content: str) -> None:
        if not re.fullmatch(r"(journal/)?[\w.-]{1,100}", file) or file.endswith(".."):
            raise ValueError
        self.files.setdefault(file, bytes.fromhex(content)[:MOST_BYTES])


def written(draft: Draft, directory: Path) -> Path:
    """The draft as files in `directory`, which is emptied first; returns it."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    if draft.killed:
        (directory / JOURNAL).mkdir()
    files = {draft.manifest_file: json.dumps(draft.manifest).encode()} | draft.files
    for name, content in files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        if name not in draft.kinds:
            (directory / name).write_bytes(content)
    for name, kind in draft.kinds.items():
        path = directory / name
        if name in files and not path.exists():
            _KINDS[kind](path)
    return directory


_KINDS = {
    "fifo": os.mkfifo,
    "directory": os.mkdir,
    "link": lambda path: path.symlink_to(path.name),  # to itself
    "zero": lambda path: path.symlink_to("/dev/zero"),
    "empty": lambda path: path.write_bytes(b""),
}


def _as_text(array: pa.Array) -> pa.Array:
    """Bytes as strings, unchecked."""
    return pa.Array.from_buffers(pa.string(), len(array), array.buffers(), offset=array.offset)


def parse(data: bytes) -> list[Edit] | None:
    """The edits that an input states, or None."""
    try:
        edits = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(edits, list) or not all(isinstance(e, list) and e and isinstance(e[0], str) for e in edits):
        return None
    return edits[:40]
