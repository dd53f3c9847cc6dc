"""Packed page events: what goes in comes out; ranges become blocks, and bulk allocations the pages that they took."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collect.page_events import MAX_ORDER, PACKED, blocks, bulk_allocations, of_records, pack, unpack, with_blocks
from collect.records import BULK, CHUNK, PAGE, PAGE_EVENT
from collect.schema import TABLES, PageEvent

VMEMMAP = 0xFFFF_EA00_0000_0000
LARGEST = {
    "ts_ns": (1 << 64) - 1, "pfn": (1 << 40) - 1, "order": 31, "migratetype": 15, "event": 7, "cpu": 4095,
    "gfp": (1 << 32) - 1, "pid": (1 << 32) - 1,
}  # fmt: skip
NONE = dict.fromkeys(LARGEST, 0)


def events(*rows: dict[str, int]) -> np.ndarray:
    """As emit_other_page (collect/bpf/page_rings.c) packs them."""
    packed = np.empty(len(rows), PAGE_EVENT)
    for i, row in enumerate(rows):
        row = NONE | row
        what = row["pfn"] | row["order"] << 40 | row["migratetype"] << 45 | row["event"] << 49 | row["cpu"] << 52
        packed[i] = (row["ts_ns"], what, row["gfp"] | row["pid"] << 32)
    return packed


def rows(*batches: np.ndarray) -> list[dict[str, Any]]:
    table = unpack([pack(batch) for batch in batches])
    assert table.schema.equals(TABLES["pages"])
    return table.to_pylist()


@pytest.mark.parametrize("field", LARGEST)
def test_the_largest_value_of_each_field_comes_out_and_spills_into_no_other(field: str) -> None:
    given = NONE | {field: LARGEST[field]}
    nothing = {"scope": 0, "region_id": 0, "stack_id": 0}
    assert rows(events(given)) == [given | nothing]
    full = LARGEST | {field: 0}
    if full["event"] == PageEvent.ALLOC_CONTIG:
        full["event"] = 1
    assert rows(events(full)) == [full | nothing]


@given(
    st.lists(
        st.fixed_dictionaries({name: st.integers(0, most) for name, most in LARGEST.items()}).filter(
            lambda row: row["event"] != PageEvent.ALLOC_CONTIG
        ),
        max_size=20,
    ),
    st.integers(0, 20),
)
@settings(deadline=None)
def test_events_come_out_as_they_went_in_whatever_batches_they_came_in(wanted: list[dict[str, int]], cut: int) -> None:
    packed = events(*wanted)
    found = rows(packed[:cut], packed[cut:])
    assert [{name: row[name] for name in LARGEST} for row in found] == wanted


def test_every_kind_of_event_has_room_for_its_number() -> None:
    assert max(PageEvent) <= LARGEST["event"]


def test_a_batch_for_the_journal_is_of_its_schema() -> None:
    batch = pack(events({"pfn": 1})[:0])
    assert isinstance(batch, pa.RecordBatch) and batch.schema.equals(PACKED) and batch.num_rows == 0


# --- contiguous ranges -----------------------------------------------------------------------------------------------


@given(st.integers(0, 1 << 40), st.integers(0, 1 << 14))
@settings(deadline=None)
def test_blocks_are_aligned_and_cover_the_range_once(first: int, n_pages: int) -> None:
    pfns, orders = blocks(first, n_pages)
    at = first
    for pfn, order in zip(pfns.tolist(), orders.tolist(), strict=True):
        assert pfn == at and order <= MAX_ORDER and pfn % (1 << order) == 0
        at += 1 << order
    assert at == first + n_pages


@given(st.integers(0, 70), st.integers(1, 70))
@settings(deadline=None)
def test_no_fewer_blocks_would_do(first: int, n_pages: int) -> None:
    """Against every way to cover the range."""
    end = first + n_pages
    fewest = {end: 0}
    for at in range(end - 1, first - 1, -1):
        orders = [order for order in range(MAX_ORDER + 1) if at % (1 << order) == 0 and at + (1 << order) <= end]
        fewest[at] = 1 + min(fewest[at + (1 << order)] for order in orders)
    assert len(blocks(first, n_pages)[0]) == fewest[first]


def test_a_range_becomes_a_row_for_each_block() -> None:
    records = np.zeros(3, PAGE)
    records["ts"], records["event"] = (4, 5, 7), (PageEvent.ALLOC, PageEvent.ALLOC_CONTIG, PageEvent.FREE)
    records["pfn"], records["gfp"], records["cpu"], records["pid"] = (0, 510, 4), (11, 1027, 0), 3, 9
    found = sorted(rows(of_records(with_blocks(records))), key=lambda row: row["ts_ns"])
    assert [(row["ts_ns"], row["pfn"], row["order"], row["gfp"]) for row in found] == [
        (4, 0, 0, 11), (5, 510, 1, 0), (5, 512, 9, 0), (5, 1024, 9, 0), (5, 1536, 0, 0), (7, 4, 0, 0)
    ]  # fmt: skip
    assert {(row["cpu"], row["pid"]) for row in found} == {(3, 9)}


# --- bulk allocations ------------------------------------------------------------------------------------------------


def twin(records: np.ndarray) -> list[dict[str, int]]:
    """The pages that a bulk allocation put into its array, place by place."""
    found = []
    for record in records:
        gfp = int(record["gfp"])
        for place in range(min(int(record["n"]), CHUNK)):
            page = int(record["after"][place])
            if page and page != record["before"][place] and page not in record["reported"].tolist():
                pfn = (page - VMEMMAP) // 64
                found.append(
                    NONE
                    | {
                        "ts_ns": int(record["ts"]),
                        "event": int(PageEvent.ALLOC_BULK),
                        "pfn": pfn,
                        "gfp": gfp,
                        "migratetype": gfp >> 3 & 3,
                        "cpu": int(record["cpu"]),
                        "pid": int(record["pid"]),
                    }
                )
    return found


@given(st.integers(0, 1 << 32), st.integers(0, 4))
@settings(deadline=None, max_examples=50)
def test_bulk_allocations_are_the_pages_that_are_new_and_were_not_reported(seed: int, n_records: int) -> None:
    chance = np.random.default_rng(seed)
    records = np.zeros(n_records, BULK)
    pages = np.uint64(VMEMMAP) + np.concatenate([[0, 1], chance.integers(0, 1 << 30, 8)]).astype(np.uint64) * np.uint64(
        64
    )
    for record in records:
        record["ts"], record["pid"], record["cpu"] = chance.integers(1, 1 << 32, 3)
        record["cpu"] %= 4096
        record["gfp"] = chance.integers(0, 1 << 32)
        record["n"] = chance.integers(0, 2 * CHUNK)
        for side in ("before", "after"):
            record[side] = np.where(chance.random(CHUNK) < 0.5, 0, chance.choice(pages, CHUNK))
        record["reported"] = np.where(chance.random(4) < 0.5, 0, chance.choice(pages, 4))
    made = bulk_allocations(records, VMEMMAP)
    assert [{name: row[name] for name in LARGEST} for row in rows(of_records(made))] == twin(records)
    records["scope"], records["region_id"] = 17, 23
    inside = bulk_allocations(records, VMEMMAP)
    assert set(inside["scope"].tolist()) <= {17} and set(inside["region_id"].tolist()) <= {23}
