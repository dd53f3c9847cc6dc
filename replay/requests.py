"""The requests that a policy has to serve: every allocation of special memory in a trace, with its frames and lifetime.

A trace tells an allocation on two tiers: what was asked for (a BPF image, a module, a secret page) and what the
recorded kernel made of it (an area of module_alloc or execmem, a pack, a ROX block). A **request** here is what took
page frames from the page allocator: a backing region with frames of its own, or a secret page. What was asked for on
top of it is carried along, so that a policy may serve that tier instead.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from analyze.changes import MAX_TS
from collect.errors import TraceError
from collect.schema import HUGE_FRAME_PAGES, NO_PFN, Level, RegionEvent, RegionKind, Tier
from collect.trace import Trace
from replay.users import TRAMPOLINE, USERS, User, in_stacks, users_of_stacks

__all__ = ["NEVER", "Requests", "read_requests"]

Int64 = npt.NDArray[np.int64]
UInt8 = npt.NDArray[np.uint8]

NEVER = np.iinfo(np.int64).max
"""Time of a free that the trace does not hold."""

_COLUMNS = [
    "ts_ns", "event", "tier", "kind", "region_id", "parent_id", "pid", "name_id", "stack_id", "address", "n_bytes",
    "map_level", "pfns", "n_pfns_lost",
]  # fmt: skip


_LENGTH = np.uint64((1 << 32) - 1)
"""Lengths of images are `unsigned int` (bpf_jit_binary_alloc): the upper half of the register means nothing."""

_PER_REQUEST = (
    "region_id", "kind", "asked_kind", "asked_bytes", "in_jit", "user", "order", "alloc_ns", "free_ns", "begin_ns", "end_ns",
    "alloc_pid", "free_pid", "address",
)  # fmt: skip


@dataclass(frozen=True)
class Requests:
    """Requests in order of their allocation, as flat columns of one row a request.

    Attributes:
        region_id: the region of the trace.
        kind: `RegionKind` of what took the frames.
        asked_kind, asked_bytes: what it was taken for, where the trace says so (0 otherwise).
        in_jit: a program's image, not a BPF trampoline, which takes a page of its own.
        user: `User` code.
        order: order of the page allocations that make it up; 9 where the kernel maps it by a 2M entry, else 0.
        alloc_ns, free_ns: when; `NEVER` for what outlives the trace.
        begin_ns, end_ns: from when to when it owns its frames; wider than alloc to free where changes of its own came
            just before or after (`replay.stream` fills them in, see `replay.ownership`).
        alloc_pid, free_pid: thread; 0 where there was no free.
        address: virtual address; 0 for a secret page.
        first: [n + 1] request i has the pages `first[i]` up to `first[i + 1]` of `pfn`.
        pfn: page frames in order of address; -1 where the recorder could not tell.
        n_frees_before: frees of what was allocated before the recording; their changes stay where they are.
        n_pages_unknown: pages whose frame the recorder could not tell.
        n_nested: regions left out because a larger one holds the same frames.
        n_in_old_blocks: areas cut from a ROX block that was there before the recording; they stay where they are.
        has_packs: the recorded kernel has `bpf_prog_pack`.
    """

    region_id: npt.NDArray[np.uint64]
    kind: UInt8
    asked_kind: UInt8
    asked_bytes: Int64
    in_jit: npt.NDArray[np.bool_]
    user: UInt8
    order: UInt8
    alloc_ns: Int64
    free_ns: Int64
    begin_ns: Int64
    end_ns: Int64
    alloc_pid: Int64
    free_pid: Int64
    address: npt.NDArray[np.uint64]
    first: Int64
    pfn: Int64
    n_frees_before: int = 0
    n_pages_unknown: int = 0
    n_nested: int = 0
    n_in_old_blocks: int = 0
    has_packs: bool = False

    def __len__(self) -> int:
        return len(self.alloc_ns)

    @property
    def n_pages(self) -> Int64:
        """Pages of each request."""
        return np.diff(self.first)

    def select(self, which: npt.NDArray[np.bool_]) -> Requests:
        """The requests `which` alone."""
        rows = np.flatnonzero(which)
        counts = self.n_pages[rows]
        return replace(
            self,
            **{name: getattr(self, name)[rows] for name in _PER_REQUEST},
            first=np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
            pfn=self.pfn[which[self.owner()]],
        )

    def events(self, which: npt.NDArray[np.bool_]) -> tuple[Int64, npt.NDArray[np.bool_], Int64]:
        """Allocations and frees of the requests `which`, in order of time: request, whether it is a free, when.

        At equal times frees come first: the frames of one may be what the other gets.
        """
        rows = np.flatnonzero(which)
        freed = rows[self.end_ns[rows] != NEVER]
        request = np.concatenate((rows, freed))
        is_free = np.concatenate((np.zeros(len(rows), np.bool_), np.ones(len(freed), np.bool_)))
        ns = np.concatenate((self.begin_ns[rows], self.end_ns[freed]))
        order = np.lexsort((request, ~is_free, ns))
        return request[order], is_free[order], ns[order]

    def owner(self) -> Int64:
        """Request of each page, of the shape of `pfn`."""
        return np.repeat(np.arange(len(self), dtype=np.int64), self.n_pages)

    def by_user(self) -> dict[str, int]:
        """Requests of each user, largest first."""
        counts = np.bincount(self.user, minlength=len(USERS))
        return {USERS[code]: int(counts[code]) for code in np.argsort(-counts, kind="stable") if counts[code]}


def read_requests(trace: Trace) -> Requests:
    """The requests of a trace. Raises TraceError where a region names a frame beyond the recorded memory."""
    table = trace.table("regions", _COLUMNS)
    column = {name: table.column(name).to_numpy() for name in _COLUMNS if name != "pfns"}
    if np.any(column["ts_ns"] >= MAX_TS):
        raise TraceError(f"{trace.path}: table 'regions' has a time centuries after boot; copy the trace anew")
    first, pfns = _lists(table.column("pfns"))
    max_pfn = int(trace.manifest["memory"]["max_pfn"])
    known = pfns != np.uint64(NO_PFN)
    if np.any(pfns[known] >= max_pfn):
        raise TraceError(
            f"{trace.path}: table 'regions' names a page frame beyond memory.max_pfn ({max_pfn}); copy the trace anew"
        )
    pfn = np.where(known, pfns, 0).astype(np.int64)
    pfn[~known] = -1

    is_alloc = column["event"] == RegionEvent.ALLOC
    free_ns, free_pid = _frees(column, ~is_alloc)
    has_frames = is_alloc & (np.diff(first) > 0)
    has_frames &= (column["tier"] == Tier.BACKING) | (column["kind"] == RegionKind.SECRET_PAGE)
    rows = np.flatnonzero(has_frames)
    rows = rows[np.argsort(column["ts_ns"][rows], kind="stable")]
    rows, nested = _outermost(rows, column["ts_ns"].astype(np.int64), free_ns, first, pfn)
    old = _in_old_block(trace, column, rows, first, pfn)
    rows = rows[~old]

    counts = np.diff(first)[rows]
    request_first = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
    source = np.repeat(first[rows], counts) + np.arange(request_first[-1]) - np.repeat(request_first[:-1], counts)
    request_pfn = pfn[source]
    asked = _asked_rows(column, rows, is_alloc)
    asked_kind = np.where(asked >= 0, column["kind"][asked], 0).astype(np.uint8)
    asked_stack = np.where(asked >= 0, column["stack_id"][asked], 0).astype(np.uint32)
    kind = column["kind"][rows]
    huge = (kind == RegionKind.ROX_BLOCK) | (column["map_level"][rows] >= Level.M2)
    return Requests(
        region_id=column["region_id"][rows],
        kind=kind,
        asked_kind=asked_kind,
        asked_bytes=np.where(asked >= 0, column["n_bytes"][asked] & _LENGTH, 0).astype(np.int64),
        in_jit=(asked_kind == RegionKind.BPF_IMAGE) & ~in_stacks(trace, asked_stack, TRAMPOLINE),
        user=_users(trace, column, rows, asked_kind),
        order=np.where(huge, 9, 0).astype(np.uint8),
        alloc_ns=column["ts_ns"][rows].astype(np.int64),
        free_ns=free_ns[rows],
        begin_ns=column["ts_ns"][rows].astype(np.int64),
        end_ns=free_ns[rows],
        alloc_pid=column["pid"][rows].astype(np.int64),
        free_pid=free_pid[rows],
        address=column["address"][rows],
        first=request_first,
        pfn=request_pfn,
        n_frees_before=int(
            np.count_nonzero(~is_alloc & (column["region_id"] == 0) & (column["kind"] != RegionKind.MODULE))
        ),
        n_pages_unknown=int(np.count_nonzero(request_pfn < 0)) + int(column["n_pfns_lost"][rows].sum()),
        n_nested=nested,
        n_in_old_blocks=int(np.count_nonzero(old)),
        has_packs=_has_packs(trace, column),
    )


def _lists(column: Any) -> tuple[Int64, npt.NDArray[np.uint64]]:
    """Offsets and values of a list column, whatever its chunks."""
    array = column.combine_chunks()
    if hasattr(array, "chunks"):  # a chunked array of no chunk
        return np.zeros(1, np.int64), np.zeros(0, np.uint64)
    offsets = array.offsets.to_numpy().astype(np.int64)
    values = array.values.to_numpy()[offsets[0] : offsets[-1]]
    return offsets - offsets[0], values


def _frees(column: dict[str, Any], is_free: npt.NDArray[np.bool_]) -> tuple[Int64, Int64]:
    """Time and thread of the free of each row's region (`NEVER`, 0 where there is none)."""
    rows = np.flatnonzero(is_free & (column["region_id"] != 0))
    ids, first_row = np.unique(column["region_id"][rows], return_index=True)
    free_ns = np.full(len(column["ts_ns"]), NEVER, np.int64)
    free_pid = np.zeros(len(free_ns), np.int64)
    if len(ids):
        at = np.minimum(np.searchsorted(ids, column["region_id"]), len(ids) - 1)
        found = ids[at] == column["region_id"]
        row = rows[first_row[at]]
        free_ns[found] = column["ts_ns"][row[found]].astype(np.int64)
        free_pid[found] = column["pid"][row[found]]
    return free_ns, free_pid


def _outermost(rows: Int64, alloc_ns: Int64, free_ns: Int64, first: Int64, pfn: Int64) -> tuple[Int64, int]:
    """Leave out regions that share a frame with an older one that still lives: parts of a pack or of a ROX block."""
    n_before = len(rows)
    while len(rows):
        counts = np.diff(first)[rows]
        start = np.cumsum(counts) - counts
        page = np.repeat(first[rows], counts) + np.arange(counts.sum()) - np.repeat(start, counts)
        owner = np.repeat(np.arange(len(rows)), counts)
        known = pfn[page] >= 0
        frame, owner = pfn[page][known], owner[known]
        order = np.lexsort((owner, frame))  # rows are sorted by time
        frame, owner = frame[order], owner[order]
        same = (frame[1:] == frame[:-1]) & (owner[1:] != owner[:-1])
        overlap = same & (alloc_ns[rows[owner[1:]]] < free_ns[rows[owner[:-1]]])
        if not overlap.any():
            break
        inner = np.zeros(len(rows), np.bool_)
        inner[owner[1:][overlap]] = True
        by_outer = overlap & ~inner[owner[:-1]]  # what an inner one overlaps may stay once that is gone
        keep = np.ones(len(rows), np.bool_)
        keep[owner[1:][by_outer]] = False
        rows = rows[keep]
    return rows, n_before - len(rows)


def _asked_rows(column: dict[str, Any], rows: Int64, is_alloc: npt.NDArray[np.bool_]) -> Int64:
    """Row of what each request was made for: its parent region, or itself on the asked tier; -1 where unknown."""
    asked = np.where(column["tier"][rows] == Tier.ASKED, rows, -1)
    allocs = np.flatnonzero(is_alloc)
    order = np.argsort(column["region_id"][allocs], kind="stable")
    ids = column["region_id"][allocs][order]
    parent = column["parent_id"][rows]
    if len(ids):
        at = np.minimum(np.searchsorted(ids, parent), len(ids) - 1)
        found = (ids[at] == parent) & (parent != 0) & (asked < 0)
        asked[found] = allocs[order[at[found]]]
    return asked


def _in_old_block(trace: Trace, column: dict[str, Any], rows: Int64, first: Int64, pfn: Int64) -> npt.NDArray[np.bool_]:
    """Areas cut from a ROX block that was there before the recording: no request to the page allocator made them.

    Told by their frames: one after the other, and in the place within their 2M frame that the address has in its own,
    as a 2M mapping makes them (pages of vmalloc's own are there by chance once in 512).
    """
    config = trace.manifest["kernel"].get("config")
    if not isinstance(config, dict) or config.get("CONFIG_ARCH_HAS_EXECMEM_ROX") != "y":
        return np.zeros(len(rows), np.bool_)
    counts = np.diff(first)[rows]
    owner = np.repeat(np.arange(len(rows)), counts)
    nth = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    page = pfn[first[rows][owner] + nth]
    start = pfn[first[rows]]
    virtual = (column["address"][rows] >> np.uint64(12)).astype(np.int64)
    apart = np.bincount(owner, page != start[owner] + nth, len(rows)) > 0
    congruent: npt.NDArray[np.bool_] = (virtual - start) % HUGE_FRAME_PAGES == 0
    execmem: npt.NDArray[np.bool_] = column["kind"][rows] == RegionKind.EXECMEM
    return congruent & ~apart & execmem


def _users(trace: Trace, column: dict[str, Any], rows: Int64, asked_kind: UInt8) -> UInt8:
    """User of each request: by what was asked for where the trace says it, else by the stack of the allocation."""
    user = users_of_stacks(trace, column["stack_id"][rows])
    for kind, code in (
        (RegionKind.BPF_IMAGE, User.BPF),
        (RegionKind.BPF_PACK, User.BPF),
        (RegionKind.MODULE, User.MODULE),
        (RegionKind.SECRET_PAGE, User.SECRETMEM),
    ):
        user[asked_kind == kind] = code
    user[column["kind"][rows] == RegionKind.BPF_PACK] = User.BPF
    return user


def _has_packs(trace: Trace, column: dict[str, Any]) -> bool:
    """Whether the recorded kernel had packs: it made one, or the recorder found their allocator to probe."""
    attached = trace.manifest["probes"].get("attached", [])
    named = isinstance(attached, list) and any("bpf_prog_pack" in str(name) for name in attached)
    return named or bool(np.any(column["kind"] == RegionKind.BPF_PACK))
