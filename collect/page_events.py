"""Page events without a region: kept packed in the journal, unpacked into rows of `pages` when a segment is written.

At a million a second what is done for each of them counts. Packed, an event is the 24 bytes that the BPF program wrote
(collect/bpf/page_rings.c); a row of `pages` is 42 bytes, most of them constant, which Parquet's encodings make nothing of.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from collect.records import PAGE, PAGE_EVENT
from collect.schema import TABLES, PageEvent

__all__ = ["PACKED", "PACKED_TABLE", "blocks", "bulk_allocations", "of_records", "pack", "unpack", "with_blocks"]

PACKED_TABLE = "pages_packed"
"""Its name in the journal; it never becomes a table of the trace."""

PACKED = pa.schema([pa.field(name, pa.uint64(), nullable=False) for name in PAGE_EVENT.names or ()])

PFN_BITS, ORDER_BITS, TYPE_BITS, EVENT_BITS = 40, 5, 4, 3
ORDER_AT, TYPE_AT, EVENT_AT, CPU_AT = (np.uint64(bit) for bit in (40, 45, 49, 52))
"""Where the fields of `what` begin, behind the frame number (`struct page_event`, collect/bpf/page_rings.c)."""

MAX_ORDER = 10


def pack(events: npt.NDArray[np.void]) -> pa.RecordBatch:
    """Events as they were drained (`records.PAGE_EVENT`), as a batch for the journal."""
    return pa.record_batch([pa.array(np.ascontiguousarray(events[name])) for name in PACKED.names], schema=PACKED)


def unpack(batches: list[pa.RecordBatch]) -> pa.Table:
    """Rows of `pages` from packed batches, in their order."""
    table = pa.Table.from_batches(batches, PACKED)
    ts, what, more = (table.column(name).to_numpy() for name in PACKED.names)
    pfn, event = what & _mask(PFN_BITS), (what >> EVENT_AT & _mask(EVENT_BITS)).astype(np.uint8)
    order = (what >> ORDER_AT & _mask(ORDER_BITS)).astype(np.uint8)
    gfp = more.astype(np.uint32)
    columns = {
        "ts_ns": ts,
        "event": event,
        "pfn": pfn,
        "order": order,
        "gfp": gfp,
        "migratetype": (what >> TYPE_AT & _mask(TYPE_BITS)).astype(np.uint8),
        "cpu": (what >> CPU_AT).astype(np.uint16),
        "pid": (more >> np.uint64(32)).astype(np.uint32),
    }
    n = len(columns["ts_ns"])
    columns |= {name: np.zeros(n, kind) for name, kind in (("scope", "u1"), ("region_id", "u8"), ("stack_id", "u4"))}
    return pa.table(columns, schema=TABLES["pages"])


def of_records(records: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """Whole records (`records.PAGE`) of pages outside of regions, packed (`records.PAGE_EVENT`)."""
    wide = {
        name: records[name].astype(np.uint64) for name in ("pfn", "order", "migratetype", "event", "cpu", "gfp", "pid")
    }
    events = np.empty(len(records), PAGE_EVENT)
    events["ts"] = records["ts"]
    events["what"] = wide["pfn"] | wide["order"] << ORDER_AT | wide["migratetype"] << TYPE_AT
    events["what"] |= wide["event"] << EVENT_AT | wide["cpu"] << CPU_AT
    events["more"] = wide["gfp"] | wide["pid"] << np.uint64(32)
    return events


def blocks(first: int, n_pages: int) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint8]]:
    """A range of pages as the fewest aligned blocks of a power of two: first page of each, and order."""
    pfns, orders = [], []
    end = first + n_pages
    while first < end:
        aligned = (first & -first).bit_length() - 1 if first else MAX_ORDER
        order = min(aligned, (end - first).bit_length() - 1, MAX_ORDER)
        pfns.append(first)
        orders.append(order)
        first += 1 << order
    return np.array(pfns, np.uint64), np.array(orders, np.uint8)


def with_blocks(records: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """Whole records (`records.PAGE`) with each contiguous range, which says its number of pages in place of gfp, in its blocks."""
    ranges = records["event"] == PageEvent.ALLOC_CONTIG
    if not ranges.any():
        return records
    parts = [records[~ranges]]
    for record in records[ranges]:  # few: a hugetlb page or a driver's buffer
        pfns, orders = blocks(int(record["pfn"]), int(record["gfp"]))
        part = np.repeat(record, len(pfns))
        part["pfn"], part["order"], part["gfp"] = pfns, orders, 0
        parts.append(part)
    return np.concatenate(parts)


def bulk_allocations(records: npt.NDArray[np.void], vmemmap: int) -> npt.NDArray[np.void]:
    """Allocations of single pages (`records.PAGE`) from bulk allocations (`records.BULK`).

    A place of the array that holds another page than before was filled; left out are the pages that the allocation
    tracepoint reported meanwhile. The migratetype is what gfp_migratetype() makes of gfp (include/linux/gfp.h).
    """
    places = np.arange(records["after"].shape[1])[None, :] < records["n"][:, None]
    new = places & (records["after"] != 0) & (records["after"] != records["before"])
    new &= ~(records["after"][:, :, None] == records["reported"][:, None, :]).any(axis=2)
    row, at = np.nonzero(new)
    pfns = (records["after"][row, at] - np.uint64(vmemmap)) >> np.uint64(6)
    pages = np.zeros(len(row), PAGE)
    for name in ("ts", "gfp", "pid", "cpu", "scope", "region_id"):
        pages[name] = records[name][row]
    pages["pfn"] = pfns
    pages["event"] = PageEvent.ALLOC_BULK
    pages["migratetype"] = pages["gfp"] >> np.uint32(3) & np.uint32(3)
    return pages


def _mask(n_bits: int) -> np.uint64:
    return np.uint64((1 << n_bits) - 1)
