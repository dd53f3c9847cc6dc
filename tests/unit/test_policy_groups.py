"""Golden counts of the other caches on streams small enough to count by hand: 2021, 2022, and execmem's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from replay.placement import GONE, SYMBOLIC, Host, Placement
from replay.policies.grouped import Grouped
from replay.policies.migrate_unmapped import MigrateUnmapped
from replay.policies.rox_cache import RoxCache
from replay.policies.ungrouped import Ungrouped
from replay.requests import Life
from tests.unit.test_replay_requests import BPF, MODULE, ROX, SECRET, requests_of

Rows = list[tuple[str, int, int, int | None]]
NO_COUNTS = Host(1, np.zeros(0, np.int64), np.zeros((0, 11), np.int64))


def counted(**orders: int) -> Host:
    """Free blocks `o9=1` and so on, counted once."""
    blocks = np.zeros((1, 11), np.int64)
    for name, n in orders.items():
        blocks[0, int(name[1:])] = n
    return Host(1, np.zeros(1, np.int64), blocks)


def test_grouped_areas_share_a_block_and_secret_pages_do_not() -> None:
    (p,) = (
        Grouped().place(requests_of([(MODULE, 3, 0, 9), (SECRET, 1, 1, None), (BPF, 2, 2, None)]), NO_COUNTS).placements
    )
    assert p.refill_orders.tolist() == [9]
    assert (p.dest - SYMBOLIC)[[0, 1, 2, 4, 5]].tolist() == [0, 1, 2, 3, 4]
    assert p.dest[3] == 3
    assert not len(p.acts)  # it only places pages
    assert (p.served, p.as_recorded) == (2, 1)
    assert p.idle_pages.tolist() == [509, 507, 510]


def test_the_grouped_page_that_came_back_last_is_used_first() -> None:
    (p,) = Grouped().place(
        requests_of([(MODULE, 1, 0, 5), (MODULE, 1, 1, 6), (MODULE, 1, 7, None)]), NO_COUNTS
    ).placements  # fmt: skip
    assert p.dest[2] == p.dest[1]


def test_without_a_block_grouped_takes_single_pages_and_nothing_between() -> None:
    (p,) = Grouped().place(requests_of([(MODULE, 3, 0, None)]), counted(o8=7)).placements
    assert p.refill_orders.tolist() == [0, 0, 0]
    assert p.in_pieces.tolist() == [True] * 3


def test_what_is_mapped_by_2m_entries_is_not_grouped() -> None:
    assert Grouped().place(requests_of([(ROX, 512, 0, None), (SECRET, 1, 0, None)]), NO_COUNTS).identity


def test_migrate_unmapped_splits_once_and_unmaps_each_time() -> None:
    rows: Rows = [(SECRET, 1, 0, 3), (MODULE, 2, 9, None)]
    (p,) = MigrateUnmapped().place(requests_of(rows), NO_COUNTS).placements
    assert p.refill_orders.tolist() == [9]
    # the new type splits its pageblock by one page (invalid, default); then page by page at each allocation and free
    assert p.acts.ts_ns.tolist() == [0, 0, 0, 5, 9]
    assert p.acts.mask_clr.tolist() == [3, 0, 3, 0, 3]
    assert p.acts.n_pages.tolist() == [1, 1, 1, 1, 2]
    assert p.acts.n_range_flushes.tolist() == [0, 0, 1, 0, 2]
    assert p.swallowed.tolist() == [True, False]
    assert p.idle_pages.tolist() == [511, 512, 510]


def test_a_pageblock_that_is_not_free_joins_whole_or_in_part() -> None:
    rows: Rows = [(SECRET, 1, t, None) for t in range(5)]
    whole, part = MigrateUnmapped().place(requests_of(rows), counted(o2=9)).placements
    assert (whole.n_blocks, part.n_blocks) == (1, 2)
    assert whole.in_pieces.all() and part.in_pieces.all()


def rox(rows: Rows, n_text: list[int], host: Host = NO_COUNTS, old: str = "no") -> Placement:
    """Areas whose first pages are text."""
    requests = requests_of(rows)
    nth = np.arange(len(requests.pfn)) - requests.first[requests.owner]
    requests = replace(requests, text=nth < np.array(n_text)[requests.owner])
    (placement,) = RoxCache({"old-block": old}).place(requests, host).placements
    return placement


def test_text_of_modules_shares_a_block_and_data_stays() -> None:
    p = rox([(MODULE, 4, 0, 9), (MODULE, 3, 2, None)], [2, 1])
    assert p.dest.tolist() == [GONE, GONE, 2, 3, GONE, 5, 6]
    assert p.n_blocks == 1
    block, texts = SYMBOLIC, [SYMBOLIC, SYMBOLIC + 2]
    # the block becomes read-only whole; each text writable and read-only again; at the free once more
    rows = list(
        zip(*(getattr(p.acts, name).tolist() for name in ("ts_ns", "place", "n_pages", "step_pages")), strict=True)
    )
    assert rows == [
        (-1, block, 512, 512), (0, texts[0], 2, 1), (1, texts[0], 2, 1), (2, texts[1], 1, 1), (3, texts[1], 1, 1),
        (10, texts[0], 2, 1), (11, texts[0], 2, 1),
    ]  # fmt: skip
    assert p.acts.n_calls.tolist() == [1, 2, 0, 2, 0, 3, 0]
    assert p.n_calls_saved == 4  # vfree resets two pages less, by two calls each
    assert p.idle_pages.tolist() == [510, 509, 511]


def test_a_block_without_text_goes_at_once() -> None:
    p = rox([(MODULE, 1, 0, 5), (MODULE, 1, 20, None)], [1, 1])
    assert p.n_blocks == 2
    assert p.acts.ts_ns.tolist() == [-1, 0, 1, 6, 7, 8, 19, 20, 21]
    assert (p.acts.place[5], p.acts.step_pages[5], p.acts.mask_set[5]) == (SYMBOLIC, 512, 3)


def test_an_old_block_takes_it_all_or_there_is_none() -> None:
    p = rox([(MODULE, 4, 0, 9)], [2], old="yes")
    assert (p.n_blocks, len(p.acts), p.served) == (0, 0, 1)


def test_without_a_block_text_stays_as_recorded() -> None:
    p = rox([(MODULE, 4, 0, 9)], [2], host=counted(o8=9))
    assert p.dest.tolist() == [0, 1, 2, 3]
    assert p.as_recorded == 1


def test_neither_bpf_nor_a_kernel_with_the_cache_is_its_business() -> None:
    requests = requests_of([(BPF, 2, 0, None)])
    assert RoxCache().place(replace(requests, text=np.ones(2, np.bool_)), NO_COUNTS).identity
    modules = replace(requests_of([(MODULE, 2, 0, None)]), text=np.ones(2, np.bool_), has_rox=True)
    assert RoxCache().place(modules, NO_COUNTS).identity
    assert not RoxCache({"requests": "asked"}).place(modules, NO_COUNTS).identity


def test_ungrouped_takes_images_out_of_their_packs() -> None:
    requests = requests_of([(MODULE, 4, 0, None), (BPF, 2, 1, 5)])
    life = np.array([Life.RECORDED, Life.IMAGE], np.uint8)
    pfn = np.array([0, 512, 1024, 1536, -1, -1])  # a page a frame
    (p,) = Ungrouped().place(replace(requests, life=life, pfn=pfn), NO_COUNTS).placements
    assert p.dest[:4].tolist() == [0, 512, 1024, 1536]
    assert (p.dest[4:] - SYMBOLIC).tolist() == [0, 512]
    assert p.in_pieces.tolist() == [True, True]
    assert Ungrouped().place(requests, NO_COUNTS).identity
