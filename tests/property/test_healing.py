"""The healing order, held against the same rules in plain Python over sets."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from analyze.healing import Holds, Order, healing_order, hold

Pairs = list[tuple[int, int]]
"""(frame, cause) of each page."""


@st.composite
def holdings(draw: st.DrawFn) -> tuple[Pairs, int, int, list[bool], list[bool], list[bool]]:
    n_frames, n_causes = draw(st.integers(1, 14)), draw(st.integers(1, 7))
    pages = draw(
        st.lists(st.tuples(st.integers(0, n_frames - 1), st.integers(0, n_causes - 1)), min_size=1, max_size=60)
    )
    mostly = st.sampled_from([True, True, True, False])
    removable = draw(st.lists(mostly, min_size=n_causes, max_size=n_causes))
    gone = draw(st.lists(mostly.map(lambda yes: not yes), min_size=n_causes, max_size=n_causes))
    healable = draw(st.lists(mostly, min_size=n_frames, max_size=n_frames))
    return pages, n_frames, n_causes, removable, gone, healable


def plain_order(
    pages: Pairs, n_frames: int, n_causes: int, removable: list[bool], gone: list[bool], healable: list[bool]
) -> tuple[list[tuple[set[int], set[int]]], int]:
    """Steps as (causes taken, frames freed), and the number of frames free before the first."""
    cost = [sum(cause == c for _, cause in pages) for c in range(n_causes)]
    held = {f: {c for frame, c in pages if frame == f} for f in range(n_frames)}
    first = sum(1 for f, causes in held.items() if causes and healable[f] and all(gone[c] for c in causes))
    left = {f: {c for c in causes if not gone[c]} for f, causes in held.items()}
    can = {f: causes for f, causes in left.items() if causes and healable[f] and all(removable[c] for c in causes)}
    steps = []
    while can:
        alone = [sum(causes == {c} for causes in can.values()) for c in range(n_causes)]
        if any(alone):
            taken = {min(range(n_causes), key=lambda c: (-alone[c], cost[c], c))}
        else:
            same = {f: sum(other == causes for other in can.values()) for f, causes in can.items()}
            taken = set(can[min(can, key=lambda f: (-Fraction(same[f], len(can[f])), len(can[f]), f))])
        can = {f: causes - taken for f, causes in can.items()}
        steps.append((taken, {f for f, causes in can.items() if not causes}))
        can = {f: causes for f, causes in can.items() if causes}
    return steps, first


def compiled_order(
    pages: Pairs, n_frames: int, n_causes: int, removable: list[bool], gone: list[bool], healable: list[bool]
) -> Order:
    frame, cause = (np.array(column, np.int64) for column in zip(*pages, strict=True))
    holds = hold(frame, cause, n_frames, n_causes)
    return healing_order(holds, np.array(removable), np.array(gone), np.array(healable), 50)


@settings(max_examples=400, deadline=None)
@given(holdings())
def test_the_order_is_that_of_the_plain_rules(what: tuple[Pairs, int, int, list[bool], list[bool], list[bool]]) -> None:
    steps, first = plain_order(*what)
    found = compiled_order(*what)
    assert found.first == first
    assert found.healed.tolist() == [len(freed) for _, freed in steps]
    for number, (taken, freed) in enumerate(steps):
        assert set(np.flatnonzero(found.step_of_cause == number)) == taken
        assert set(np.flatnonzero(found.step_of_frame == number)) == freed


@settings(max_examples=200, deadline=None)
@given(holdings())
def test_a_frame_is_free_when_and_only_when_all_that_held_it_is_gone(
    what: tuple[Pairs, int, int, list[bool], list[bool], list[bool]],
) -> None:
    pages, n_frames, n_causes, _, gone, healable = what
    found = compiled_order(*what)
    for step in range(len(found.healed)):
        away = {c for c in range(n_causes) if gone[c] or 0 <= found.step_of_cause[c] <= step}
        for f in range(n_frames):
            held = {c for frame, c in pages if frame == f}
            free = 0 <= found.step_of_frame[f] <= step
            before = bool(held) and all(gone[c] for c in held)
            if healable[f] and held and not before:
                assert free == (held <= away)
            else:
                assert not free


def test_pages_of_one_cause_in_one_frame_are_one_hold() -> None:
    holds = hold(np.array([3, 3, 3, 1]), np.array([2, 2, 0, 2]), 5, 4)
    assert holds.frame_start.tolist() == [0, 0, 1, 1, 3, 3]
    assert holds.causes.tolist() == [2, 0, 2]
    assert holds.pages.tolist() == [1, 1, 2]
    assert holds.cause_start.tolist() == [0, 1, 1, 3, 3]
    assert holds.frames.tolist() == [3, 1, 3]
    assert holds.alone().tolist() == [True, False, False]


def test_causes_that_hold_nothing_alone_go_together() -> None:
    """Two frames held by 0 and 1, one by 1 and 2: no single cause frees any, 0 and 1 together free two."""
    found = compiled_order([(0, 0), (0, 1), (1, 0), (1, 1), (2, 1), (2, 2)], 3, 3, [True] * 3, [False] * 3, [True] * 3)
    assert found.step_of_cause.tolist() == [0, 0, 1]
    assert found.healed.tolist() == [2, 1]


def test_nothing_held_has_no_steps() -> None:
    empty = np.empty(0, np.int64)
    found = healing_order(hold(empty, empty, 0, 0), empty.astype(bool), empty.astype(bool), empty.astype(bool), 10)
    assert len(found.healed) == 0
    assert found.first == 0


def test_a_host_of_200_000_split_frames_and_5_000_causes_is_ordered() -> None:
    """Every frame held by one to four of 5,000 causes, unevenly: what a large host would look like."""
    random = np.random.default_rng(7)
    n_frames, n_causes = 200_000, 5_000
    n_held = random.integers(1, 5, n_frames)
    frame = np.repeat(np.arange(n_frames), n_held)
    cause = np.minimum(random.zipf(1.3, len(frame)) - 1, n_causes - 1).astype(np.int64)
    holds: Holds = hold(frame, cause, n_frames, n_causes)
    found = healing_order(holds, np.ones(n_causes, bool), np.zeros(n_causes, bool), np.ones(n_frames, bool), 200)
    assert (found.healed > 0).all()
    for step in (0, 10, 199):
        away = (found.step_of_cause >= 0) & (found.step_of_cause <= step)
        free = np.bincount(frame, ~away[cause], minlength=n_frames) == 0
        assert free.sum() == found.healed[: step + 1].sum()
