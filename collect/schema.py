"""The contract: every table of a trace as an Arrow schema, with its columns, units and codes.

A trace is a directory with a `manifest.json` and, for each table, one or more Parquet files named
`TABLE-NNNNN.parquet`. Any reader of Parquet opens them without us. Rules that hold for every table:

* numbers are unsigned and named for their unit (`ts_ns`, `pfn`, `n_pages`);
* time is CLOCK_MONOTONIC in nanoseconds since boot (`bpf_ktime_get_ns`);
* "no such number" is the column's largest value (`NO_PFN`) or, for ids, 0; there are no nulls;
* codes are small integers that the enums below name; a reader treats an unknown code as an error.

The format is numbered (`FORMAT_VERSION`); what changed from one to the next stands in CHANGELOG.md.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

import pyarrow as pa

__all__ = [
    "ATTRS_HARDWARE",
    "FORMAT_VERSION",
    "HUGE_FRAME_PAGES",
    "LEAF_PAGES",
    "NO_PFN",
    "SCOPE_SPLIT",
    "TABLES",
    "TABLES_SINCE",
    "ChangeKind",
    "Cpa",
    "Level",
    "Moment",
    "PageEvent",
    "Pte",
    "RegionEvent",
    "RegionKind",
    "Space",
    "Tier",
    "empty_table",
]

FORMAT_VERSION = 2

NO_PFN = 0xFFFF_FFFF_FFFF_FFFF
"""The page frame number of what has none."""


class Level(IntEnum):
    """Level of a leaf entry, numbered as the kernel's `enum pg_level` (arch/x86/include/asm/pgtable_types.h)."""

    NONE = 0
    K4 = 1
    M2 = 2
    G1 = 3


LEAF_PAGES = (0, 1, 512, 512 * 512)
"""4 KiB pages that one leaf of each `Level` maps."""

HUGE_FRAME_PAGES = LEAF_PAGES[Level.M2]
"""4 KiB pages in the 2 MiB physical frame that a 2M entry maps."""


class Pte(IntFlag):
    """Attribute bits in the format of a 4K entry (arch/x86/include/asm/pgtable_types.h).

    Entries of every level are brought into this form before they are stored: the page frame number is taken out,
    the size bit of large entries (bit 7) dropped, and their PAT bit moved from bit 12 to bit 7.
    """

    P = 1 << 0
    RW = 1 << 1
    USER = 1 << 2
    PWT = 1 << 3
    PCD = 1 << 4
    A = 1 << 5
    D = 1 << 6
    PAT = 1 << 7
    G = 1 << 8
    NX = 1 << 63


ATTRS_HARDWARE = int(Pte.A | Pte.D)
"""Accessed and dirty: the CPU sets them on its own, so no comparison of attributes looks at them."""


class Space(IntEnum):
    """Which kernel mapping an address belongs to."""

    DIRECT_MAP = 0
    KERNEL_IMAGE = 1
    """The high mapping of the kernel's text and data (`__START_KERNEL_map`)."""
    OTHER = 2
    """vmalloc, modules and whatever else: a change here reaches the direct map through a nested call."""


class Moment(IntEnum):
    """When a snapshot was taken, relative to the recorder's own probes."""

    BEFORE_ATTACH = 0
    START = 1
    END = 2
    AFTER_DETACH = 3
    PERIODIC = 4
    REQUEST = 5
    HOTPLUG = 6
    """Of a range alone, read again after memory came or went there. Holes have rows too, of level NONE (format 2)."""


class ChangeKind(IntEnum):
    """What changed the direct map."""

    CPA = 0
    """A call of `__change_page_attr_set_clr`, primary or nested."""
    COLLAPSE = 1
    """`collapse_large_pages` put a large entry back (Linux 6.15 and later). `ret`: 1 a 2M entry, 2 a 1G entry too."""
    HOTPLUG_ADD = 2
    """`arch_add_memory` mapped `n_pages`; in which sizes, a HOTPLUG snapshot tells (format 2)."""
    HOTPLUG_REMOVE = 3
    """`arch_remove_memory` unmapped `n_pages`."""


class Cpa(IntFlag):
    """`struct cpa_data.flags` (arch/x86/mm/pat/set_memory.c)."""

    FLUSHTLB = 1
    ARRAY = 2
    PAGES_ARRAY = 4
    NO_CHECK_ALIAS = 8
    COLLAPSE = 16


class Tier(IntEnum):
    """The two levels of a region: what a user asked for, and what this kernel made of it."""

    ASKED = 0
    BACKING = 1


class RegionEvent(IntEnum):
    ALLOC = 0
    FREE = 1


class RegionKind(IntEnum):
    """What a region is. 1 to 15 are asked for, 16 and up back them."""

    BPF_IMAGE = 1
    """A program's JIT image: `bpf_jit_binary_alloc`, or `bpf_prog_pack_alloc` where packs exist (also trampolines)."""
    MODULE = 2
    """A module, from load to free, by its name (tracepoints module_load and module_free)."""
    SECRET_PAGE = 3
    """One page of a memfd_secret file, from fault to free."""
    MODULE_ALLOC = 16
    """`module_alloc` (to 6.9)."""
    EXECMEM = 17
    """`execmem_alloc` and its kin (6.10 and later)."""
    BPF_PACK = 18
    """A pack that many BPF images share (5.18 and later)."""
    ROX_BLOCK = 19
    """A 2M block of execmem's ROX cache (6.15 and later)."""


class PageEvent(IntEnum):
    ALLOC = 0
    """Tracepoint mm_page_alloc."""
    FREE = 1
    """Tracepoint mm_page_free."""
    ALLOC_BULK = 2
    """By alloc_pages_bulk*, which the allocation tracepoint does not report: found behind a region in the page tables, or,
    where all page events are recorded, at the function's return."""
    SPLIT = 3
    """split_page: from here on the pages of this allocation are freed one by one. Since format 2."""
    ALLOC_CONTIG = 4
    """One block of a range that alloc_contig_range took out of the free lists. Since format 2."""


def _table(*fields: tuple[str, pa.DataType]) -> pa.Schema:
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in fields])


_u8, _u16, _u32, _u64 = pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()
_pfns = pa.list_(pa.field("item", _u64, nullable=False))

TABLES: dict[str, pa.Schema] = {
    # A run of equal leaf entries. `ts_ns`..`ts_end_ns` is when just these entries were read: no recorded change
    # touched them meanwhile, so they are exact for any moment in between. Holes have no row, but for those of a
    # HOTPLUG snapshot, which covers a range: there their level is NONE, `n_leaves` their 4 KiB pages.
    "snapshots": _table(
        ("snapshot", _u32),  # numbered from 0 in order of time
        ("moment", _u8),  # Moment
        ("ts_ns", _u64),
        ("ts_end_ns", _u64),
        ("space", _u8),  # Space: DIRECT_MAP or KERNEL_IMAGE
        ("pfn", _u64),  # physical, of the first leaf's first page (in either space)
        ("level", _u8),  # Level
        ("n_leaves", _u64),
        ("attrs", _u64),  # Pte bits, A and D as they were found
    ),
    # One change. Sorted by ts_ns; the order in which changes took effect is that of ts_ns + duration_ns, but a call that
    # changed the direct map itself did so before the calls nested in it (decoy addresses).
    "changes": _table(
        ("ts_ns", _u64),  # entry
        ("duration_ns", _u64),  # entry to exit; 0 where has_exit is 0
        ("kind", _u8),  # ChangeKind
        ("call_id", _u64),  # unique in a trace, never 0
        ("parent_id", _u64),  # the call this one is nested in (its alias call), or 0
        ("depth", _u8),  # 0 for a primary call
        ("cpu", _u16),
        ("pid", _u32),  # thread
        ("tgid", _u32),  # process
        ("comm_id", _u32),  # strings
        # stacks; 0 for a nested call: its parent's holds. Another user's call, made in the reclaim of a split's
        # allocation, is nested and has its own.
        ("stack_id", _u32),
        ("space", _u8),  # Space of `address`
        ("address", _u64),  # first address, bit 63 set (decoy addresses are normalised); 0 for a pages array
        ("pfn", _u64),  # of the first page, from the page tables; NO_PFN where nothing is mapped
        ("n_pages", _u64),  # asked for
        ("n_done", _u64),  # pages completed (cpa->curpage at exit)
        ("mask_set", _u64),  # Pte bits
        ("mask_clr", _u64),  # Pte bits
        ("flags", _u32),  # Cpa, at entry
        ("force_split", _u8),
        ("has_pgd", _u8),  # cpa->pgd given: encrypt and decrypt, which fill holes
        ("check_alias", _u8),  # the second argument: checkalias to 6.1, primary from 6.2
        ("has_exit", _u8),  # 0: the call was entered, its return was not seen
        ("ret", pa.int32()),
        ("level_before", _u8),  # Level of the first page's entry, at entry of the call
        ("attrs_before", _u64),
        ("level_first", _u8),  # the same page, at exit
        ("attrs_first", _u64),
        ("level_last", _u8),  # the last page completed, at exit
        ("attrs_last", _u64),
        ("pfns", _pfns),  # the pages of a pages array, in order; empty otherwise
        ("n_pfns_lost", _u64),  # pages of a pages array that could not be recorded
    ),
    # One split of a large entry, seen as it was done: a flush of the whole TLB straight from the choke point, at which
    # moment the smaller entries stand in the page tables. Checks what the rules rebuild; nothing is rebuilt from it but
    # what a call that failed halfway has left behind. Since format 2.
    "splits": _table(
        ("ts_ns", _u64),
        ("call_id", _u64),  # changes: the call, primary or nested, that split it
        ("cpu", _u16),
        ("pid", _u32),  # thread
        ("space", _u8),  # Space of `address`
        ("address", _u64),  # of the page in work, bit 63 set
        ("pfn", _u64),  # of that page; NO_PFN where nothing is mapped
        ("level", _u8),  # Level of the entry that maps it now: M2 means that a 1G entry was split, K4 a 2M entry
        ("attrs", _u64),  # Pte bits of that entry
    ),
    "regions": _table(
        ("ts_ns", _u64),
        ("event", _u8),  # RegionEvent
        ("tier", _u8),  # Tier
        ("kind", _u8),  # RegionKind
        (
            "region_id",
            _u64,
        ),  # of an ALLOC: unique, never 0. Of a FREE: that of its ALLOC, or 0 where that came before us
        ("parent_id", _u64),  # region inside whose allocation this one was made, or 0
        ("cpu", _u16),
        ("pid", _u32),
        ("tgid", _u32),
        ("comm_id", _u32),
        ("name_id", _u32),  # module or program name where known; strings
        ("stack_id", _u32),
        ("address", _u64),  # virtual; 0 for a secret page
        ("n_bytes", _u64),  # as asked for; 0 where unknown (a FREE)
        ("map_level", _u8),  # Level that maps it at `address`
        ("pfns", _pfns),  # its page frames in order of address (ALLOC only); empty where another region backs it
        ("n_pfns_lost", _u64),
    ),
    "pages": _table(
        ("ts_ns", _u64),
        ("event", _u8),  # PageEvent
        ("pfn", _u64),
        ("order", _u8),
        ("gfp", _u32),  # ___GFP_* bits as numbered in 5.10 to 7.3; 0 for a free
        ("migratetype", _u8),
        ("cpu", _u16),
        ("pid", _u32),
        ("scope", _u8),  # RegionKind whose allocation was running, or 0 (direct-map split: SCOPE_SPLIT)
        ("region_id", _u64),  # region whose frame it is, or 0
        ("stack_id", _u32),
    ),
    # Totals as the kernel and the recorder state them, once a second. Names: `vmstat/direct_map_level2_splits`,
    # `meminfo/DirectMap4k` (kB), `buddyinfo/NODE/ZONE/ORDER` (free blocks), `lost/CLASS`, `recorder/NAME`.
    "counters": _table(("ts_ns", _u64), ("counter", pa.string()), ("value", _u64)),
    # Innermost frame first: `symbol+0xoffset` or `symbol+0xoffset [module]`.
    "stacks": _table(("stack_id", _u32), ("frames", pa.list_(pa.field("item", pa.string(), nullable=False)))),
    "strings": _table(("string_id", _u32), ("text", pa.string())),
}

TABLES_SINCE = {"splits": 2}
"""First format that has a table, where that is not 1. A reader of an older trace finds such a table empty."""

SCOPE_SPLIT = 255
"""`pages.scope` of the page-table page that a split takes."""


def empty_table(name: str) -> pa.Table:
    """A table of no rows with the schema of `name`."""
    return TABLES[name].empty_table()
