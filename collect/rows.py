"""Turns drained records into rows of the tables: interns names and stacks, joins what the rings kept apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from collect.interning import Interning
from collect.kallsyms import Kallsyms
from collect.kcore import KERNEL_IMAGE_BASE
from collect.pagetables import frames_of, normalise
from collect.records import ARRAY, CHANGE, CHUNK, FRAMES, PAGE, REGION
from collect.schema import (
    LEAF_PAGES,
    NO_PFN,
    TABLES,
    Cpa,
    Level,
    PageEvent,
    RegionEvent,
    RegionKind,
    Space,
    Tier,
)

__all__ = ["Batch", "RowMaker"]

Records = npt.NDArray[np.void]
U64 = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]
Batch = dict[str, list[Records]]
"""Drained records by ring, in order of draining."""

KERNEL_IMAGE_END = 0xFFFF_FFFF_C000_0000
VMEMMAP_SHIFT = 6
ALLOCATIONS = (PageEvent.ALLOC, PageEvent.ALLOC_BULK)
MAX_UNCLAIMED = 4096
FREE_SCOPES = (253, 254)
"""`pages.scope` as the programs mark frees; the event says so already."""


class RowMaker:
    """Makes rows from records, tick by tick.

    A record whose stack or parts have not come is held back until the next tick: a ring gives what lies before the first
    record that is still being written, so a stack that was complete may wait behind another CPU's while its event, in
    its own ring, does not. At the end, tick until nothing is `held`.

    Args:
        symbols: to name stack frames; read again when an address is new.
        page_offset, max_pfn: where the direct map lies. `max_pfn` may be raised as memory comes.
        vmemmap: address of `struct page` of frame 0.
        physical_mask: see `host.physical_mask`.
        derive_pages: make rows of `pages` of the frames behind a region that no event told of.
    """

    def __init__(
        self,
        symbols: Kallsyms,
        page_offset: int,
        max_pfn: int,
        vmemmap: int,
        physical_mask: int,
        *,
        derive_pages: bool = True,
    ) -> None:
        self._names = Interning(symbols)
        self._derive_pages = derive_pages
        self._page_offset, self.max_pfn = page_offset, max_pfn
        self._vmemmap, self._mask = vmemmap, physical_mask
        # Parts whose call or region was not drained yet: they are written first, so a tick may end between the two.
        self._array_parts: Records = np.empty(0, ARRAY)
        self._frame_parts: Records = np.empty(0, FRAMES)
        self._told: Records = np.empty(0, PAGE)
        self._held_calls: Records = np.empty(0, CHANGE)
        self._held_regions: Records = np.empty(0, REGION)

    @property
    def unclaimed_chunks(self) -> Records:
        """Parts of pages arrays whose call has not returned."""
        return self._array_parts

    @property
    def held(self) -> int:
        """Records that wait for their stack or their parts; the next call of `tables` makes rows of them as they are."""
        return len(self._held_calls) + len(self._held_regions)

    def tables(self, batch: Batch) -> dict[str, pa.Table]:
        """Rows of every table that the records of one tick make, `strings` and `stacks` included."""
        rings = {name: np.concatenate(parts) for name, parts in batch.items() if parts}
        self._names.take_stacks(rings["stack_ring"])
        arrays = np.concatenate([self._array_parts, rings["array_ring"]])
        frames = np.concatenate([self._frame_parts, rings["frames_ring"]])
        calls, self._held_calls = self._hold(rings["change_ring"], self._held_calls, self._lacks_chunks, arrays)
        regions, self._held_regions = self._hold(rings["region_ring"], self._held_regions, self._lacks_frames, frames)
        made = {"changes": self._changes(calls, arrays), "regions": self._regions(regions, frames)}
        made["splits"] = self._splits(rings["split_ring"])
        made["pages"] = self._pages(rings["page_ring"], made["regions"])
        self._array_parts = _unclaimed(arrays, "call_id", calls["call_id"])
        made_now = regions["region_id"][regions["event"] == RegionEvent.ALLOC]  # one held may be freed before its rows
        self._frame_parts = _unclaimed(frames, "region_id", made_now)
        self._told = _unclaimed(self._told, "region_id", made_now)
        self._names.forget_stacks()
        made["stacks"] = self._names.stack_rows()
        made["strings"] = self._names.string_rows()
        return made

    def _hold(
        self, fresh: Records, held: Records, lacks: Callable[[Records, Records], Mask], parts: Records
    ) -> tuple[Records, Records]:
        """Records to make rows of now (those held back before, and whole ones), and those to hold back."""
        waits = (fresh["stack_key"] != 0) & (self._names.stack_ids(fresh["stack_key"]) == 0)
        waits = waits | lacks(fresh, parts)
        return np.concatenate([held, fresh[~waits]]), fresh[waits]

    def _lacks_chunks(self, calls: Records, chunks: Records) -> Mask:
        n_pages = np.where(calls["flags"] & np.uint32(Cpa.PAGES_ARRAY) != 0, calls["n_pages"], np.uint64(0))
        ids, n = np.unique(chunks["call_id"], return_counts=True)
        lacking: Mask = _counted(calls["call_id"], ids, n * CHUNK) < n_pages
        return lacking

    def _lacks_frames(self, regions: Records, chunks: Records) -> Mask:
        pages = np.where(chunks["level"] == Level.K4, CHUNK, LEAF_PAGES[Level.M2])  # as emit_frames steps
        ids, which = np.unique(chunks["region_id"], return_inverse=True)
        covered = _counted(regions["region_id"], ids, np.bincount(which, pages, len(ids))) << np.uint64(12)
        within = regions["address"] & np.uint64(CHUNK * 4096 - 1)
        backing: Mask = (regions["event"] == RegionEvent.ALLOC) & (regions["tier"] == Tier.BACKING)
        lacking: Mask = backing & (covered < within + regions["n_bytes"])
        return lacking

    def _space(self, address: U64) -> npt.NDArray[np.uint8]:
        page = (address - np.uint64(self._page_offset)) >> np.uint64(12)
        direct = (address >= np.uint64(self._page_offset)) & (page < np.uint64(self.max_pfn))
        image = (address >= np.uint64(KERNEL_IMAGE_BASE)) & (address < np.uint64(KERNEL_IMAGE_END))
        return np.where(direct, Space.DIRECT_MAP, np.where(image, Space.KERNEL_IMAGE, Space.OTHER)).astype(np.uint8)

    def _pfns(self, address: U64, space: npt.NDArray[np.uint8], entry: U64, level: npt.NDArray[np.uint8]) -> U64:
        """Frames by position in the direct map; elsewhere as the entry names them, the offset in a large leaf added."""
        inside = np.array([0, 0, 511, 512 * 512 - 1], np.uint64)[level]
        named = frames_of(entry, level, self._mask) + (address >> np.uint64(12) & inside)
        named = np.where(level == 0, np.uint64(NO_PFN), named)
        by_position = (address - np.uint64(self._page_offset)) >> np.uint64(12)
        return np.where(space == Space.DIRECT_MAP, by_position, named).astype(np.uint64)

    def _changes(self, records: Records, chunks: Records) -> pa.Table:
        array_call = records["flags"] & np.uint32(Cpa.PAGES_ARRAY) != 0
        space = self._space(records["address"])
        pfns, n_lost = self._array_pfns(records, array_call, chunks)
        attrs = {
            name: normalise(records[f"entry_{name}"], records[f"level_{name}"], self._mask)
            for name in ("before", "first", "last")
        }
        n = len(records)
        columns: dict[str, Any] = {
            "ts_ns": records["ts"],
            "duration_ns": records["end"] - records["ts"],
            "kind": records["kind"],
            "call_id": records["call_id"],
            "parent_id": records["parent_id"],
            "depth": records["depth"],
            "cpu": records["cpu"],
            "pid": records["pid"],
            "tgid": records["tgid"],
            "comm_id": self._names.string_ids(records["comm"]),
            "stack_id": self._names.stack_ids(records["stack_key"]),
            "space": space,
            "address": np.where(array_call, np.uint64(0), records["address"]),
            "pfn": self._pfns(records["address"], space, records["entry_first"], records["level_first"]),
            "n_pages": records["n_pages"],
            "n_done": np.minimum(records["n_done"], records["n_pages"]),
            "mask_set": records["mask_set"],
            "mask_clr": records["mask_clr"],
            "flags": records["flags"],
            "force_split": records["bits"] & np.uint8(1),
            "has_pgd": records["has_pgd"],
            "check_alias": records["check_alias"],
            "has_exit": np.ones(n, np.uint8),
            "ret": records["ret"],
            "level_before": records["level_before"],
            "attrs_before": attrs["before"],
            "level_first": records["level_first"],
            "attrs_first": attrs["first"],
            "level_last": records["level_last"],
            "attrs_last": attrs["last"],
            "pfns": pfns,
            "n_pfns_lost": n_lost,
        }
        return _table("changes", columns)

    def _splits(self, records: Records) -> pa.Table:
        space = self._space(records["address"])
        columns: dict[str, Any] = {
            "ts_ns": records["ts"],
            "call_id": records["call_id"],
            "cpu": records["cpu"],
            "pid": records["pid"],
            "space": space,
            "address": records["address"],
            "pfn": self._pfns(records["address"], space, records["entry"], records["level"]),
            "level": records["level"],
            "attrs": normalise(records["entry"], records["level"], self._mask),
        }
        return _table("splits", columns)

    def _array_pfns(self, records: Records, is_array: npt.NDArray[np.bool_], chunks: Records) -> tuple[pa.Array, U64]:
        """Lists of frames of the pages arrays; chunks of a call arrive before the call itself."""
        n = len(records)
        lists: list[U64] = [np.empty(0, np.uint64)] * n
        lost = np.zeros(n, np.uint64)
        for i in np.flatnonzero(is_array).tolist():  # few: a call for thousands of pages
            mine = chunks[chunks["call_id"] == records["call_id"][i]]
            mine = mine[np.argsort(mine["chunk"])]
            whole = len(mine) and np.array_equal(mine["chunk"], np.arange(len(mine)))
            pages = mine["page"].ravel()[: int(records["n_pages"][i])] if whole else np.empty(0, np.uint64)
            lists[i] = (pages - np.uint64(self._vmemmap)) >> np.uint64(VMEMMAP_SHIFT)
            lost[i] = records["n_pages"][i] - np.uint64(len(pages))
        return _lists(lists), lost

    def _regions(self, records: Records, chunks: Records) -> pa.Table:
        n = len(records)
        alloc = records["event"] == RegionEvent.ALLOC
        lists: list[U64] = [np.empty(0, np.uint64)] * n
        lost = np.zeros(n, np.uint64)
        chunks = chunks[np.argsort(chunks["region_id"], kind="stable")]
        first = np.searchsorted(chunks["region_id"], records["region_id"], side="left")
        last = np.searchsorted(chunks["region_id"], records["region_id"], side="right")
        for i in np.flatnonzero(alloc & (records["tier"] == Tier.BACKING)).tolist():  # one pass per region, not page
            lists[i] = self._frames(records[i], chunks[first[i] : last[i]])
            lost[i] = -(-int(records["n_bytes"][i]) // 4096) - len(lists[i])
        secret = alloc & (records["address"] == 0) & (records["entry"] != 0)
        for i in np.flatnonzero(secret).tolist():
            lists[i] = records["entry"][i : i + 1] >> np.uint64(12)
        columns: dict[str, Any] = {
            "ts_ns": records["ts"],
            "event": records["event"],
            "tier": records["tier"],
            "kind": records["kind"],
            "region_id": records["region_id"],
            "parent_id": records["parent_id"],
            "cpu": records["cpu"],
            "pid": records["pid"],
            "tgid": records["tgid"],
            "comm_id": self._names.string_ids(records["comm"]),
            "name_id": self._names.string_ids(records["name"]),
            "stack_id": self._names.stack_ids(records["stack_key"]),
            "address": records["address"],
            "n_bytes": records["n_bytes"],
            "map_level": records["map_level"],
            "pfns": _lists(lists),
            "n_pfns_lost": lost,
        }
        return _table("regions", columns)

    def _frames(self, region: np.void, chunks: Records) -> U64:
        """Page frames of one region in order of address, from the leaf entries behind it."""
        parts: list[U64] = [np.empty(0, np.uint64)]
        start = int(region["address"])
        end = start + (-(-int(region["n_bytes"]) // 4096) * 4096)
        for chunk in chunks[np.argsort(chunks["address"])]:
            level = int(chunk["level"])
            if level == Level.NONE:
                continue
            if level == Level.K4:
                step = CHUNK
                pfns = frames_of(chunk["pte"], level, self._mask)
            else:
                step = LEAF_PAGES[Level.M2]  # the programs step by 2M, in a 1G leaf too
                base = int(frames_of(chunk["pte"][:1], level, self._mask)[0])
                base += int(chunk["address"]) >> 12 & LEAF_PAGES[level] - 1
                pfns = np.arange(base, base + step, dtype=np.uint64)
            address = chunk["address"] + np.arange(step, dtype=np.uint64) * np.uint64(4096)
            inside = (address >= start) & (address < end)
            if level == Level.K4:
                inside &= chunk["pte"] != 0
            parts.append(pfns[inside])
        return np.concatenate(parts)

    def _pages(self, records: Records, regions: pa.Table) -> pa.Table:
        """Page events, and one row for each frame behind a region that no allocation event told of."""
        n = len(records)
        columns: dict[str, Any] = {
            "ts_ns": records["ts"],
            "event": records["event"],
            "pfn": records["pfn"],
            "order": records["order"],
            "gfp": records["gfp"],
            "migratetype": records["migratetype"],
            "cpu": records["cpu"],
            "pid": records["pid"],
            "scope": np.where(np.isin(records["scope"], FREE_SCOPES), 0, records["scope"]).astype(np.uint8),
            "region_id": records["region_id"],
            "stack_id": np.zeros(n, np.uint32),
        }
        seen = _table("pages", columns)
        pfns = regions.column("pfns").combine_chunks()
        counts = np.diff(np.asarray(pfns.offsets))
        frames = np.asarray(pfns.flatten(), np.uint64)
        behind = {
            name: np.repeat(regions.column(name).to_numpy(), counts)
            for name in ("ts_ns", "cpu", "pid", "kind", "region_id")
        }
        self._told = np.concatenate([self._told, records[np.isin(records["event"], ALLOCATIONS)]])
        bulk = (
            np.full(len(frames), self._derive_pages)
            & (behind["kind"] != RegionKind.SECRET_PAGE)
            & ~np.isin(_pair(frames, behind["region_id"]), _pair(*_single_pages(self._told)))
        )
        m = int(bulk.sum())
        columns = {
            "ts_ns": behind["ts_ns"][bulk],
            "event": np.full(m, PageEvent.ALLOC_BULK, np.uint8),
            "pfn": frames[bulk],
            "order": np.zeros(m, np.uint8),
            "gfp": np.zeros(m, np.uint32),
            "migratetype": np.zeros(m, np.uint8),
            "cpu": behind["cpu"][bulk],
            "pid": behind["pid"][bulk],
            "scope": behind["kind"][bulk],
            "region_id": behind["region_id"][bulk],
            "stack_id": np.zeros(m, np.uint32),
        }
        return pa.concat_tables([seen, _table("pages", columns)])


def _table(name: str, columns: dict[str, Any]) -> pa.Table:
    return pa.table(columns, schema=TABLES[name])


def _lists(lists: list[U64]) -> pa.Array:
    offsets = np.zeros(len(lists) + 1, np.int32)
    np.cumsum([len(part) for part in lists], out=offsets[1:])
    values = np.concatenate(lists) if lists else np.empty(0, np.uint64)
    kind = TABLES["changes"].field("pfns").type
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, pa.uint64()), type=kind)


def _counted(ids: U64, of: U64, n: npt.NDArray[Any]) -> U64:
    """The number that belongs to each id, 0 where there is none; `of` ascends."""
    if len(of) == 0:
        return np.zeros(len(ids), np.uint64)
    at = np.minimum(np.searchsorted(of, ids), len(of) - 1)
    return np.where(of[at] == ids, n[at], 0).astype(np.uint64)


def _unclaimed(parts: Records, key: str, ids: U64) -> Records:
    """Parts whose whole is still to come. Ids grow with time, so of those that it will never claim the oldest go."""
    left: Records = parts[~np.isin(parts[key], ids) & (parts[key] != 0)]
    newest: Records = left[np.argsort(left[key], kind="stable")][-MAX_UNCLAIMED:]
    return newest


def _single_pages(blocks: Records) -> tuple[U64, U64]:
    """Every page of allocated blocks, and the region it went to."""
    n = np.left_shift(np.uint64(1), blocks["order"].astype(np.uint64)).astype(np.int64)
    inside = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)
    return np.repeat(blocks["pfn"], n) + inside.astype(np.uint64), np.repeat(blocks["region_id"], n)


def _pair(pfn: U64, region_id: U64) -> npt.NDArray[np.void]:
    """Frame and region as one value each, to look pairs up."""
    return np.ascontiguousarray(np.column_stack([pfn, region_id])).view(np.dtype((np.void, 16))).ravel()
