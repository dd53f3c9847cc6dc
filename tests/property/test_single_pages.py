"""Windows of single pages: the compiled count against plain Python, and what must hold of any choice among them."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from replay.single_pages import WORTH, SinglePages, frames_in_windows

frames = st.lists(st.integers(0, 6), min_size=1, max_size=60)


@settings(max_examples=200, deadline=None)
@given(frames, st.integers(1, 70))
def test_frames_of_every_window_are_counted(frame: list[int], window: int) -> None:
    numbers = np.unique(np.array(frame), return_inverse=True)[1].reshape(-1).astype(np.int64)
    expected = [len(set(frame[i : i + window])) for i in range(len(frame) - window + 1)]
    assert frames_in_windows(numbers, window).tolist() == expected


@settings(max_examples=200, deadline=None)
@given(frames, st.integers(1, 1024), st.lists(st.integers(-5, 80), min_size=1, max_size=5))
def test_a_choice_lies_among_the_pages_and_between_the_ends(frame: list[int], at_once: int, moments: list[int]) -> None:
    pfn = np.array(frame) * 512 + np.arange(len(frame)) % 512
    singles = SinglePages.of(np.arange(len(frame)), pfn, at_once)
    assert 1 <= singles.window <= min(at_once, len(frame))
    start = singles.at(np.array(moments))
    counts = {
        name: [len(set((pages // 512).tolist())) for pages in singles.pages(chosen, 1024)]
        for name, chosen in (
            ("next", start), ("dense", singles.nearby(start, densest=True)), ("wide", singles.nearby(start, densest=False)),
        )
    }  # fmt: skip
    assert all(d <= n <= w for d, n, w in zip(counts["dense"], counts["next"], counts["wide"], strict=True))
    assert set(singles.pages(start, 1024).reshape(-1).tolist()) <= set(pfn.tolist())


def test_a_window_is_worth_as_many_frames_of_special_pages_as_are_filled() -> None:
    """8 special pages in each frame of 512: 512 pages of anybody went by while 8 of them did."""
    pfn = np.arange(800) // 8 * 512 + np.arange(800) % 8
    singles = SinglePages.of(np.arange(800), pfn, 512)
    assert singles.window == WORTH * 8
    assert singles.n_frames[0] == WORTH
    assert SinglePages.of(np.arange(800), np.arange(800), 512).window == 512  # nobody in between: 512 of them are 512
    assert SinglePages.of(np.arange(2), np.array([-1, 5]), 512).window == 1
