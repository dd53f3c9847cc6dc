"""Frames that were never wholly free, by page events, and what that does to the place of a refill."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from collect.schema import PageEvent
from collect.trace import open_trace
from replay.occupied import never_free
from replay.policies import POLICIES
from replay.run import replay
from replay.stream import decode
from tests.machine.rewrite import rewrite, with_manifest
from tests.unit.test_page_events import events, pages, trace_of
from tests.unit.test_replay_golden import GIGA, OUT, Scattered, Steps, reset_pages, secrets

ALLOC, FREE = PageEvent.ALLOC, PageEvent.FREE
FRAME = 10


def plainly(rows: list[tuple[int, PageEvent, int, int]]) -> bool:
    """Whether some page of the frame is allocated before the first event and after each: which are, is known from the end."""
    first = {}
    for _, event, pfn, order in rows:
        for page in range(pfn, pfn + (1 << order)):
            first.setdefault(page, event)
    allocated = {page for page, event in first.items() if event == FREE}
    always = bool(allocated)
    for _, event, pfn, order in rows:
        touched = set(range(pfn, pfn + (1 << order)))
        allocated = allocated - touched if event == FREE else allocated | touched
        always = always and bool(allocated)
    return always


def test_a_frame_with_an_allocated_page_at_every_moment_was_never_free(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    outcomes = []
    for number in range(12):
        n = int(rng.integers(2, 9))
        rows = [
            (
                i,
                ALLOC if rng.random() < 0.5 else FREE,
                FRAME * 512 + int(rng.integers(0, 3)) * 4,
                int(rng.integers(0, 3)),
            )
            for i in range(n)
        ]
        found = never_free(open_trace(trace_of(tmp_path / str(number), events(10**9, *rows))))
        assert found[FRAME] == plainly(rows), rows
        assert found.sum() == found[FRAME]
        outcomes.append(plainly(rows))
    assert True in outcomes
    assert False in outcomes


@pytest.mark.parametrize(
    "change",
    [
        {"losses": {"pages_ring_full": 1}},
        {"sampling": {"pages": "all", "page_sample": 4}},
        {"sampling": {"pages": "scoped"}},
        {"probes": {"missing": [{"name": "alloc_pages_bulk", "why": "gone", "costs": "bulk allocations"}]}},
    ],
)
def test_nothing_is_proved_by_events_of_which_some_are_missing(tmp_path: Path, change: dict[str, object]) -> None:
    whole = trace_of(tmp_path, events(10**9, (0, FREE, FRAME * 512, 0), (1, ALLOC, FRAME * 512 + 1, 0)))
    kept = trace_of(tmp_path / "kept", events(10**9, (0, ALLOC, FRAME * 512, 0), (1, FREE, FRAME * 512 + 1, 0)))
    assert not never_free(open_trace(whole))[FRAME]
    assert never_free(open_trace(kept))[FRAME]
    assert not never_free(open_trace(with_manifest(kept, tmp_path / "less", **change))).any()


@pytest.mark.parametrize("occupied", [True, False])
def test_no_refill_comes_from_a_frame_that_was_in_use_all_the_time(tmp_path: Path, occupied: bool) -> None:
    """Nobody's change splits a frame; a block may have come from there, unless something lay in it from start to end."""
    m = Scattered()

    def steps() -> Steps:
        yield from reset_pages(m, OUT, ("somebody",), [3 * GIGA + 5])
        yield from secrets(m, 1, 0)

    m.record(tmp_path / "t", steps())
    page = 3 * GIGA + 7
    first, second = (FREE, ALLOC) if not occupied else (ALLOC, FREE)
    end_ns = open_trace(tmp_path / "t").manifest["ts_end_ns"]
    rows = events(end_ns - 10, (0, first, page, 0), (1, second, page + 1, 0))
    rewrite(tmp_path / "t", tmp_path / "t2", "pages", pages(rows))
    trace = with_manifest(tmp_path / "t2", tmp_path / "t3", sampling={"pages": "all", "page_sample": 1})
    gfp = replay(decode(open_trace(trace)), POLICIES["gfp-unmapped"])
    assert gfp.split_2m.to_json() == [2, 2] if occupied else [1, 2]
    assert any("prove to have been in use" in text for text in gfp.narrow)
