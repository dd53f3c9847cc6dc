"""The requests that a policy has to serve: every allocation of special memory in a trace, with its frames and lifetime.

A trace tells an allocation on two tiers: what was asked for (a BPF image, a module, a secret page) and what the
recorded kernel made of it (an area of module_alloc or execmem, a pack, a ROX block). Requests come in two views:

* **as backed**: what took page frames from the page allocator: a backing region with frames of its own, or a secret
  page. What was asked for on top of it is carried along.
* **as asked**: the recorded kernel's own caches are taken away. The images in its packs, and the areas in its ROX blocks,
  are requests of their own, as they would be on a kernel that has neither; packs and blocks are marked as what they
  are (`Life.CACHE`), for their changes do not happen then. Where the kernel had neither, both views are the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from collect.errors import TraceError
from collect.schema import Level, RegionKind, Tier
from collect.trace import Trace
from replay.region_rows import NEVER, RegionRows, read_region_rows
from replay.users import TRAMPOLINE, USERS, User, in_stacks, users_of_stacks

__all__ = ["NEVER", "Life", "Requests", "read_requests"]

Int64 = npt.NDArray[np.int64]
UInt8 = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]

PAGE_BYTES = 4096
IMAGE_OVERHEAD = 128
"""Bytes that bpf_jit_binary_alloc (kernel/bpf/core.c) adds to an image, its header apart, before it rounds up to pages."""

MAX_IMAGE_PAGES = 1 << 22
"""Pages of all images out of packs together: 16 GiB of programs, where a fleet's hosts have some hundred kilobytes."""

_LENGTH = np.uint64((1 << 32) - 1)
"""Lengths of images are `unsigned int` (bpf_jit_binary_alloc): the upper half of the register means nothing."""

_CACHES = (RegionKind.BPF_PACK, RegionKind.ROX_BLOCK)

_PER_REQUEST = (
    "region_id", "kind", "asked_kind", "asked_bytes", "in_jit", "user", "order", "alloc_ns", "free_ns", "begin_ns", "end_ns",
    "alloc_pid", "free_pid", "address", "life",
)  # fmt: skip


class Life(IntEnum):
    """Which changes a request's pages go through."""

    RECORDED = 0
    """Those recorded."""
    AREA = 1
    """Cut from a ROX block: those recorded, and the reset of its mapping when it is freed, which the block spared it."""
    IMAGE = 2
    """Out of a pack: none was recorded. It is made read-only and executable, and reset when it is freed."""
    CACHE = 3
    """A pack or a block, which is not there in this view; no policy sees it."""


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
        life: `Life`.
        first: [n + 1] request i has the pages `first[i]` up to `first[i + 1]` of `pfn`.
        pfn: page frames in order of address; -1 where the recorder could not tell, and of an image in a pack.
        text: [pages] made executable through its virtual address; empty before `replay.stream` has filled it in.
        reset: [pages] made not present and present again by calls of its own; empty before `replay.stream` has filled it in.
        n_frees_before: frees of what was allocated before the recording; their changes stay where they are.
        n_pages_unknown: pages whose frame the recorder could not tell.
        n_nested: regions left out because a larger one holds the same frames.
        n_in_old_blocks: areas cut from a ROX block that was there before the recording; they stay where they are.
        has_packs, has_rox: the recorded kernel has `bpf_prog_pack`, execmem's ROX cache.
        pack_first, pack_pfn: in the view as asked, the packs that the recorded kernel made, in order of time: pack i had the
            page frames `pack_pfn[pack_first[i] : pack_first[i + 1]]`.
    """

    region_id: npt.NDArray[np.uint64]
    kind: UInt8
    asked_kind: UInt8
    asked_bytes: Int64
    in_jit: Bools
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
    life: UInt8 = field(default_factory=lambda: np.zeros(0, np.uint8))
    text: Bools = field(default_factory=lambda: np.zeros(0, np.bool_))
    reset: Bools = field(default_factory=lambda: np.zeros(0, np.bool_))
    n_frees_before: int = 0
    n_pages_unknown: int = 0
    n_nested: int = 0
    n_in_old_blocks: int = 0
    has_packs: bool = False
    has_rox: bool = False
    pack_first: Int64 = field(default_factory=lambda: np.zeros(1, np.int64))
    pack_pfn: Int64 = field(default_factory=lambda: np.zeros(0, np.int64))

    def __post_init__(self) -> None:
        if not len(self.life):
            object.__setattr__(self, "life", np.zeros(len(self.alloc_ns), np.uint8))
        if not len(self.text):
            object.__setattr__(self, "text", np.zeros(len(self.pfn), np.bool_))
        if not len(self.reset):
            object.__setattr__(self, "reset", np.zeros(len(self.pfn), np.bool_))

    def __len__(self) -> int:
        return len(self.alloc_ns)

    @property
    def n_pages(self) -> Int64:
        """Pages of each request."""
        return np.diff(self.first)

    def select(self, which: Bools) -> Requests:
        """The requests `which` alone."""
        rows = np.flatnonzero(which)
        counts = self.n_pages[rows]
        return replace(
            self,
            **{name: getattr(self, name)[rows] for name in _PER_REQUEST},
            first=np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
            pfn=self.pfn[which[self.owner]],
            text=self.text[which[self.owner]],
            reset=self.reset[which[self.owner]],
        )

    def events(self, which: Bools) -> tuple[Int64, Bools, Int64]:
        """Allocations and frees of the requests `which`, in order of time: request, whether it is a free, when.

        At equal times frees come first: the frames of one may be what the other gets.
        """
        rows = np.flatnonzero(which)
        freed = rows[self.end_ns[rows] != NEVER]
        request = np.concatenate((freed, rows))
        ns = np.concatenate((self.end_ns[freed], self.begin_ns[rows]))
        order = np.argsort(ns, kind="stable")  # long runs are in order already, which such a sort makes use of
        return request[order], order < len(freed), ns[order]

    @cached_property
    def owner(self) -> Int64:
        """Request of each page, of the shape of `pfn`; every policy asks for it."""
        return np.repeat(np.arange(len(self), dtype=np.int64), self.n_pages)

    def by_user(self, which: Bools | None = None) -> dict[str, int]:
        """Requests of each user, or of those `which`, largest first; caches that are not there are none."""
        real = self.life != Life.CACHE
        counts = np.bincount(self.user[real if which is None else real & which], minlength=len(USERS))
        return {USERS[code]: int(counts[code]) for code in np.argsort(-counts, kind="stable") if counts[code]}


def read_requests(trace: Trace, *, as_asked: bool = False) -> Requests:
    """The requests of a trace. Raises TraceError where a region names a frame beyond the recorded memory."""
    regions = read_region_rows(trace)
    column = regions.column
    framed = regions.with_frames()
    rows = regions.outermost(framed)
    n_nested = len(framed) - len(rows)
    old = regions.in_old_block(rows)
    n_in_old_blocks = int(np.count_nonzero(old))
    if as_asked:
        rows, life = _asked_rows(regions, framed, rows, old)
    else:
        rows, life = rows[~old], np.zeros(len(rows) - n_in_old_blocks, np.uint8)

    asked = regions.asked_for(rows)
    asked_kind = np.where(asked >= 0, column["kind"][asked], 0).astype(np.uint8)
    asked_stack = np.where(asked >= 0, column["stack_id"][asked], 0).astype(np.uint32)
    asked_bytes = np.where(asked >= 0, column["n_bytes"][asked] & _LENGTH, 0).astype(np.int64)
    kind = column["kind"][rows]
    first, pfn = _pages(regions, rows, life, asked_bytes)
    huge = (kind == RegionKind.ROX_BLOCK) | ((column["map_level"][rows] >= Level.M2) & (life == Life.RECORDED))
    is_pack = (kind == RegionKind.BPF_PACK) & (life == Life.CACHE)
    pack_first, pack_page = regions.pages(rows[is_pack])
    frees_before = ~regions.is_alloc & (column["region_id"] == 0) & (column["kind"] != RegionKind.MODULE)
    return Requests(
        region_id=column["region_id"][rows],
        kind=kind,
        asked_kind=asked_kind,
        asked_bytes=asked_bytes,
        in_jit=(asked_kind == RegionKind.BPF_IMAGE) & ~in_stacks(trace, asked_stack, TRAMPOLINE),
        user=_users(trace, column, rows, asked_kind),
        order=np.where(huge, 9, 0).astype(np.uint8),
        alloc_ns=regions.ts_ns[rows],
        free_ns=regions.free_ns[rows],
        begin_ns=regions.ts_ns[rows],
        end_ns=regions.free_ns[rows],
        alloc_pid=column["pid"][rows].astype(np.int64),
        free_pid=regions.free_pid[rows],
        address=np.where(life == Life.IMAGE, 0, column["address"][rows]).astype(np.uint64),
        first=first,
        pfn=pfn,
        life=life,
        n_frees_before=int(np.count_nonzero(frees_before)),
        n_pages_unknown=int(np.count_nonzero((pfn < 0) & (np.repeat(life, np.diff(first)) != Life.IMAGE)))
        + int(column["n_pfns_lost"][rows].sum()),
        n_nested=0 if as_asked else n_nested,
        n_in_old_blocks=0 if as_asked else n_in_old_blocks,
        has_packs=_has_packs(trace, column),
        has_rox=bool(n_in_old_blocks) or bool(np.any(column["kind"] == RegionKind.ROX_BLOCK)),
        pack_first=pack_first,
        pack_pfn=regions.pfn[pack_page],
    )


def _asked_rows(regions: RegionRows, framed: Int64, outermost: Int64, old: Bools) -> tuple[Int64, UInt8]:
    """Rows of the view as asked, in order of time, and their `Life`."""
    column = regions.column
    is_cache = np.isin(column["kind"][outermost], _CACHES)
    asked = regions.asked_for(outermost)
    is_cache |= (asked >= 0) & np.isin(column["kind"][asked], _CACHES)
    nested = np.setdiff1d(framed, outermost, assume_unique=True)
    backed = column["parent_id"][framed]
    images = regions.is_alloc & (column["kind"] == RegionKind.BPF_IMAGE) & (column["tier"] == Tier.ASKED)
    images &= ~np.isin(column["region_id"], backed[backed != 0]) & (np.diff(regions.first) == 0)
    image_rows = np.flatnonzero(images)
    rows = np.concatenate((outermost, nested, image_rows))
    life = np.concatenate(
        (
            np.where(is_cache, Life.CACHE, np.where(old, Life.AREA, Life.RECORDED)),
            np.full(len(nested), Life.AREA),
            np.full(len(image_rows), Life.IMAGE),
        )
    ).astype(np.uint8)
    order = np.argsort(regions.ts_ns[rows], kind="stable")
    return rows[order], life[order]


def _pages(regions: RegionRows, rows: Int64, life: UInt8, asked_bytes: Int64) -> tuple[Int64, Int64]:
    """Offsets and page frames of the requests; an image has as many pages as bpf_jit_binary_alloc would take for it."""
    own = np.diff(regions.first)[rows]
    counts = np.where(life == Life.IMAGE, -(-(asked_bytes + IMAGE_OVERHEAD) // PAGE_BYTES), own)
    first = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
    n_image_pages = int(counts[life == Life.IMAGE].sum())
    if n_image_pages > MAX_IMAGE_PAGES:
        raise TraceError(
            f"{regions.trace.path}: BPF images of {n_image_pages} pages, more than any recording of ours; "
            "the trace is forged or damaged: copy it anew"
        )
    pfn = np.full(int(first[-1]), -1, np.int64)
    told = np.repeat(life != Life.IMAGE, counts)
    _, source = regions.pages(rows[life != Life.IMAGE])
    pfn[told] = regions.pfn[source]
    return first, pfn


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
