"""How far a prediction carries to another run of the same load, on another kernel: an interval that was measured."""

from __future__ import annotations

import math

from replay.results import Interval

__all__ = ["WIDER", "another_run"]

WIDER = 0.10
"""An interval for one recorded run, widened by this share of each end, held for other runs of the same load: another run
lies elsewhere in memory, and another kernel places pages otherwise. Chosen after three trial runs (most likely 54, 56.5 and 80
frames, measured 53, 56 and 75), then tried on the runs in docs/validation.md (`make validate`)."""


def another_run(recorded: Interval) -> Interval:
    """The interval in which a count of split frames should fall when the load runs again, in whole frames.

    `recorded` is an interval for the recorded run itself: there the pages lie where they lay, and what is left open is left
    open by the trace alone.
    """
    return Interval(math.floor(recorded.lo * (1 - WIDER)), math.ceil(recorded.hi * (1 + WIDER)))
