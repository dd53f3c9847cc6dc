"""Records as the BPF programs write them, made by hand, and the rows that become of them, tick by tick."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from collect.kallsyms import Kallsyms
from collect.records import ARRAY, CHANGE, CHUNK, FRAMES, PAGE, REGION, SPLIT, STACK
from collect.rows import RowMaker
from collect.schema import TABLES, Pte, RegionEvent, RegionKind, Tier

PAGE_OFFSET = 0xFFFF_9000_4000_0000
MAX_PFN = 1 << 20
VMEMMAP = 0xFFFF_EA00_0000_0000
MODULES = 0xFFFF_FFFF_C000_0000
VMALLOC = 0xFFFF_B000_0000_0000
ENCRYPTION = 1 << 47
MASK = (1 << 52) - 1 & ~ENCRYPTION
KERNEL_RW = int(Pte.P | Pte.RW | Pte.A | Pte.D | Pte.G | Pte.NX)
LARGE, LARGE_PAT = 1 << 7, 1 << 12

SYMBOLS = """\
ffffffff81000000 T _stext
ffffffff81000100 T __change_page_attr_set_clr
ffffffff81000200 T set_memory_ro
ffffffff81000300 t bpf_trampoline_nothing
ffffffff81900000 T _etext
ffffffffc0001000 t init_module\t[mod]
ffffffffc0003000 t bpf_prog_0123456789abcdef_kretfunc__cpa\t[bpf]
ffffffffc0004000 t bpf_trampoline_6442485\t[bpf]
ffffffffc0005000 t bpf_prog_fedcba9876543210_theirs\t[bpf]
"""


LAYOUTS = {
    "change_ring": CHANGE,
    "split_ring": SPLIT,
    "stack_ring": STACK,
    "array_ring": ARRAY,
    "region_ring": REGION,
    "frames_ring": FRAMES,
    "page_ring": PAGE,
}


def records(dtype: np.dtype[np.void], *rows: dict[str, Any]) -> np.ndarray:
    made = np.zeros(len(rows), dtype)
    for i, row in enumerate(rows):
        for name, value in row.items():
            made[name][i] = value
    return made


def tick(maker: RowMaker, **rings: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The rows of the records given by ring (`change=[...]`, ...), as dictionaries; those held back are waited for."""
    rows = one_tick(maker, **rings)
    while maker.held:
        for name, more in one_tick(maker).items():
            rows[name] += more
    return rows


def one_tick(maker: RowMaker, **rings: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    batch = {name: [records(dtype, *rings.pop(name.removesuffix("_ring"), []))] for name, dtype in LAYOUTS.items()}
    assert not rings
    tables = maker.tables(batch)
    for name, table in tables.items():
        assert table.schema.equals(TABLES[name])
    return {name: table.to_pylist() for name, table in tables.items()}


def change(address: int, **values: Any) -> dict[str, Any]:
    return {"ts": 100, "end": 250, "call_id": 7, "address": address, "n_pages": 1, "n_done": 1} | values


def region(address: int, n_bytes: int, **values: Any) -> dict[str, Any]:
    return {
        "ts": 50,
        "region_id": 9,
        "address": address,
        "n_bytes": n_bytes,
        "event": RegionEvent.ALLOC,
        "tier": Tier.BACKING,
        "kind": RegionKind.MODULE_ALLOC,
    } | values


def ptes(first: int, n: int, *, at: int = 0) -> list[int]:
    """A chunk of entries of which `n` from position `at` name the frames first, first + 1, ..."""
    return [(first + i - at) << 12 | KERNEL_RW if at <= i < at + n else 0 for i in range(CHUNK)]


def row_maker(symbols: Path) -> RowMaker:
    """Of a machine as the constants above have it; `symbols` holds SYMBOLS, or more."""
    return RowMaker(Kallsyms(symbols), PAGE_OFFSET, MAX_PFN, VMEMMAP, MASK)
