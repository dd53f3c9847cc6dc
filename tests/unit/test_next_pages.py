"""Single pages that came next: against plain Python on made events, and what bpf_prog_pack makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from collect.schema import PageEvent
from collect.trace import open_trace
from replay.next_pages import MAX_MOMENTS, NextPages, every_page_recorded, next_single_pages
from replay.policies.choose import choose
from replay.run import replay
from replay.stream import as_asked, decode
from tests.unit.test_page_events import events, trace_of

ALLOC, FREE, BULK, SPLIT = PageEvent.ALLOC, PageEvent.FREE, PageEvent.ALLOC_BULK, PageEvent.SPLIT
MOVABLE = 1


@pytest.fixture(scope="module")
def start_ns() -> int:
    return int(open_trace(Path(__file__).parents[2] / "sample_traces" / "6.1-churn").manifest["ts_start_ns"])


def plainly(rows: list[dict[str, int]], moments: list[int], n: int) -> list[list[int]]:
    """Page by page: the first thing that happens to it from the moment on is that it is allocated alone and unmovable."""
    found = []
    for moment in moments:
        seen: set[int] = set()
        found.append([])
        for row in rows:
            if row["ts_ns"] < moment:
                continue
            for page in range(row["pfn"], row["pfn"] + (1 << row["order"])):
                single = row["order"] == 0 and row["migratetype"] == 0 and row["event"] in (ALLOC, BULK)
                if single and page not in seen and len(found[-1]) < n:
                    found[-1].append(page)
                seen.add(page)
    return [pages + [-1] * (n - len(pages)) for pages in found]


@pytest.mark.parametrize("seed", range(4))
def test_pages_that_lay_free_and_came_next_are_those_of_plain_python(tmp_path: Path, start_ns: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    kinds = rng.choice([ALLOC, FREE, BULK, SPLIT], 400, p=[0.5, 0.3, 0.15, 0.05])
    orders = rng.choice([0, 1, 3], 400, p=[0.8, 0.1, 0.1])
    pfns = 5000 + (rng.integers(0, 600, 400) >> orders << orders)  # in two 2M frames
    rows = events(start_ns, *((10 + i // 2, kinds[i], int(pfns[i]), int(orders[i])) for i in range(400)))
    rows = [row | {"migratetype": int(rng.choice([0, MOVABLE], p=[0.8, 0.2]))} for row in rows]
    trace = open_trace(trace_of(tmp_path, rows))
    assert every_page_recorded(trace)
    moments = [start_ns + ns for ns in (0, 10, 55, 55, 120, 205, 900)]
    found = next_single_pages(trace, np.array(moments), 40)
    assert found.tolist() == plainly(rows, moments, 40)
    assert (found[:4] >= 0).all()
    assert found[-1].tolist() == [-1] * 40


def test_more_moments_than_are_followed_share_pages() -> None:
    asked: list[int] = []

    def look(moments: np.ndarray, n: int) -> np.ndarray:
        asked.append(len(moments))
        return np.arange(len(moments))[:, None] * 1000 + np.arange(n)

    ns = np.arange(5 * MAX_MOMENTS)
    found = NextPages.of(look, ns, 4)
    assert found is not None
    assert asked == [MAX_MOMENTS]
    assert (np.diff(found.chosen(ns, 0, 4)[:, 0]) >= 0).all()
    assert found.chosen(ns[-1:], 0, 4).tolist() == [[(MAX_MOMENTS - 1) * 1000 + i for i in range(4)]]


def test_the_ends_are_the_densest_and_the_most_scattered_of_what_followed() -> None:
    frames = [0, 1, 0, 1, 2, 2, 2, 2, 3, 4, 5, 6, 6, 7, 7, 7]
    found = NextPages.of(lambda moments, n: np.array([frames]) * 512, np.zeros(1, np.int64), 4)
    assert found is not None
    chosen = {spread: (found.chosen(np.array([9]), spread, 4)[0] // 512).tolist() for spread in (-1, 0, 1)}
    assert chosen == {-1: [2, 2, 2, 2], 0: [0, 1, 0, 1], 1: [3, 4, 5, 6]}
    assert NextPages.of(lambda moments, n: np.full((1, n), -1), np.zeros(1, np.int64), 4) is None


def test_a_new_pack_gets_what_anybody_got_next(tmp_path: Path, start_ns: int) -> None:
    """6.1-churn, its packs taken away; from 5 s on, all memory that anybody gets lies in three frames, in turns."""
    pfns = [7000 * 512 // 4 + 512 * (i % 3) + i // 3 for i in range(1500)]
    rows = events(start_ns, *((int(5e9) + i, ALLOC, pfns[i], 0) for i in range(1500)))
    stream = decode(open_trace(trace_of(tmp_path, rows)))
    (policy,) = choose(["prog-pack:requests=asked,old-pack=no"])
    outcome = policy.place(as_asked(stream).requests, stream.host)
    # packs beyond the six of the recording: made in no order that matters, but each in the next pages
    first = stream.host.next_pages
    assert first is not None
    assert first(np.array([start_ns]), 512).tolist() == [pfns[:512]]
    assert any("anybody got next" in caveat for caveat in outcome.caveats)
    assert not any("--pages all" in text for text in outcome.narrow)
    result = replay(as_asked(stream), policy)
    assert result.split_2m.expected is not None
    assert result.split_2m.hi - result.split_2m.lo <= 3
