"""When a request begins and ceases to own a frame, case by case."""

from __future__ import annotations

import numpy as np
import pytest

from collect.schema import Pte
from replay.ownership import Touches, join
from replay.requests import NEVER

P, RW, NX = int(Pte.P), int(Pte.RW), int(Pte.NX)
RO, INVALID, DEFAULT = (0, RW), (0, P | RW), (P | RW, 0)


def owners(
    touches: list[tuple[int, int, int, tuple[int, int]]], intervals: list[tuple[int, int, int | None, int]]
) -> list[int]:
    """touches: (frame, ts, pid, (set, clear)); intervals: (frame, allocated, freed, pid)."""
    i64 = lambda values: np.array(values, np.int64)  # noqa: E731
    return join(
        Touches(
            i64([t[0] for t in touches]),
            i64([t[1] for t in touches]),
            i64([t[2] for t in touches]),
            np.array([t[3][0] for t in touches], np.uint64),
            np.array([t[3][1] for t in touches], np.uint64),
        ),
        i64([i[0] for i in intervals]),
        i64([i[1] for i in intervals]),
        i64([NEVER if i[2] is None else i[2] for i in intervals]),
        i64([i[3] for i in intervals]),
    ).tolist()


def test_between_allocation_and_free() -> None:
    assert owners([(7, 15, 99, RO), (8, 15, 99, RO)], [(7, 10, 20, 1)]) == [0, -1]


def test_never_freed() -> None:
    assert owners([(7, 1 << 60, 99, RO)], [(7, 10, None, 1)]) == [0]


def test_reset_after_the_free_ends_with_the_page_present() -> None:
    touches = [(7, 21, 1, INVALID), (7, 22, 1, DEFAULT), (7, 23, 1, INVALID)]
    assert owners(touches, [(7, 10, 20, 1)]) == [0, 0, -1]


def test_other_masks_after_the_free_are_no_reset() -> None:
    assert owners([(7, 21, 1, (NX, 0))], [(7, 10, 20, 1)]) == [-1]


def test_a_change_in_the_allocating_call_belongs_to_it() -> None:
    # secretmem: the page is unmapped before the fault returns
    assert owners([(7, 9, 1, INVALID), (7, 9, 2, INVALID)], [(7, 10, 20, 1)]) == [0, -1]


def test_a_page_given_back_and_taken_again_by_the_same_thread() -> None:
    touches = [(7, 9, 1, INVALID), (7, 21, 1, DEFAULT), (7, 29, 1, INVALID), (7, 41, 1, DEFAULT)]
    assert owners(touches, [(7, 10, 20, 1), (7, 30, 40, 1)]) == [0, 0, 1, 1]


@pytest.mark.parametrize(("ts", "owner"), [(22, 0), (28, 1)])
def test_where_both_could_be_the_nearer_has_it(ts: int, owner: int) -> None:
    assert owners([(7, ts, 1, INVALID)], [(7, 10, 20, 1), (7, 30, 40, 1)]) == [owner]


def test_order_of_rows_does_not_matter() -> None:
    touches = [(7, 41, 1, DEFAULT), (9, 5, 1, RO), (7, 15, 1, RO), (8, 31, 1, RO)]
    intervals = [(8, 30, None, 1), (7, 30, 40, 1), (7, 10, 20, 1)]
    assert owners(touches, intervals) == [1, -1, 2, 0]


def test_nothing_to_join() -> None:
    assert owners([], [(7, 10, 20, 1)]) == []
    assert owners([(7, 15, 1, RO)], []) == [-1]
