"""How scattered the pages lay that the recorded kernel allocated one by one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from collect.schema import HUGE_FRAME_PAGES

__all__ = ["spread"]

Int64 = npt.NDArray[np.int64]


def spread(pfn: Int64, n: int) -> int:
    """Most distinct 2 MiB frames among any n pages in a row of `pfn`; scaled up where there are fewer than n."""
    frame = pfn[pfn >= 0] // HUGE_FRAME_PAGES
    if not len(frame):
        return n
    if len(frame) < n:
        return min(n, -(-len(np.unique(frame)) * n // len(frame)))
    windows = np.lib.stride_tricks.sliding_window_view(frame, n)[:: max(n // 8, 1)]
    ordered = np.sort(windows, axis=1)
    return int((np.count_nonzero(np.diff(ordered, axis=1), axis=1) + 1).max())
