"""Rows from records: what the rings kept apart is joined, and what was lost is counted."""

from __future__ import annotations

from typing import Any

import pytest

from collect.records import CHUNK
from collect.rows import MAX_UNCLAIMED, RowMaker
from collect.schema import NO_PFN, SCOPE_SPLIT, Cpa, Level, PageEvent, Pte, RegionEvent, RegionKind, Space, Tier
from tests.machine.row_records import (
    ENCRYPTION,
    KERNEL_RW,
    LARGE,
    LARGE_PAT,
    MAX_PFN,
    MODULES,
    PAGE_OFFSET,
    VMALLOC,
    VMEMMAP,
    change,
    ptes,
    region,
    tick,
)


def test_nothing_makes_no_rows_but_the_empty_string(maker: RowMaker) -> None:
    rows = tick(maker)
    assert rows.pop("strings") == [{"string_id": 0, "text": ""}]
    assert not any(rows.values())
    assert not any(tick(maker).values()), "and that once"


def test_a_change_is_stored_field_by_field(maker: RowMaker) -> None:
    [row] = tick(
        maker,
        change=[
            change(
                PAGE_OFFSET + (0x300 << 12),
                parent_id=6,
                depth=1,
                cpu=3,
                pid=41,
                tgid=40,
                comm=b"modprobe",
                n_pages=5,
                n_done=3,
                mask_set=Pte.RW,
                mask_clr=Pte.NX,
                flags=Cpa.FLUSHTLB,
                bits=1,
                has_pgd=1,
                check_alias=1,
                ret=-12,
                level_before=Level.M2,
                entry_before=0x200 << 12 | LARGE | KERNEL_RW,
                level_first=Level.K4,
                entry_first=0x300 << 12 | KERNEL_RW,
                level_last=Level.K4,
                entry_last=0x302 << 12 | KERNEL_RW | Pte.PAT,
            )
        ],
    )["changes"]
    assert row == {
        "ts_ns": 100,
        "duration_ns": 150,
        "kind": 0,
        "call_id": 7,
        "parent_id": 6,
        "depth": 1,
        "cpu": 3,
        "pid": 41,
        "tgid": 40,
        "comm_id": 1,
        "stack_id": 0,
        "space": Space.DIRECT_MAP,
        "address": PAGE_OFFSET + (0x300 << 12),
        "pfn": 0x300,
        "n_pages": 5,
        "n_done": 3,
        "mask_set": Pte.RW,
        "mask_clr": Pte.NX,
        "flags": Cpa.FLUSHTLB,
        "force_split": 1,
        "has_pgd": 1,
        "check_alias": 1,
        "has_exit": 1,
        "ret": -12,
        "level_before": Level.M2,
        "attrs_before": KERNEL_RW,
        "level_first": Level.K4,
        "attrs_first": KERNEL_RW,
        "level_last": Level.K4,
        "attrs_last": KERNEL_RW | Pte.PAT,
        "pfns": [],
        "n_pfns_lost": 0,
    }


def test_no_more_pages_are_done_than_were_asked_for(maker: RowMaker) -> None:
    [row] = tick(maker, change=[change(PAGE_OFFSET, n_pages=2, n_done=3)])["changes"]
    assert row["n_done"] == 2


@pytest.mark.parametrize(
    ("address", "space"),
    [
        (PAGE_OFFSET, Space.DIRECT_MAP),
        (PAGE_OFFSET + (MAX_PFN << 12) - 4096, Space.DIRECT_MAP),
        (PAGE_OFFSET + (MAX_PFN << 12), Space.OTHER),
        (PAGE_OFFSET - 4096, Space.OTHER),
        (0xFFFF_FFFF_8000_0000, Space.KERNEL_IMAGE),
        (0xFFFF_FFFF_BFFF_F000, Space.KERNEL_IMAGE),
        (MODULES, Space.OTHER),
        (VMALLOC, Space.OTHER),
        # A decoy address (set_mce_nospec) reaches us with bit 63 put back; as the kernel passes it, it is no mapping.
        ((PAGE_OFFSET ^ 1 << 63) | 1 << 63, Space.DIRECT_MAP),
        (PAGE_OFFSET ^ 1 << 63, Space.OTHER),
    ],
)
def test_an_address_lies_in_one_space(maker: RowMaker, address: int, space: Space) -> None:
    [row] = tick(maker, change=[change(address)])["changes"]
    assert row["space"] == space
    assert row["address"] == address


@pytest.mark.parametrize(
    ("address", "level", "entry", "pfn"),
    [
        (VMALLOC, Level.K4, 0x4321 << 12 | KERNEL_RW, 0x4321),
        (VMALLOC, Level.K4, 0x4321 << 12 | KERNEL_RW | ENCRYPTION, 0x4321),
        (VMALLOC + 0x5000, Level.M2, 0x4200 << 12 | LARGE | KERNEL_RW, 0x4205),
        (VMALLOC + 0x5000, Level.M2, 0x4200 << 12 | LARGE | LARGE_PAT | KERNEL_RW, 0x4205),
        (VMALLOC + 0x1234_5000, Level.G1, 0x40000 << 12 | LARGE | KERNEL_RW, 0x40000 + 0x12345),
        (VMALLOC + 0x5000, Level.NONE, 0, NO_PFN),
        # Not present: the frame is stored inverted (arch/x86/include/asm/pgtable-invert.h).
        (VMALLOC, Level.K4, (~0x4321 << 12) & ((1 << 52) - 1) | int(Pte.RW), 0x4321),
        (VMALLOC + 0x5000, Level.M2, (~0x4200 << 12) & ((1 << 52) - (1 << 21)) | LARGE | int(Pte.RW), 0x4205),
    ],
)
def test_elsewhere_the_entry_names_the_frame(maker: RowMaker, address: int, level: Level, entry: int, pfn: int) -> None:
    [row] = tick(maker, change=[change(address, level_first=level, entry_first=entry)])["changes"]
    assert row["pfn"] == pfn


def test_in_the_direct_map_position_names_the_frame_whatever_the_entry_says(maker: RowMaker) -> None:
    [row] = tick(maker, change=[change(PAGE_OFFSET + 0x77_000, level_first=Level.NONE, entry_first=0)])["changes"]
    assert row["pfn"] == 0x77


def array_call(n_pages: int, call_id: int = 7) -> dict[str, Any]:
    return change(PAGE_OFFSET + (1000 << 12), call_id=call_id, n_pages=n_pages, n_done=n_pages, flags=Cpa.PAGES_ARRAY)


def array_chunks(n_pages: int, call_id: int = 7, first: int = 1000) -> list[dict[str, Any]]:
    """Chunks of an array of the frames first, first + 3, ...; what lies behind its end is somebody else's memory."""
    pages = [VMEMMAP + 64 * (first + 3 * i) for i in range(n_pages)]
    pages += [0xDEAD] * (-n_pages % CHUNK)
    return [
        {"call_id": call_id, "chunk": i, "page": pages[i * CHUNK : (i + 1) * CHUNK]} for i in range(len(pages) // CHUNK)
    ]


@pytest.mark.parametrize("n", [1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 200])
def test_a_pages_array_lists_its_frames_in_order(maker: RowMaker, n: int) -> None:
    chunks = array_chunks(n)
    [row] = tick(maker, change=[array_call(n)], array=chunks[::-1])["changes"]
    assert row["pfns"] == [1000 + 3 * i for i in range(n)]
    assert row["n_pfns_lost"] == 0
    assert row["address"] == 0
    assert (row["space"], row["pfn"]) == (Space.DIRECT_MAP, 1000)


def test_frames_of_a_lost_chunk_are_counted(maker: RowMaker) -> None:
    chunks = array_chunks(150)
    rows = tick(
        maker,
        change=[array_call(150), array_call(150, 8), array_call(150, 9)],
        array=chunks[:2] + [c | {"call_id": 8} for c in (chunks[0], chunks[2])],
    )["changes"]
    assert rows[0]["pfns"] == [1000 + 3 * i for i in range(128)], "the last chunk is missing: the rest is known"
    assert rows[0]["n_pfns_lost"] == 22
    for row in rows:
        assert len(row["pfns"]) + row["n_pfns_lost"] == 150
    assert rows[1]["pfns"] == [], "out of the middle of an array nothing tells which page is which"
    assert rows[2]["pfns"] == []


def test_arrays_of_calls_that_ran_at_once_are_kept_apart(maker: RowMaker) -> None:
    one, two = array_chunks(100, 1), array_chunks(70, 2, first=5000)
    rows = tick(maker, change=[array_call(70, 2), array_call(100, 1)], array=[one[0], two[0], two[1], one[1]])[
        "changes"
    ]
    assert rows[0]["pfns"] == [5000 + 3 * i for i in range(70)]
    assert rows[1]["pfns"] == [1000 + 3 * i for i in range(100)]


def test_an_array_whose_call_ends_in_a_later_tick_is_whole(maker: RowMaker) -> None:
    chunks = array_chunks(200)
    assert tick(maker, array=chunks[:2])["changes"] == []
    assert tick(maker, array=chunks[2:])["changes"] == []
    [row] = tick(maker, change=[array_call(200)])["changes"]
    assert row["n_pfns_lost"] == 0
    assert row["pfns"] == [1000 + 3 * i for i in range(200)]
    [row] = tick(maker, change=[array_call(200)])["changes"]
    assert row["n_pfns_lost"] == 200, "they were that call's, and are not kept"


def test_parts_that_nobody_claims_do_not_pile_up(maker: RowMaker) -> None:
    old, new = array_chunks(64, 1), array_chunks(64, 2 + MAX_UNCLAIMED)
    lost = [{"call_id": 2 + i, "chunk": 0} for i in range(MAX_UNCLAIMED - 1)]
    tick(maker, array=old + lost + new)
    rows = tick(maker, change=[array_call(64, 1), array_call(64, 2 + MAX_UNCLAIMED)])["changes"]
    assert {row["call_id"]: row["n_pfns_lost"] for row in rows} == {1: 64, 2 + MAX_UNCLAIMED: 0}


def test_frames_behind_a_region_are_in_order_of_address(maker: RowMaker) -> None:
    start = MODULES + 60 * 4096  # not where a chunk begins
    chunks = [
        {"region_id": 9, "address": MODULES + 64 * 4096, "level": 1, "pte": ptes(7000, 30)},
        {"region_id": 9, "address": MODULES, "level": 1, "pte": ptes(100, CHUNK)},
        {"region_id": 8, "address": MODULES, "level": 1, "pte": ptes(9000, CHUNK)},
    ]
    [row] = tick(maker, region=[region(start, 34 * 4096)], frames=chunks)["regions"]
    assert row["pfns"] == [160, 161, 162, 163, *range(7000, 7030)]
    assert row["n_pfns_lost"] == 0
    assert (row["address"], row["n_bytes"]) == (start, 34 * 4096)


def test_bytes_that_fill_no_page_take_one(maker: RowMaker) -> None:
    chunks = [{"region_id": 9, "address": MODULES, "level": 1, "pte": ptes(100, CHUNK)}]
    [row] = tick(maker, region=[region(MODULES, 4097)], frames=chunks)["regions"]
    assert row["pfns"] == [100, 101]


def test_a_large_leaf_gives_the_frames_inside_the_region_only(maker: RowMaker) -> None:
    start = MODULES + 500 * 4096
    chunks = [
        {"region_id": 9, "address": MODULES, "level": 2, "pte": [512 * 9 << 12 | LARGE | KERNEL_RW] + [0] * 63},
        {"region_id": 9, "address": MODULES + (2 << 20), "level": 1, "pte": ptes(77, 5)},
    ]
    [row] = tick(maker, region=[region(start, 15 * 4096, map_level=2)], frames=chunks)["regions"]
    assert row["pfns"] == [*range(512 * 9 + 500, 512 * 10), 77, 78, 79]
    assert (row["map_level"], row["n_pfns_lost"]) == (2, 0)


def test_a_leaf_of_a_gigabyte_is_read_by_2m(maker: RowMaker) -> None:
    leaf = [3 << 30 | LARGE | KERNEL_RW] + [0] * 63
    chunks = [{"region_id": 9, "address": VMALLOC + (i << 21), "level": 3, "pte": leaf} for i in (4, 5)]
    [row] = tick(maker, region=[region(VMALLOC + (4 << 21), 4 << 20)], frames=chunks)["regions"]
    first = (3 << 18) + 4 * 512
    assert row["pfns"] == list(range(first, first + 1024))


def test_pages_of_a_region_that_cannot_be_told_are_counted(maker: RowMaker) -> None:
    half = ptes(100, 3)
    half[1] = 0
    chunks = [
        {"region_id": 9, "address": MODULES, "level": 1, "pte": half},
        {"region_id": 10, "address": VMALLOC, "level": 0, "pte": [0] * 64},
    ]
    rows = tick(
        maker,
        region=[
            region(MODULES, 3 * 4096),
            region(VMALLOC, 2 * 4096, region_id=10),
            region(VMALLOC, 5 * 4096, region_id=11),
        ],
        frames=chunks,
    )["regions"]
    assert [row["pfns"] for row in rows] == [[100, 102], [], []]
    assert [row["n_pfns_lost"] for row in rows] == [1, 2, 5], "a hole, nothing mapped, every chunk lost"


def test_what_another_region_backs_has_no_frames_and_lost_none(maker: RowMaker) -> None:
    image = region(MODULES, 4096, tier=Tier.ASKED, kind=RegionKind.BPF_IMAGE)
    free = region(MODULES, 0, event=RegionEvent.FREE)
    for row in tick(maker, region=[image, free])["regions"]:
        assert (row["pfns"], row["n_pfns_lost"]) == ([], 0)


def test_frames_that_were_drained_a_tick_before_their_region_are_its_own(maker: RowMaker) -> None:
    tick(maker, frames=[{"region_id": 9, "address": MODULES, "level": 1, "pte": ptes(100, CHUNK)}])
    [row] = tick(maker, region=[region(MODULES, 3 * 4096)])["regions"]
    assert row["pfns"] == [100, 101, 102]


def test_a_secret_page_is_one_frame(maker: RowMaker) -> None:
    secret = region(0, 4096, tier=Tier.ASKED, kind=RegionKind.SECRET_PAGE, map_level=1, entry=4242 << 12 | 1)
    rows = tick(maker, region=[secret])
    assert rows["regions"][0]["pfns"] == [4242]
    assert rows["pages"] == [], "its allocation is told by its own event"


def page(pfn: int, **values: Any) -> dict[str, Any]:
    return {
        "ts": 40,
        "pfn": pfn,
        "region_id": 9,
        "event": PageEvent.ALLOC,
        "scope": RegionKind.MODULE_ALLOC,
        "gfp": 0xCC2,
    } | values


def test_bulk_rows_stand_for_frames_that_no_event_told_and_for_no_others(maker: RowMaker) -> None:
    chunks = [{"region_id": 9, "address": MODULES, "level": 1, "pte": ptes(100, CHUNK)}]
    rows = tick(
        maker,
        region=[region(MODULES, 6 * 4096, cpu=2, pid=33)],
        frames=chunks,
        page=[page(101), page(103, region_id=8), page(104, event=PageEvent.FREE)],
    )["pages"]
    told, bulk = rows[:3], rows[3:]
    assert [row["pfn"] for row in told] == [101, 103, 104]
    assert [row["pfn"] for row in bulk] == [100, 102, 103, 104, 105]
    assert bulk[0] == {
        "ts_ns": 50,
        "event": PageEvent.ALLOC_BULK,
        "pfn": 100,
        "order": 0,
        "gfp": 0,
        "migratetype": 0,
        "cpu": 2,
        "pid": 33,
        "scope": RegionKind.MODULE_ALLOC,
        "region_id": 9,
        "stack_id": 0,
    }


def test_one_event_tells_all_the_pages_of_its_block(maker: RowMaker) -> None:
    leaf = {"region_id": 9, "address": MODULES, "level": 2, "pte": [512 * 9 << 12 | LARGE | KERNEL_RW] + [0] * 63}
    small = {"region_id": 10, "address": VMALLOC, "level": 1, "pte": ptes(100, 8)}
    rows = tick(
        maker,
        region=[region(MODULES, 2 << 20), region(VMALLOC, 8 * 4096, region_id=10)],
        frames=[leaf, small],
        page=[page(512 * 9, order=9), page(102, order=1, region_id=10)],
    )["pages"]
    assert [row["pfn"] for row in rows[2:]] == [100, 101, 104, 105, 106, 107]


def test_events_of_an_earlier_tick_told_the_frames_too(maker: RowMaker) -> None:
    tick(maker, page=[page(100), page(101)])
    chunks = [{"region_id": 9, "address": MODULES, "level": 1, "pte": ptes(100, 3)}]
    rows = tick(maker, region=[region(MODULES, 3 * 4096)], frames=chunks)["pages"]
    assert [row["pfn"] for row in rows] == [102]


def test_scopes_are_what_was_being_allocated(maker: RowMaker) -> None:
    rows = tick(
        maker,
        page=[
            page(1, scope=SCOPE_SPLIT, region_id=0),
            page(2, scope=253, event=PageEvent.FREE),
            page(3, scope=254, event=PageEvent.FREE),
            page(4, scope=RegionKind.SECRET_PAGE, order=0, migratetype=2, gfp=0x1100CCA),
        ],
    )["pages"]
    assert [row["scope"] for row in rows] == [SCOPE_SPLIT, 0, 0, RegionKind.SECRET_PAGE]
    assert (rows[3]["migratetype"], rows[3]["gfp"]) == (2, 0x1100CCA)


def test_a_split_is_stored_with_the_page_that_caused_it(maker: RowMaker) -> None:
    where = PAGE_OFFSET + (0x345 << 12)
    entry = 0x200 << 12 | KERNEL_RW | LARGE
    [row] = tick(
        maker, split=[{"ts": 5, "call_id": 7, "address": where, "entry": entry, "pid": 4, "cpu": 2, "level": Level.M2}]
    )["splits"]
    assert row == {
        "ts_ns": 5,
        "call_id": 7,
        "cpu": 2,
        "pid": 4,
        "space": Space.DIRECT_MAP,
        "address": where,
        "pfn": 0x345,
        "level": Level.M2,
        "attrs": KERNEL_RW,
    }


def test_a_split_elsewhere_names_the_frame_of_its_entry(maker: RowMaker) -> None:
    entry = 0x777 << 12 | KERNEL_RW
    [row] = tick(maker, split=[{"address": MODULES, "entry": entry, "level": Level.K4}])["splits"]
    assert (row["space"], row["pfn"]) == (Space.OTHER, 0x777)


def test_memory_that_has_come_is_direct_map_from_then_on(maker: RowMaker) -> None:
    beyond = change(PAGE_OFFSET + (MAX_PFN << 12))
    assert tick(maker, change=[beyond])["changes"][0]["space"] == Space.OTHER
    maker.max_pfn = MAX_PFN + 1
    [row] = tick(maker, change=[beyond])["changes"]
    assert (row["space"], row["pfn"]) == (Space.DIRECT_MAP, MAX_PFN)
