"""How far a prediction carries to another run of the same load, on another kernel: an interval that was measured."""

from __future__ import annotations

import math

from replay.results import Interval

__all__ = ["APART", "another_run"]

APART = 0.09
"""Share of a count by which another run differs from the one recorded, and a kernel from another: pages come to lie elsewhere.
Chosen after three trial runs (most likely 54, 56.5 and 80 frames, measured 53, 56 and 75), then tried on the runs in
docs/validation.md (`make validate`)."""


def another_run(recorded: Interval) -> Interval:
    """The whole numbers among which a count of split frames should be when the load runs again.

    `recorded` is an interval for the recorded run itself: there the pages lie where they lay, and what is left open is left
    open by the trace alone. Both doubts have nothing to do with each other, so they add like errors: by their squares.
    """
    likely = recorded.point
    down = math.hypot(likely - recorded.lo, APART * likely)
    up = math.hypot(recorded.hi - likely, APART * likely)
    lo, hi = math.ceil(likely - down), math.floor(likely + up)
    return Interval(min(lo, hi), hi)
