"""Rows of a synthetic trace, gathered in plain lists and written with the real writer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from collect import __version__
from collect.journal import TraceWriter
from collect.schema import FORMAT_VERSION, TABLES


class Recorder:
    """Interns stacks and strings, hands out ids, keeps rows by table."""

    def __init__(self) -> None:
        self.rows: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
        self._stacks: dict[tuple[str, ...], int] = {}
        self._strings: dict[str, int] = {}
        self._next_id = 0

    def new_id(self) -> int:
        self._next_id += 1
        return self._next_id

    def stack(self, frames: tuple[str, ...]) -> int:
        """Id of a stack given as symbols, innermost first; a module in brackets keeps its place."""
        if frames not in self._stacks:
            self._stacks[frames] = len(self._stacks) + 1
            texts = []
            for i, symbol in enumerate(frames):
                name, _, module = symbol.partition(" ")
                texts.append(f"{name}+{hex(0x10 + 7 * i)}" + (f" {module}" if module else ""))
            self.rows["stacks"].append({"stack_id": self._stacks[frames], "frames": texts})
        return self._stacks[frames]

    def string(self, text: str) -> int:
        if text not in self._strings:
            self._strings[text] = len(self._strings) + 1
            self.rows["strings"].append({"string_id": self._strings[text], "text": text})
        return self._strings[text]

    def counter(self, ts_ns: int, name: str, value: int) -> None:
        self.rows["counters"].append({"ts_ns": ts_ns, "counter": name, "value": value})

    def write(self, directory: Path, manifest: dict[str, Any]) -> Path:
        """The whole trace; `manifest` holds what differs from the common part."""
        full = {
            "format": "directmap-trace",
            "format_version": FORMAT_VERSION,
            "tool_version": __version__,
            "complete": True,
            "command": ["tests.machine"],
            "created": "2026-01-01T00:00:00Z",
            "cpu": {"model": "synthetic", "n_possible": 2, "n_online": 2, "emulated": True, "hypervisor": None},
            "probes": {"attached": ["fentry+fexit:__change_page_attr_set_clr", "fentry:flush_tlb_all"], "missing": []},
            "sampling": {"pages": "scoped"},
            "losses": {},
            "clock": "CLOCK_MONOTONIC",
            **manifest,
        }
        writer = TraceWriter(directory, full)
        for name, rows in self.rows.items():
            columns = {
                field.name: pa.array([row[field.name] for row in rows], type=field.type) for field in TABLES[name]
            }
            writer.append(name, pa.table(columns, schema=TABLES[name]))
        writer.close(full)
        return directory
