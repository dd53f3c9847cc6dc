"""The rules of the direct map, one fact a test (arch/x86/mm/pat/set_memory.c)."""

from __future__ import annotations

import numpy as np
import pytest

from analyze.directmap import FRAME, GIGA, DirectMap
from analyze.entries import collapse_frame, collapse_giga
from analyze.hotplug import add_range, remove_range
from analyze.rules import change_range, new_log, no_window
from collect.errors import TraceError
from collect.schema import Pte

P, RW, G, NX, D = int(Pte.P), int(Pte.RW), int(Pte.G), int(Pte.NX), int(Pte.D)
USUAL = int(Pte.P | Pte.RW | Pte.A | Pte.D | Pte.G | Pte.NX)


def one_giga_leaf(**options: object) -> DirectMap:
    m = DirectMap(GIGA, **options)  # type: ignore[arg-type]
    m.load([0], [3], [1], [USUAL])
    return m


def large_leaves(**options: object) -> DirectMap:
    m = DirectMap(GIGA, **options)  # type: ignore[arg-type]
    m.load([0], [2], [512], [USUAL])
    return m


def test_one_page_in_a_1g_leaf_makes_two_splits() -> None:
    m = one_giga_leaf()
    assert m.change(1000, 1, mask_clr=RW) == [(3, 0), (2, FRAME)]
    assert m.counts() == {1: 512, 2: 511, 3: 0}
    assert m.level_of([1000, 999, 0]).tolist() == [1, 1, 2]
    assert m.attrs_of([1000, 999, 0]).tolist() == [USUAL & ~RW, USUAL, USUAL]


def test_a_whole_leaf_is_rewritten_and_stays_large() -> None:
    m = large_leaves()
    assert m.change(FRAME, FRAME, mask_clr=RW) == []
    assert m.level_of([FRAME]) == [2]
    assert m.attrs_of([FRAME, 0]).tolist() == [USUAL & ~RW, USUAL]
    g = one_giga_leaf()
    assert g.change(0, GIGA, mask_clr=RW) == []
    assert g.counts() == {1: 0, 2: 0, 3: 1}


def test_attributes_that_are_there_already_split_nothing_whatever_the_range() -> None:
    m = one_giga_leaf()
    assert m.change(777, 3, mask_set=RW) == []
    assert m.counts() == {1: 0, 2: 0, 3: 1}


def test_empty_masks_do_nothing() -> None:
    m = one_giga_leaf()
    assert m.change(777, 3) == []


def test_an_unaligned_range_splits_its_ends_and_keeps_the_leaves_between() -> None:
    m = large_leaves()
    assert m.change(FRAME - 1, 2 * FRAME + 2, mask_clr=RW) == [(2, 0), (2, 3 * FRAME)]
    assert m.level_of([FRAME, 2 * FRAME]).tolist() == [2, 2]
    assert m.attrs_of([FRAME - 1, FRAME, 3 * FRAME, 3 * FRAME + 1]).tolist() == [USUAL & ~RW] * 3 + [USUAL]


def test_what_was_asked_for_decides_even_if_less_was_done() -> None:
    m = large_leaves()
    assert m.change(0, 2 * FRAME, mask_clr=RW, n_done=FRAME) == []
    assert m.attrs_of([0, FRAME]).tolist() == [USUAL & ~RW, USUAL]


def test_g_goes_with_p_and_does_not_come_back() -> None:
    m = large_leaves()
    m.change(5, 1, mask_clr=P | RW)
    assert m.attrs_of([5]) == [USUAL & ~(P | RW | G)]
    m.change(5, 1, mask_set=P | RW)
    assert m.attrs_of([5]) == [USUAL & ~G]


def test_force_split_goes_down_to_4k_without_changing_anything() -> None:
    m = one_giga_leaf()
    assert m.change(0, FRAME, force_split=True) == [(3, 0), (2, 0)]
    assert m.attrs_of([3]) == [USUAL]


def test_rodata_may_not_become_writable() -> None:
    m = DirectMap(GIGA, rodata=(600, 700))
    m.load([0], [2], [512], [USUAL & ~RW])
    assert m.change(FRAME, FRAME, mask_set=RW) == [(2, FRAME)]
    assert m.attrs_of([599, 600, 699, 700]).tolist() == [USUAL, USUAL & ~RW, USUAL & ~RW, USUAL]


def test_a_writable_leaf_over_rodata_is_split_and_mended() -> None:
    m = large_leaves(rodata=(600, 700))
    assert m.change(FRAME, 1, mask_clr=NX) == [(2, FRAME)]
    assert m.attrs_of([600, 700]).tolist() == [USUAL & ~RW, USUAL]


def test_an_empty_rodata_protects_nothing() -> None:
    m = one_giga_leaf(rodata=(512, 512))
    assert m.change(512, 1, mask_set=RW) == []


def test_holes_are_passed_over_or_filled_for_a_call_with_its_own_page_directory() -> None:
    m = DirectMap(2 * GIGA)
    m.load([FRAME], [2], [1], [USUAL])
    assert m.change(0, 2 * GIGA, mask_clr=RW) == []
    assert m.counts() == {1: 0, 2: 1, 3: 0}
    m.change(0, FRAME + 1, mask_clr=RW, has_pgd=True)
    assert m.level_of([0, 511, GIGA]).tolist() == [2, 2, 0]


def test_a_frame_outside_its_snapshots_times_is_passed_over() -> None:
    m = large_leaves()
    window = no_window()._replace(lo=np.full(512, 50), hi=np.full(512, 100))
    window.lo[1] = 80
    log = new_log(10)
    masks = np.uint64(0), np.uint64(RW)
    for pfn in (0, FRAME):
        change_range(m.entries, log, window, 7, 60, 70, pfn, 1, 1, *masks, False, False)
    change_range(m.entries, log, window, 8, 100, 110, 2 * FRAME, 1, 1, *masks, False, False)
    assert m.level_of([0, FRAME, 2 * FRAME]).tolist() == [1, 2, 2]
    assert (log.n[0], log.row[0], log.ts_ns[0]) == (1, 7, 70)


def test_symbolic_frames_split_apart_from_the_real_ones() -> None:
    m = DirectMap(GIGA, n_symbolic=3, symbolic_attrs=USUAL)
    m.load([0], [3], [1], [USUAL])
    assert m.counts(symbolic=True) == {1: 0, 2: 3, 3: 0}
    assert m.change(m.first_symbolic + FRAME + 9, 1, mask_clr=P) == [(2, m.first_symbolic + FRAME)]
    assert m.counts(symbolic=True) == {1: 512, 2: 2, 3: 0}
    assert m.counts() == {1: 0, 2: 0, 3: 1}
    assert len(m.frame_levels()) == 512


def test_a_copy_goes_its_own_way() -> None:
    m = large_leaves()
    m.change(3, 1, mask_clr=RW)
    other = m.copy()
    other.change(3, 1, mask_clr=P)
    other.change(FRAME, 1, mask_clr=RW)
    assert m.attrs_of([3]) == [USUAL & ~RW]
    assert m.counts()[1] == 512
    assert other.counts()[1] == 1024


def test_collapse_puts_the_large_leaves_back() -> None:
    m = one_giga_leaf()
    m.change(5, 1, mask_clr=RW)
    m.change(5, 1, mask_set=RW)
    assert not collapse_giga(m.entries, 0)
    assert collapse_frame(m.entries, 0)
    assert m.counts() == {1: 0, 2: 512, 3: 0}
    assert collapse_giga(m.entries, 0)
    assert m.counts() == {1: 0, 2: 0, 3: 1}
    m.change(5, 1, mask_clr=RW)
    assert m.counts() == {1: 512, 2: 511, 3: 0}


def test_memory_that_goes_and_comes_back_is_large_again() -> None:
    m = one_giga_leaf()
    m.change(5, 1, mask_clr=RW)
    remove_range(m.entries, 0, 64 * FRAME)
    assert m.counts() == {1: 0, 2: 448, 3: 0}
    assert add_range(m.entries, 0, 64 * FRAME, 2, np.uint64(USUAL)) == 0
    assert m.counts() == {1: 0, 2: 512, 3: 0}
    assert m.attrs_of([5]) == [USUAL]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ((3, 2, 1, USUAL), "do not fit"),
        ((GIGA, 2, 1, USUAL), "do not fit"),
        ((2**63, 1, 1, USUAL), "do not fit"),
        ((0, 2, 2**60, USUAL), "do not fit"),
        ((0, 2, 0, USUAL), "do not fit"),
        ((0, 0, 1, USUAL), "level 0"),
        ((0, 77, 1, USUAL), "level 77"),
    ],
)
def test_rows_that_cannot_be_are_refused(row: tuple[int, int, int, int], says: str) -> None:
    with pytest.raises(TraceError, match=says):
        DirectMap(GIGA).load(*([np.uint64(cell)] for cell in row))


@pytest.mark.parametrize("second", [(5, 1, 1, USUAL), (0, 2, 1, USUAL), (0, 3, 1, USUAL)])
@pytest.mark.parametrize("first", [(0, 1, 512, USUAL), (0, 2, 1, USUAL)])
def test_two_entries_for_one_page_are_refused(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    with pytest.raises(TraceError, match="two entries"):
        DirectMap(GIGA).load(*zip(first, second, strict=True))


def test_more_memory_than_machines_have_is_refused() -> None:
    with pytest.raises(TraceError, match="16 TB"):
        DirectMap(1 << 40)


def test_changes_outside_memory_are_refused() -> None:
    with pytest.raises(TraceError, match="outside"):
        one_giga_leaf().change(GIGA - 1, 2, mask_clr=RW)
