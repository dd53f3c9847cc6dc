"""When events were lost, and when nobody looked: from the counters that the recorder read once a second."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from analyze.counter_series import CounterSeries
from analyze.losses import ARRAY_PAGES, CONCLUSIONS, loss_of
from analyze.words.plain_text import plain
from collect.trace import Trace

__all__ = ["MAX_SPANS", "Gap", "LossSpan", "Lost", "gaps_between_readings", "losses_over_time"]

GAP_SECONDS = 2.5
"""The recorder reads its counters once a second; two readings further apart than this are a gap."""

MAX_SPANS = 50
"""Spans of time that are listed of each class of loss, and gaps; all are counted."""


@dataclass(frozen=True)
class LossSpan:
    """`lost` events of a class between two readings of its counter (neighbouring ones joined), seconds since START."""

    from_s: float
    to_s: float
    lost: int


@dataclass(frozen=True)
class Lost:
    """One class of loss. `spans` do not add up to `lost` where the recorder counted some only when it ended."""

    name: str
    text: str
    lost: int
    puts_in_doubt: list[str]
    spans: list[LossSpan]
    n_spans: int


@dataclass(frozen=True)
class Gap:
    """Seconds since START between which no counter was read."""

    from_s: float
    to_s: float


def losses_over_time(trace: Trace, array_pages: int, series: CounterSeries) -> list[Lost]:
    """Classes with losses, most lost first. `array_pages`: of pages arrays, which no counter tells."""
    totals = {str(name): int(n) for name, n in trace.manifest["losses"].items() if n}
    if array_pages:
        totals[ARRAY_PAGES] = array_pages
    start = trace.manifest["ts_start_ns"]
    found = []
    for name, n in sorted(totals.items(), key=lambda item: (-item[1], item[0])):
        spans = _spans(*series.grown(f"lost/{name}"), start)
        loss = loss_of(name)
        doubts = [text for doubt, text in CONCLUSIONS.items() if loss.doubt & doubt]
        found.append(Lost(plain(name, 60), plain(loss.text, 80), n, doubts, spans[:MAX_SPANS], len(spans)))
    return found


def _spans(
    begin: npt.NDArray[np.int64], end: npt.NDArray[np.int64], lost: npt.NDArray[np.int64], start_ns: int
) -> list[LossSpan]:
    """Neighbouring readings with losses as one span."""
    if not len(begin):
        return []
    first = np.flatnonzero(np.concatenate([[True], begin[1:] > end[:-1]]))
    sums = np.add.reduceat(lost, first)
    last = np.append(first[1:], len(begin)) - 1
    return [
        LossSpan((int(begin[a]) - start_ns) / 1e9, (int(end[b]) - start_ns) / 1e9, int(n))
        for a, b, n in zip(first.tolist(), last.tolist(), sums.tolist(), strict=True)
    ]


def gaps_between_readings(series: CounterSeries, start_ns: int, end_ns: int) -> tuple[list[Gap], float]:
    """Gaps between readings while recording, the time before the first and behind the last of them included."""
    within = series.readings[(series.readings > start_ns) & (series.readings < end_ns)]
    marks = np.concatenate([[start_ns], within, [max(end_ns, start_ns)]]).astype(np.int64)
    apart = np.diff(marks) / 1e9
    at = np.flatnonzero(apart > GAP_SECONDS)
    since = (marks - start_ns) / 1e9
    return [Gap(float(since[i]), float(since[i + 1])) for i in at.tolist()], float(apart.max())
