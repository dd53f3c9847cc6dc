"""The arithmetic of the benchmark: cost of an event, ratios of a round, the interval of a median, growth of memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

__all__ = ["EVENTS_PER_PAGE", "Spread", "cost_per_event_ns", "growth", "slope_per_minute", "spread"]

EVENTS_PER_PAGE = 2
"""One allocation and one free: what a page of `populate_and_drop` causes at least."""

COVERAGE = 0.95


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest of one figure over the rounds, and an interval that holds the true median.

    `coverage` is the chance with which it does: at least 0.95 where there are six rounds or more, what the smallest and
    the largest give where there are fewer.
    """

    median: float
    smallest: float
    largest: float
    low: float
    high: float
    coverage: float
    rounds: int


def spread(values: Sequence[float]) -> Spread:
    """Spread of `values`, one a round; raises ValueError if there are none.

    The interval is that of the sign test: the k-th smallest and the k-th largest value enclose the median with
    probability 1 - 2 P(B < k), B binomial (n, 1/2), whatever the distribution. The largest k that reaches 95 %
    is taken.
    """
    ordered = sorted(values)
    n = len(ordered)
    if not n:
        raise ValueError("no round, no spread")
    k = max((k for k in range(1, n // 2 + 1) if _sign_coverage(n, k) >= COVERAGE), default=1)
    return Spread(
        median=median(ordered),
        smallest=ordered[0],
        largest=ordered[-1],
        low=ordered[k - 1],
        high=ordered[n - k],
        coverage=max(0.0, _sign_coverage(n, k)),
        rounds=n,
    )


def _sign_coverage(n: int, k: int) -> float:
    return float(1 - 2 * sum(math.comb(n, i) for i in range(k)) / 2**n)


def cost_per_event_ns(
    rate_traced: float, rate_untraced: float, *, processes: int = 1, events_per_page: float = EVENTS_PER_PAGE
) -> float:
    """Nanoseconds that one event costs the process that causes it.

    Args:
        rate_traced: pages per second of all processes together, with the tracer.
        rate_untraced: the same without, from the same round.
        processes: how many ran at once; each has had its own CPU, so a page took it `processes` / rate.
        events_per_page: events that a page causes.
    """
    return processes * (1 / rate_traced - 1 / rate_untraced) / events_per_page * 1e9


def slope_per_minute(seconds: Sequence[float], values: Sequence[float]) -> float:
    """Slope of the least-squares line through `values` at `seconds`, per minute; 0 for fewer than two moments."""
    n = len(seconds)
    if n < 2:
        return 0.0
    mean_s, mean_v = sum(seconds) / n, sum(values) / n
    square = sum((s - mean_s) ** 2 for s in seconds)
    return 60 * sum((s - mean_s) * (v - mean_v) for s, v in zip(seconds, values, strict=True)) / square


def growth(values: Sequence[float]) -> float:
    """Largest value of the last third over the largest of the middle third, less 1.

    The first third is the time in which buffers reach their size. Maxima, since what is written in segments rises and
    falls with each of them.
    """
    third = len(values) // 3
    if not third:
        raise ValueError("three samples at least")
    return max(values[-third:]) / max(values[third:-third]) - 1
