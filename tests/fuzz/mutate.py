"""New inputs from old ones: edits are added, changed, taken out. Values are those at which readers break."""

from __future__ import annotations

import json
import random
import traceback
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from collect.schema import TABLES
from tests.fuzz.edits import Draft, parse

__all__ = ["Mutator"]

Edit = list[Any]

_TEXTS = [
    "", "a", "\x1b[31m", "<evil>", "\u202eabc", "\n", "\0", "a" * 5000, "%s%n", "../x", "{{7*7}}", "\ud7ff", "\U0001f4a9",
    "lost/", "lost/x", "vmstat/direct_map_level2_splits", "meminfo/DirectMap4k", "buddyinfo/0/Normal/10", "buddyinfo///",
    "buddyinfo/9999999999999999999999/Normal/99999999999999999999", "set_memory_ro+0x0", "module_alloc", " [", "+", ".",
    "bpf_prog_pack_alloc+0x10", "$x^2$", "\\frac{", "_{", "secretmem_fault", "execmem_alloc+0x1 [m]", "recorder/page_sample",
]  # fmt: skip
_ODD = [
    None,
    True,
    False,
    [],
    {},
    "",
    "x",
    -1,
    0,
    1.5,
    1e308,
    [[]],
    [0],
    {"a": 1},
    1 << 64,
    1 << 63,
    -(1 << 63),
    10**400,
]
_KEYS = [
    "format", "format_version", "tool_version", "complete", "command", "created", "ts_start_ns", "ts_end_ns", "kernel", "cpu",
    "memory", "recorder", "probes", "sampling", "losses", "tables", "ended", "clock",
]  # fmt: skip
_UNDER = {
    "kernel": ["release", "version", "cmdline", "config", "boot_id", "machine"],
    "cpu": ["model", "n_online", "possible", "emulated", "hypervisor", "nodes_possible", "gb_pages"],
    "memory": ["max_pfn", "ranges", "page_offset", "paging_levels", "rodata", "kfence_pool", "physical_mask", "zones", "nodes"],
    "recorder": ["pid", "tgid", "headers", "frames_split_by_attaching", "capabilities_kept"],
    "probes": ["attached", "missing"],
    "sampling": ["pages", "page_sample", "steps", "only_pages"],
    "losses": ["changes_ring_full", "x"],
}  # fmt: skip
_BITS = {pa.uint8(): 8, pa.uint16(): 16, pa.uint32(): 32, pa.uint64(): 64}
_SMALL = {
    "kind": 3, "moment": 6, "space": 1, "level": 3, "level_before": 3, "level_first": 3, "level_last": 3, "event": 4,
    "tier": 1, "order": 10, "migratetype": 5, "has_exit": 1, "force_split": 1, "has_pgd": 1, "check_alias": 1, "depth": 3,
    "map_level": 3,
}  # fmt: skip


class Mutator:
    """Mutates inputs for one target.

    Args:
        focus: kinds of edits, each as often as it stands there.
        draft: the base, for the names of its files and the numbers in its cells.
    """

    def __init__(self, focus: list[str], draft: Draft) -> None:
        self._focus = focus
        self._draft = draft
        self._files = [draft.manifest_file, *draft.files]
        self._tables = [name for name, table in draft.tables.items() if len(table)]
        self._chance = random.Random(0)

    def __call__(self, data: bytes, most: int, seed: int) -> bytes:
        """For `atheris.Setup(custom_mutator=)`, which hangs on an exception."""
        try:
            return self._mutated(data, most, seed)
        except Exception:
            traceback.print_exc()
            return data

    def _mutated(self, data: bytes, most: int, seed: int) -> bytes:
        chance = self._chance = random.Random(seed)
        edits = parse(data) or []
        for _ in range(chance.choice([1, 1, 1, 2, 3])):
            act = chance.random()
            if edits and act < 0.15:
                del edits[chance.randrange(len(edits))]
            elif edits and act < 0.55:
                at = chance.randrange(len(edits))
                edits[at] = self._changed(edits[at])
            else:
                edits.insert(chance.randint(0, len(edits)), self._new())
        return self._fitting(edits, most)

    def cross(self, one: bytes, other: bytes, most: int, seed: int) -> bytes:
        """For `atheris.Setup(custom_crossover=)`."""
        chance = random.Random(seed)
        edits = (parse(one) or []) + (parse(other) or [])
        return self._fitting([edit for edit in edits if chance.random() < 0.6], most)

    def _fitting(self, edits: list[Edit], most: int) -> bytes:
        edits = edits[:12]
        while True:
            text = json.dumps(edits).encode()
            if len(text) <= most or not edits:
                return text if len(text) <= most else b"[]"[:most]
            edits.pop()

    def _new(self) -> Edit:
        kind = self._chance.choice(self._focus)
        return [kind, *getattr(self, f"_{kind}")()]

    def _changed(self, edit: Edit) -> Edit:
        """The same kind of edit with one argument of another."""
        try:
            new = [edit[0], *getattr(self, f"_{edit[0]}")()]
        except (AttributeError, IndexError, TypeError):
            return self._new()
        if edit[0] in ("cell", "column", "raw", "set", "schema"):  # a value belongs to its column
            chosen = edit[1:3] if edit[0] != "set" else edit[1:2]
            for _ in range(3):
                if new[1 : 1 + len(chosen)] == chosen:
                    break
                if edit[0] in ("cell", "column") and self._has(*chosen):
                    column = TABLES[edit[1]].field(edit[2])
                    new = [*edit[:-1], self._value(column.name, column.type)]
                    break
            return new
        at = self._chance.randrange(1, len(new)) if len(new) > 1 else 0
        return [*edit[:at], new[at], *edit[at + 1 :]] if 0 < at < len(edit) else new

    def _has(self, table: Any, column: Any) -> bool:
        return isinstance(table, str) and isinstance(column, str) and table in TABLES and column in TABLES[table].names

    # one argument list for each kind of edit

    def _table(self) -> str:
        return self._chance.choice(self._tables)

    def _row(self) -> int:
        return self._chance.choice([0, -1, self._chance.randrange(8000), self._chance.randrange(50)])

    def _field(self) -> tuple[str, pa.Field]:
        name = self._table()
        return name, self._chance.choice(list(self._draft.tables[name].schema))

    def _cell(self) -> Edit:
        name, field = self._field()
        return [name, field.name, self._row(), self._value(field.name, field.type)]

    def _column(self) -> Edit:
        name, field = self._field()
        return [name, field.name, self._value(field.name, field.type)]

    def _add(self) -> Edit:
        name = self._table()
        columns = list(self._draft.tables[name].schema)
        fields = self._chance.sample(columns, min(len(columns), self._chance.randrange(4)))
        values = {field.name: self._value(field.name, field.type) for field in fields}
        if name == "snapshots" and self._chance.random() < 0.5:
            values |= {"moment": 6, "snapshot": 9}
        if name == "changes" and self._chance.random() < 0.6:
            values |= {"kind": self._chance.choice([1, 2, 3]), "call_id": self._chance.randrange(1 << 30, 1 << 31)}
        return [name, self._row(), values, self._chance.choice([1, 1, 1, 2, 10, 500, 4000])]

    def _take(self) -> Edit:
        most = self._chance.choice([0, 1, 2, 20])
        return [self._table(), [self._chance.randrange(8000) for _ in range(most)]]

    def _order(self) -> Edit:
        return [self._table(), self._chance.randrange(1 << 16)]

    def _raw(self) -> Edit:
        name, column = self._chance.choice([("counters", "counter"), ("strings", "text"), ("stacks", "frames")])
        return [name, column, self._row(), self._chance.choice(["ff", "c080", "eda080", "00", "1b5b", "f4908080", ""])]

    def _schema(self) -> Edit:
        name, field = self._field()
        how = self._chance.choice(["drop", "extra", "twice", "nullable", "text", "large", "meta"])
        column = self._chance.choice(_TEXTS) if how in ("extra", "meta") else field.name
        return [name, f"{how}:{column}"]

    def _loose(self) -> Edit:
        return [self._table(), self._chance.randrange(1 << 16)]

    def _set(self) -> Edit:
        chance = self._chance
        key = chance.choice(_KEYS)
        value = chance.choice(_ODD)
        path: list[str | int] = [key]
        if key in _UNDER and chance.random() < 0.9:
            path.append(chance.choice(_UNDER[key]))
            value = chance.choice([*_ODD, self._number(64), self._number(40), chance.choice(_TEXTS)])
            if path[-1] in ("ranges", "rodata", "kfence_pool"):
                pair = sorted([self._number(40), self._number(40)])
                value = chance.choice([value, pair, [pair], [pair, pair]])
            if path[-1] == "steps":
                step = {"ts_ns": self._number(64), "page_sample": self._number(8), "percent": chance.choice(_ODD)}
                value = chance.choice([value, [step], [value]])
            if path[-1] == "missing":
                value = chance.choice([value, [{"name": chance.choice(_TEXTS), "why": chance.choice(_ODD)}], [value]])
            if path[-1] in ("attached", "config"):
                value = chance.choice([value, [value], {chance.choice(_TEXTS): value}])
        elif key == "tables" and chance.random() < 0.9:
            path += [chance.choice(list(TABLES)), 0, chance.choice(["file", "rows", "bytes"])]
            value = chance.choice([*_ODD, "changes-00000.parquet", "changes-\x1b.parquet", self._number(64)])
            path = path[: chance.choice([2, 3, 4, 4])]
        elif key.startswith("ts_"):
            value = chance.choice([value, self._number(64)])
        elif key == "command":
            value = chance.choice([value, [value], [chance.choice(_TEXTS)]])
        elif key in ("created", "ended", "tool_version"):
            value = chance.choice([value, chance.choice(_TEXTS)])
        return [path, value]

    def _del(self) -> Edit:
        path = [self._chance.choice(_KEYS)]
        if path[0] in _UNDER and self._chance.random() < 0.7:
            path.append(self._chance.choice(_UNDER[path[0]]))
        return [path]

    def _claim(self) -> Edit:
        return [self._table(), self._chance.choice(["rows", "bytes"]), self._number(64)]

    def _poke(self) -> Edit:
        file = self._file()
        size = len(self._draft.files.get(file, b" " * 2000))
        at = self._chance.choice([-1 - self._chance.randrange(min(size, 1500)), self._chance.randrange(max(1, size))])
        content = bytes(
            self._chance.choice([0, 255, 128, 1, self._chance.randrange(256)])
            for _ in range(self._chance.choice([1, 1, 1, 2, 4, 8]))
        )
        return [file, at, content.hex()]

    def _cut(self) -> Edit:
        file = self._file()
        return [file, self._chance.randrange(1 + len(self._draft.files.get(file, b" " * 2000)))]

    def _pad(self) -> Edit:
        return [self._file(), self._chance.choice(["00", "50415231", "00" * 64, "ff" * 8])]

    def _swap(self) -> Edit:
        return [self._file(), self._file()]

    def _gone(self) -> Edit:
        return [self._file()]

    def _kind(self) -> Edit:
        return [self._file(), self._chance.choice(["fifo", "link", "directory", "zero", "empty"])]

    def _extra(self) -> Edit:
        name = self._chance.choice(
            [
                "new-00000.parquet",
                "changes-99999.parquet",
                "x",
                "journal/changes-00009.arrows",
                "journal/x-.arrows",
                "journal/nope-00000.arrows",
            ]
        )
        return [name, self._chance.choice(["", "50415231", "00"])]

    def _file(self) -> str:
        return self._chance.choice(self._files)

    # values

    def _number(self, n_bits: int) -> int:
        most = (1 << n_bits) - 1
        chance = self._chance
        edges: list[Callable[[], int]] = [
            lambda: chance.choice([0, 1, 2, most, most - 1, most >> 1, (most >> 1) + 1]),
            lambda: 1 << chance.randrange(n_bits),
            lambda: (1 << chance.randrange(n_bits)) - 1,
            lambda: chance.randrange(most + 1),
            lambda: chance.randrange(4 << 18),
            lambda: (chance.randrange(4096) << 9) + chance.choice([0, 0, -1, 1]),
            lambda: chance.randrange(600),
        ]
        return min(max(chance.choice(edges)(), 0), most)

    def _value(self, column: str, kind: pa.DataType) -> Any:
        chance = self._chance
        if column in _SMALL and chance.random() < 0.7:
            return chance.randint(0, _SMALL[column])
        if kind in _BITS:
            if kind == pa.uint64() and chance.random() < 0.4:
                return self._known(column, kind)
            return self._number(_BITS[kind])
        if pa.types.is_list(kind):
            return [self._value("", kind.value_type) for _ in range(chance.choice([0, 1, 2, 5, 300]))]
        if kind == pa.int32():
            return chance.choice([0, 1, 2, -12, -22, (1 << 31) - 1, -(1 << 31)])
        return chance.choice(_TEXTS)

    def _known(self, column: str, kind: pa.DataType) -> Any:
        """A number from a cell of the base, of this column or of another."""
        name = self._table()
        schema = self._draft.tables[name].schema
        names = [column] if column in schema.names else [field.name for field in schema if field.type == kind]
        if not names:
            return 0
        cells = self._draft.tables[name][self._chance.choice(names)]
        value = cells[self._chance.randrange(len(cells))].as_py()
        return (
            min(max(0, value + self._chance.choice([0, 0, 0, 1, -1])), (1 << 64) - 1) if isinstance(value, int) else 0
        )
