"""Page frames that the recorded kernel handed out one by one, and which of them a policy would have got that takes many at once.

Who takes 512 single pages at once empties the free lists of pages for kernel memory from the small end: first what lies free
in 2M frames that others use already, then, of a block of 2M or 4M that is taken apart for it, as many as are still missing
(rmqueue_bulk, __rmqueue_fallback in mm/page_alloc.c). Where these lie, a trace tells by what came next: the pages
that its requests got from that moment on. But these came over time and were few among what others took meanwhile, so that
512 of them lie in far more frames than 512 pages taken at once. So only as many are looked at as went by while the
kernel handed out 512 pages to anybody. How many these are, their density tells: a frame that is used for kernel memory fills
up, and n of its pages were ours.

Of the six packs in the sample 6.1-churn, each of 512 pages taken at once, 34 frames are known; those of one, two, three and
four times that many pages beside them are 16, 25, 30 and 33. Hence `WORTH`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from analyze.jit import kernel
from collect.schema import HUGE_FRAME_PAGES

__all__ = ["WORTH", "SinglePages", "frames_in_windows"]

Int64 = npt.NDArray[np.int64]

WORTH = 3
"""Pages at once reach as far as the special pages of so many times as many frames: also what had been freed is used up."""

_NEARBY = np.array([0, 1, -1, 2, -2, 3, -3, 4, -4])
"""Windows around a moment, in halves of their length, the nearest first."""


@dataclass(frozen=True)
class SinglePages:
    """Single pages in order of time.

    Attributes:
        ns, pfn: when each was handed out, and its frame.
        window: how many in a row stand for so many taken at once as `of` was asked for.
        n_frames: [len - window + 1] distinct 2M frames of the window that begins at each.
    """

    ns: Int64
    pfn: Int64
    window: int
    n_frames: Int64

    @classmethod
    def of(cls, ns: Int64, pfn: Int64, at_once: int) -> SinglePages:
        """`ns`, `pfn`: in any order; unknown frames (-1) are left out."""
        order = np.argsort(ns, kind="stable")
        order = order[pfn[order] >= 0]
        ns, pfn = ns[order], pfn[order]
        frames, frame = np.unique(pfn // HUGE_FRAME_PAGES, return_inverse=True)
        worth = -(-WORTH * len(pfn) * at_once // max(1, len(frames) * HUGE_FRAME_PAGES))
        window = max(1, min(worth, at_once, len(pfn)))
        return cls(ns, pfn, window, frames_in_windows(frame.reshape(-1).astype(np.int64), window))

    def __len__(self) -> int:
        return len(self.pfn)

    def at(self, ns: Int64) -> Int64:
        """The window from each moment on; the last one where too few follow."""
        return np.minimum(np.searchsorted(self.ns, ns), len(self.n_frames) - 1)

    def nearby(self, start: Int64, *, densest: bool) -> Int64:
        """Of the windows around each of `start` the nearest with the fewest frames, or with the most."""
        near = np.clip(start[:, None] + _NEARBY * max(1, self.window // 2), 0, len(self.n_frames) - 1)
        counts = self.n_frames[near]
        best = counts.argmin(axis=1) if densest else counts.argmax(axis=1)
        chosen: Int64 = near[np.arange(len(near)), best]
        return chosen

    def chosen(self, ns: Int64, spread: int, n: int) -> Int64:
        """[moments, n] page frames for each moment: what came next (`spread` 0), the densest (-1) or most scattered (1) nearby."""
        start = self.at(ns)
        return self.pages(self.nearby(start, densest=spread < 0) if spread else start, n)

    def pages(self, start: Int64, n: int) -> Int64:
        """[starts, n] page frames of each window, evenly thinned out or repeated to `n`."""
        nth = np.arange(n) * self.window // n
        chosen: Int64 = self.pfn[start[:, None] + nth]
        return chosen


@kernel
def frames_in_windows(frame: Int64, window: int) -> Int64:
    """Distinct values among each `window` cells in a row of `frame`, which are numbers from 0 on."""
    n = len(frame)
    counts = np.zeros(max(0, n - window + 1), np.int64)
    inside = np.zeros(n + 1, np.int64)  # frames are numbered without gaps: at most n of them
    distinct = 0
    for i in range(n):
        if inside[frame[i]] == 0:
            distinct += 1
        inside[frame[i]] += 1
        if i >= window:
            old = frame[i - window]
            inside[old] -= 1
            if inside[old] == 0:
                distinct -= 1
        if i >= window - 1:
            counts[i - window + 1] = distinct
    return counts
