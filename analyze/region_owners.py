"""Which region a page belonged to at a moment: by page frame, or by page of a virtual address."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow.compute as pc

from analyze.stacks import Stacks
from analyze.users import User
from collect.errors import TraceError
from collect.schema import RegionEvent, RegionKind, Tier
from collect.trace import Trace

__all__ = ["KIND_NAMES", "NEVER", "NO_REGION", "USER_OF_KIND", "RegionOwners"]

KIND_NAMES = np.full(256, "", object)
"""Name of each `RegionKind`, lower case; "" for other codes."""
for _kind in RegionKind:
    KIND_NAMES[_kind] = _kind.name.lower()

NO_REGION = -1

NEVER = np.iinfo(np.int64).max
"""In place of the time at which a region was freed: not while it was recorded."""

_MAX_NESTING = 4
"""Region in region: an image in a pack in an allocation of executable memory; one more than that is forged."""

USER_OF_KIND = {
    RegionKind.BPF_IMAGE: User.BPF,
    RegionKind.BPF_PACK: User.BPF,
    RegionKind.MODULE: User.MODULE,
    RegionKind.SECRET_PAGE: User.SECRETMEM,
}

_SHARED = {RegionKind.BPF_PACK: "bpf_prog_pack", RegionKind.ROX_BLOCK: "execmem ROX cache"}
"""What many programs or modules share has no name of theirs; it goes by its own."""


class RegionOwners:
    """Regions of a trace by the pages behind them.

    Attributes (one cell per ALLOC row, in order of time):
        user: uint8, `User` by the kind of the region or of the one it was made for, else by its stack.
        name: object, module or program name where known, else "".
        tgid: uint32, process that allocated it.
        comm_id: uint32, that process's name (table strings).
        region_id: uint64.
        kind: uint8, `RegionKind`.
        shared: bool, a pack or a block, in which many users' regions lie, or what backs one.
        since_ns, freed_ns: int64, its lifetime; NEVER where no free was recorded.
        owner: int64, index of what was asked for, or of the pack or block, that each one is or backs; its own where that is
            not known.
    """

    def __init__(self, trace: Trace, stacks: Stacks, user_of_stack: npt.NDArray[np.uint8]) -> None:
        table = trace.table("regions")
        columns = {name: table[name].to_numpy() for name in table.column_names if name != "pfns"}
        for name, most in (("event", max(RegionEvent)), ("tier", max(Tier))):
            if len(table) and columns[name].max() > most:
                raise TraceError(
                    f"{trace.path}: table regions: {name} {columns[name].max()} is unknown; copy the trace anew"
                )
        if len(table) and columns["ts_ns"].max() >= 1 << 62:
            raise TraceError(f"{trace.path}: table regions: a time stamp is centuries after boot; copy the trace anew")
        rows = np.flatnonzero(columns["event"] == RegionEvent.ALLOC)
        rows = rows[np.argsort(columns["ts_ns"][rows], kind="stable")]
        self._columns = {name: column[rows] for name, column in columns.items()}
        ids = self._columns["region_id"]
        if len(np.unique(ids)) < len(ids):
            values, counts = np.unique(ids, return_counts=True)
            raise TraceError(
                f"{trace.path}: table regions: region_id {values[counts > 1][0]} comes twice; copy the trace anew"
            )
        self.tgid: npt.NDArray[np.uint32] = self._columns["tgid"]
        self.comm_id: npt.NDArray[np.uint32] = self._columns["comm_id"]
        self.region_id: npt.NDArray[np.uint64] = ids
        self.kind: npt.NDArray[np.uint8] = self._columns["kind"]
        self.since_ns: npt.NDArray[np.int64] = self._columns["ts_ns"].astype(np.int64)
        self.freed_ns = _freed(columns, ids)
        names = _strings(trace)
        parent = self._parents(ids)
        self.user = self._users(parent, stacks, user_of_stack)
        self.name = self._names(parent, names)
        self.owner = self._owners(parent)
        self.shared = np.isin(self.kind[self.owner], list(_SHARED))
        lists = table["pfns"].take(rows)
        lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64)
        flat = pc.list_flatten(lists).to_numpy()
        owner = np.repeat(np.arange(len(rows)), lengths)
        within = np.arange(len(flat)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        ts = self.since_ns[owner]
        self._by_pfn = _pages(flat, ts, owner).assign(within=lambda pages: within[pages.index])
        has_address = self._columns["address"][owner] != 0
        virtual = (self._columns["address"][owner] >> np.uint64(12)) + within.astype(np.uint64)
        self._by_address = _pages(virtual[has_address], ts[has_address], owner[has_address])

    def of_pfn(self, pfn: npt.NDArray[np.uint64], ts_ns: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Index of the region that last got each page frame before a moment, or NO_REGION."""
        return _last_before(self._by_pfn, pfn, ts_ns)

    def on_page(
        self, pfn: npt.NDArray[np.int64], ts_ns: int, touched_ns: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The region that lies on each page at a moment, and the page's place within it.

        The last one allocated of those that live (an allocation in a block lies on the block). Where none lives, the
        last one that did when the page was last changed (`touched_ns`): what was freed and is not reset yet.
        """
        pages = self._by_pfn[self._by_pfn["ts_ns"] <= ts_ns]
        owner = pages["owner"].to_numpy(np.int64)
        found, within = _last_of(pages[self.freed_ns[owner] > ts_ns], pfn)
        late, late_within = _last_of(pages, pfn)
        held = (found == NO_REGION) & (late != NO_REGION)
        held[held] = touched_ns[held] <= self.freed_ns[late[held]]
        return np.where(held, late, found), np.where(held, late_within, within)

    def sharers(
        self, region: npt.NDArray[np.int64], within: npt.NDArray[np.int64], ts_ns: int
    ) -> npt.NDArray[np.int64]:
        """How many living regions lie on each page of a pack or a block at a moment (images, allocations)."""
        address = self._columns["address"].astype(np.uint64)
        lives = (self.since_ns <= ts_ns) & (self.freed_ns > ts_ns) & (address != 0) & ~self.shared
        first = np.sort(address[lives] >> np.uint64(12))
        size = np.minimum(self._columns["n_bytes"][lives].astype(np.uint64), np.uint64(1 << 40))
        last = np.sort((address[lives] + np.maximum(size, np.uint64(1)) - np.uint64(1)) >> np.uint64(12))
        page = (address[region] >> np.uint64(12)) + within.astype(np.uint64)
        begun, ended = np.searchsorted(first, page, "right"), np.searchsorted(last, page, "left")
        return np.asarray(begun - ended, np.int64)

    def of_address(self, address: npt.NDArray[np.uint64], ts_ns: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Index of the region last mapped at each virtual address before a moment, or NO_REGION.

        Areas that are freed late (vfree from a kworker) still belong to the region that was there.
        """
        return _last_before(self._by_address, address >> np.uint64(12), ts_ns)

    def _parents(self, ids: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """Index of each region's parent, or NO_REGION."""
        if not len(ids):
            return np.empty(0, np.int64)
        order = np.argsort(ids)
        wanted = self._columns["parent_id"]
        at = np.minimum(np.searchsorted(ids[order], wanted), len(ids) - 1)
        found = (ids[order][at] == wanted) & (wanted != 0)
        parents: npt.NDArray[np.int64] = np.where(found, order[at], NO_REGION)
        return parents

    def _owners(self, parent: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        own = np.arange(len(parent))
        if not len(parent):
            return own
        done = (self._columns["tier"] == Tier.ASKED) | np.isin(self.kind, list(_SHARED))
        at = own.copy()
        for _ in range(_MAX_NESTING):
            at = np.where((at != NO_REGION) & ~done[at], parent[at], at)
        found = (at != NO_REGION) & done[at]
        return np.where(found, at, own)

    def _users(
        self, parent: npt.NDArray[np.int64], stacks: Stacks, user_of_stack: npt.NDArray[np.uint8]
    ) -> npt.NDArray[np.uint8]:
        kinds = np.zeros(256, np.uint8)
        for kind, user in USER_OF_KIND.items():
            kinds[kind] = user
        own = kinds[self._columns["kind"]]
        by_stack = user_of_stack[stacks.known(self._columns["stack_id"])]
        user, at = own.copy(), parent
        for _ in range(_MAX_NESTING):
            there = at != NO_REGION
            user = np.where((user == User.OTHER) & there, own[at], user)
            at = np.where(there, parent[at], NO_REGION) if len(at) else at
        return np.where(user == User.OTHER, by_stack, user).astype(np.uint8)

    def _names(self, parent: npt.NDArray[np.int64], names: dict[int, str]) -> npt.NDArray[np.object_]:
        distinct, place = np.unique(self._columns["name_id"], return_inverse=True)
        own = np.array([names.get(name, "") if name else "" for name in distinct.tolist()], object)[place.reshape(-1)]
        for kind, shared in _SHARED.items():
            own[(self._columns["kind"] == kind) & (own == "")] = shared
        name, at = own.copy(), parent
        for _ in range(_MAX_NESTING):
            there = at != NO_REGION
            name = np.where((name == "") & there, own[at], name) if len(at) else name
            at = np.where(there, parent[at], NO_REGION) if len(at) else at
        return name


def _strings(trace: Trace) -> dict[int, str]:
    table = trace.table("strings")
    return dict(zip(table["string_id"].to_pylist(), table["text"].to_pylist(), strict=True))


def _freed(columns: dict[str, npt.NDArray[Any]], ids: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """When each region was freed first: what comes after is of a forged trace."""
    freed = np.full(len(ids), NEVER, np.int64)
    rows = np.flatnonzero((columns["event"] == RegionEvent.FREE) & (columns["region_id"] != 0))
    if not len(ids) or not len(rows):
        return freed
    order = np.argsort(ids, kind="stable")
    at = np.minimum(np.searchsorted(ids[order], columns["region_id"][rows]), len(ids) - 1)
    known = ids[order][at] == columns["region_id"][rows]
    np.minimum.at(freed, order[at[known]], columns["ts_ns"][rows[known]].astype(np.int64))
    return freed


def _last_of(pages: pd.DataFrame, pfn: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Owner of each page frame by the last row that holds it, and the place within; NO_REGION and 0 where none does."""
    last = pages.drop_duplicates("page", keep="last")
    order = np.argsort(last["page"].to_numpy(np.uint64))
    page = last["page"].to_numpy(np.uint64)[order]
    if not len(page):
        return np.full(len(pfn), NO_REGION, np.int64), np.zeros(len(pfn), np.int64)
    wanted = pfn.astype(np.uint64)
    at = np.minimum(np.searchsorted(page, wanted), len(page) - 1)
    found = page[at] == wanted
    owner, within = last["owner"].to_numpy(np.int64)[order][at], last["within"].to_numpy(np.int64)[order][at]
    return np.where(found, owner, NO_REGION), np.where(found, within, 0)


def _pages(page: npt.NDArray[np.uint64], ts: npt.NDArray[np.int64], owner: npt.NDArray[np.int64]) -> pd.DataFrame:
    frame = pd.DataFrame({"page": page.astype(np.uint64), "ts_ns": ts, "owner": owner})
    return frame.sort_values("ts_ns", kind="stable")


def _last_before(
    pages: pd.DataFrame, page: npt.NDArray[np.uint64], ts_ns: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    asked = pd.DataFrame({"page": page.astype(np.uint64), "ts_ns": ts_ns, "at": np.arange(len(page))})
    if not len(asked) or not len(pages):
        return np.full(len(page), NO_REGION, np.int64)
    found = pd.merge_asof(asked.sort_values("ts_ns", kind="stable"), pages, on="ts_ns", by="page", direction="backward")
    return found.sort_values("at")["owner"].fillna(NO_REGION).to_numpy(np.int64)
