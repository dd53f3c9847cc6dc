"""Records as the BPF programs write them (collect/bpf/records.h, field by field) and the names of the classes of loss."""

from __future__ import annotations

import numpy as np

__all__ = [
    "ARRAY",
    "CHANGE",
    "CHUNK",
    "FRAMES",
    "LOSSES",
    "PAGE",
    "PAGE_EVENT",
    "REGION",
    "RINGS",
    "SPLIT",
    "STACK",
    "STACK_FRAMES",
]

STACK_FRAMES = 32
CHUNK = 64

CHANGE = np.dtype(
    [
        ("ts", "u8"),
        ("end", "u8"),
        ("call_id", "u8"),
        ("parent_id", "u8"),
        ("stack_key", "u8"),
        ("address", "u8"),
        ("n_pages", "u8"),
        ("n_done", "u8"),
        ("mask_set", "u8"),
        ("mask_clr", "u8"),
        ("entry_before", "u8"),
        ("entry_first", "u8"),
        ("entry_last", "u8"),
        ("pid", "u4"),
        ("tgid", "u4"),
        ("flags", "u4"),
        ("ret", "i4"),
        ("cpu", "u2"),
        ("depth", "u1"),
        ("bits", "u1"),
        ("has_pgd", "u1"),
        ("check_alias", "u1"),
        ("level_before", "u1"),
        ("level_first", "u1"),
        ("level_last", "u1"),
        ("kind", "u1"),
        ("pad", "u1", 6),
        ("comm", "S16"),
    ]
)

SPLIT = np.dtype(
    [
        ("ts", "u8"),
        ("call_id", "u8"),
        ("address", "u8"),
        ("entry", "u8"),
        ("pid", "u4"),
        ("cpu", "u2"),
        ("level", "u1"),
        ("pad", "u1", 1),
    ]
)

STACK = np.dtype([("key", "u8"), ("n_bytes", "i8"), ("ip", "u8", STACK_FRAMES)])

ARRAY = np.dtype([("call_id", "u8"), ("chunk", "u8"), ("page", "u8", CHUNK)])

REGION = np.dtype(
    [
        ("ts", "u8"),
        ("region_id", "u8"),
        ("parent_id", "u8"),
        ("stack_key", "u8"),
        ("address", "u8"),
        ("n_bytes", "u8"),
        ("entry", "u8"),
        ("pid", "u4"),
        ("tgid", "u4"),
        ("cpu", "u2"),
        ("event", "u1"),
        ("tier", "u1"),
        ("kind", "u1"),
        ("map_level", "u1"),
        ("pad", "u1", 2),
        ("comm", "S16"),
        ("name", "S56"),
    ]
)

FRAMES = np.dtype([("region_id", "u8"), ("address", "u8"), ("level", "u8"), ("pte", "u8", CHUNK)])

PAGE = np.dtype(
    [
        ("ts", "u8"),
        ("pfn", "u8"),
        ("region_id", "u8"),
        ("gfp", "u4"),
        ("pid", "u4"),
        ("cpu", "u2"),
        ("event", "u1"),
        ("order", "u1"),
        ("migratetype", "u1"),
        ("scope", "u1"),
        ("pad", "u1", 2),
    ]
)

PAGE_EVENT = np.dtype([("ts", "u8"), ("what", "u8"), ("more", "u8")])
"""A page event without a region, packed: see `struct page_event` in collect/bpf/page_rings.c."""

BULK = np.dtype(
    [
        ("ts", "u8"),
        ("region_id", "u8"),
        ("gfp", "u4"),
        ("pid", "u4"),
        ("cpu", "u4"),
        ("n", "u4"),
        ("scope", "u4"),
        ("pad", "u4"),
        ("reported", "u8", 4),
        ("before", "u8", CHUNK),
        ("after", "u8", CHUNK),
    ]
)
"""A bulk allocation of pages: 64 places of its array, before and after (collect/bpf/unreported_pages.c)."""

RINGS: dict[str, tuple[np.dtype[np.void], int]] = {
    # layout, pages of 4 KiB (powers of two). Rare events never share a ring with page events.
    "change_ring": (CHANGE, 4096),
    "split_ring": (SPLIT, 64),
    "stack_ring": (STACK, 2048),
    "array_ring": (ARRAY, 512),
    "region_ring": (REGION, 512),
    "frames_ring": (FRAMES, 2048),
    "page_ring": (PAGE, 1024),
    "bulk_ring": (BULK, 1024),  # only where all page events are recorded
}

LOSSES = (
    "changes_ring_full",
    "stacks_ring_full_or_unwalked",
    "pages_array_cut",
    "regions_ring_full",
    "region_frames_cut",
    "pages_ring_full",
    "calls_map_full",
    "exit_without_entry",
    "entry_without_exit",
    "tasks_map_full_or_nested_too_deep",
    "regions_map_full",
    "bulk_allocations_not_followed",
    "splits_ring_full",
)
"""`enum loss` in collect/bpf/records.h, in its order."""
