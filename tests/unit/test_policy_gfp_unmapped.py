"""Golden counts of the RFC's cache on streams small enough to count by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from replay.placement import SYMBOLIC, Host, Placement
from replay.policies.gfp_unmapped import GfpUnmapped
from tests.unit.test_replay_requests import MODULE, ROX, SECRET, requests_of

NO_COUNTS = Host(1, np.zeros(0, np.int64), np.zeros((0, 11), np.int64))


def place(rows: list[tuple[str, int, int, int | None]], host: Host = NO_COUNTS, **settings: str) -> Placement:
    """The last way it may have gone: nothing goes well that need not."""
    return ways(rows, host, **settings)[-1]


def ways(rows: list[tuple[str, int, int, int | None]], host: Host = NO_COUNTS, **settings: str) -> list[Placement]:
    policy = GfpUnmapped({name.replace("_", "-"): value for name, value in settings.items()})
    return policy.place(requests_of(rows), host).placements


def pressed(*calls: tuple[int, int]) -> Host:
    """A host whose shrinker is called at (time, for so many pages)."""
    ns, pages = (np.array(column, np.int64) for column in zip(*calls, strict=True))
    return replace(NO_COUNTS, pressure_ns=ns, pressure_pages=pages)


def test_513_pages_held_at_once_need_two_refills() -> None:
    p = place([(SECRET, 1, t, None) for t in range(513)])
    assert p.refill_orders.tolist() == [9, 9]
    assert p.n_blocks == 2
    assert p.pages_unmapped == 2  # the request's one page, twice: not the 1024 that are cached
    assert p.acts.n_pages.tolist() == [1, 1]
    assert p.acts.ts_ns.tolist() == [0, 512]
    assert sorted((p.dest - SYMBOLIC).tolist()) == list(range(513))
    assert p.idle_pages[[0, 511, 512]].tolist() == [511, 0, 511]


def test_pages_given_one_after_the_other_ascend_from_the_lowest() -> None:
    assert (place([(SECRET, 1, t, None) for t in range(6)]).dest - SYMBOLIC).tolist() == [0, 1, 2, 3, 4, 5]


def test_an_area_is_as_many_requests_of_one_page() -> None:
    p = place([(MODULE, 5, 0, None), (MODULE, 600, 1, None)])
    assert p.refill_orders.tolist() == [9, 9]
    assert p.pages_unmapped == 2
    assert (p.dest - SYMBOLIC).tolist() == list(range(605))


def test_freed_pages_are_used_again_before_any_refill() -> None:
    p = place([(SECRET, 1, t, t + 1) for t in range(0, 10_000, 2)])
    assert p.refill_orders.tolist() == [9]
    assert set((p.dest - SYMBOLIC).tolist()) == {0}  # last in, first out, merged and split again


def test_last_in_first_out() -> None:
    # pages 0 to 3 held; 1 then 3 freed: neither has a free buddy, so both lie on the list of order 0, 3 on top
    p = place(
        [(SECRET, 1, 0, None), (SECRET, 1, 1, 10), (SECRET, 1, 2, None), (SECRET, 1, 3, 11), (SECRET, 2, 20, None)]
    )
    assert (p.dest[-2:] - SYMBOLIC).tolist() == [3, 1]


def test_a_2m_request_is_unmapped_whole_and_page_by_page() -> None:
    p = place([(ROX, 512, 0, 5), (ROX, 512, 6, None)])
    assert p.refill_orders.tolist() == [9]
    assert p.pages_unmapped == 512
    assert p.acts.n_calls.tolist() == [512]
    assert p.acts.n_range_flushes.tolist() == [1]
    assert p.idle_pages.tolist() == [0, 512, 0]


def test_one_page_taken_spoils_a_block_for_a_2m_request() -> None:
    p = place([(SECRET, 1, 0, None), (ROX, 512, 1, None)])
    assert p.refill_orders.tolist() == [9, 9]
    assert p.pages_unmapped == 1 + 512


@pytest.mark.parametrize(
    ("blocks", "orders"),
    [
        ({9: 1}, [9]),
        ({10: 1}, [9]),
        ({8: 1, 3: 7}, [8]),
        ({2: 2}, [2, 2]),
        ({0: 3}, [0, 0, 0]),
    ],
)
def test_a_refill_takes_the_highest_order_that_the_last_count_has(blocks: dict[int, int], orders: list[int]) -> None:
    counts = np.zeros((1, 11), np.int64)
    for order, n in blocks.items():
        counts[0, order] = n
    n_requests = min(sum(n << order for order, n in blocks.items()), 6 if 2 in blocks else 3)
    p = place([(SECRET, 1, t, None) for t in range(n_requests)], Host(1, np.zeros(1, np.int64), counts))
    assert p.refill_orders.tolist() == orders
    assert p.not_served == 0


def test_when_nothing_is_free_the_request_fails_and_gives_back_what_it_got() -> None:
    counts = np.zeros((1, 11), np.int64)
    counts[0, 2] = 1
    p = place([(MODULE, 6, 0, 9), (MODULE, 4, 10, None)], Host(1, np.zeros(1, np.int64), counts))
    assert p.refill_orders.tolist() == [2]
    assert p.refill_failures == 1
    assert (p.served, p.not_served) == (1, 1)
    assert p.swallowed.tolist() == [True, False]
    assert p.idle_pages.tolist() == [4, 4, 0]
    assert (p.dest < 0).tolist() == [True] * 6 + [False] * 4


def test_secretmem_leaves_its_mapping_to_the_cache_modules_do_not() -> None:
    assert place([(SECRET, 1, 0, None), (MODULE, 1, 1, None)]).swallowed.tolist() == [True, False]


def test_no_request_no_refill() -> None:
    p = place([])
    assert p.n_blocks == 0
    assert len(p.acts.ts_ns) == 0


def test_what_a_refill_unmaps_is_what_tells_the_variants_apart() -> None:
    rows = [(SECRET, 1, 0, None), (MODULE, 3, 1, 9)]
    posted, cover, ideal = (place(rows, variant=v) for v in ("posted", "cover", "ideal"))
    assert [p.pages_unmapped for p in (posted, cover, ideal)] == [1, 512, 512 + 3]
    assert posted.acts.n_pages.tolist() == [1]
    assert (cover.acts.n_pages.tolist(), cover.acts.step_pages.tolist(), cover.acts.n_calls.tolist()) == (
        [512],
        [1],
        [512],
    )
    # one call on the block; three pages that came back mapped are unmapped again after their reset
    assert (ideal.acts.n_pages.tolist(), ideal.acts.step_pages.tolist()) == ([512, 3], [512, 1])
    assert (ideal.acts.ts_ns.tolist(), ideal.acts.n_calls.tolist()) == ([0, 11], [1, 3])
    assert posted.dest.tolist() == cover.dest.tolist() == ideal.dest.tolist()


def test_refills_below_a_block_split_nothing_for_sure() -> None:
    p = place([(SECRET, 1, t, None) for t in range(17)], refill_order="4")
    assert p.refill_orders.tolist() == [4, 4]
    assert p.in_pieces.tolist() == [True, True]
    hopeful, sober = ways([(SECRET, 1, t, None) for t in range(17)], refill_order="4")
    assert (hopeful.n_blocks, sober.n_blocks) == (1, 2)  # neighbours join at once, or never


def test_without_pressure_there_is_one_way_and_nothing_comes_back() -> None:
    (p,) = ways([(SECRET, 1, 0, 1)])
    assert p.pages_released == 0


def test_a_whole_block_given_back_is_the_next_refill_or_never_met_again() -> None:
    hopeful, sober = ways([(SECRET, 1, 0, 1), (SECRET, 1, 5, None)], pressed((3, 512)))
    assert (hopeful.n_blocks, sober.n_blocks) == (1, 2)
    assert hopeful.pages_released == sober.pages_released == 512
    assert sober.acts.ts_ns.tolist() == [0, 3, 5]
    assert sober.acts.mask_set.tolist() == [0, 3, 0]
    assert (sober.acts.n_pages.tolist(), sober.acts.step_pages.tolist()) == ([1, 512, 1], [1, 1, 1])
    assert sober.acts.n_calls.tolist() == [1, 512, 1]  # page by page, as posted
    assert sober.acts.n_range_flushes.tolist() == [1, 0, 1]
    assert sober.idle_pages.tolist() == [511, 512, 0, 511]
    ideal = place([(SECRET, 1, 0, 1)], pressed((3, 512)), variant="ideal")
    assert (ideal.acts.step_pages.tolist(), ideal.acts.n_calls.tolist()) == ([512, 512], [1, 1])


def test_pages_of_a_flagged_block_may_come_back_at_once() -> None:
    hopeful, sober = ways([(SECRET, 1, 0, None)], pressed((3, 1)))
    assert (hopeful.idle_pages[-1], sober.idle_pages[-1]) == (511, 510)
    cleared, _ = ways([(SECRET, 1, 0, None)], pressed((3, 1)), block_bit="cleared")
    assert cleared.idle_pages[-1] == 510


def test_where_the_bit_is_cleared_what_is_freed_later_goes_back_too() -> None:
    rows = [(SECRET, 1, 0, 9)]
    assert place(rows, pressed((3, 1)), block_bit="sticky").idle_pages.tolist() == [511, 510, 511]
    assert place(rows, pressed((3, 1)), block_bit="cleared").idle_pages.tolist() == [511, 510, 510]


def test_small_chunks_first_or_large_ones() -> None:
    host = pressed((3, 200))
    up, down, off = (place([(SECRET, 1, 0, None)], host, shrinker=s) for s in ("ascending", "descending", "off"))
    # free: 1 2 4 ... 256; each order is subtracted once for itself and again with all later ones: 1 2 4 8 16 32 64 do
    assert up.pages_released == 127
    assert down.pages_released == 256
    assert off.pages_released == 0


def test_between_two_counts_of_free_blocks_a_refill_may_get_what_either_says() -> None:
    """A block of 2 MiB at the first count, none at the second, a request between: a whole block, or one of 8 pages."""
    counts = np.zeros((2, 11), np.int64)
    counts[0, 9], counts[1, 3] = 1, 1
    host = Host(1, np.array([0, 100]), counts)
    requests = requests_of([(SECRET, 1, 50, None)])
    whole, piece = GfpUnmapped().place(requests, host).placements
    assert (whole.refill_orders.tolist(), piece.refill_orders.tolist()) == ([9], [3])
    counts[1, 3] = 0
    assert [p.refill_failures for p in GfpUnmapped().place(requests, host).placements] == [0, 1]
    counts[:, 9] = 5  # enough at both
    assert len(GfpUnmapped().place(requests, host).placements) == 1


def test_the_lower_count_is_lower_in_blocks_of_every_order_and_above() -> None:
    rng = np.random.default_rng(1)
    host = Host(1, np.arange(20), rng.integers(0, 5, (20, 11)))
    plenty, scarce = host.between_readings()
    for k in range(11):
        pages = [(h.free_blocks[:, k:] << np.arange(k, 11)).sum(axis=1) for h in (scarce, host, plenty)]
        after = np.append(pages[1][1:], pages[1][-1])
        assert pages[0].tolist() == np.minimum(pages[1], after).tolist()
        assert pages[2].tolist() == np.maximum(pages[1], after).tolist()
    assert (scarce.free_blocks >= 0).all()
    assert (plenty.free_blocks >= 0).all()
