"""What policies are held against each other by: a few numbers of a result, each with its name and unit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from replay.results import Interval, PolicyResult

__all__ = ["BASELINE", "COST", "MAP", "MEASURES", "Measure", "saved", "saved_by_user", "summed"]

BASELINE = "none"
"""Policy that changes nothing: what was recorded."""


@dataclass(frozen=True)
class Measure:
    """One number of a result.

    Attributes:
        key: its name in JSON and CSV.
        title: in words, for an axis.
        head: for the head of a narrow column; lines.
        unit: what is counted.
    """

    key: str
    title: str
    head: tuple[str, ...]
    unit: str
    of: Callable[[PolicyResult], Interval]


def summed(*intervals: Interval) -> Interval:
    """Their sum; 0 for none."""
    total = Interval(0, 0)
    for one in intervals:
        total += one
    return total


MAP = (
    Measure("split_2m", "2M frames split", ("2M", "split"), "frames", lambda r: r.split_2m),
    Measure(
        "split_2m_live_end", "of them live at the end", ("live", "at end"), "frames", lambda r: r.split_2m_live_end
    ),
    Measure("split_1g", "1G entries split", ("1G", "split"), "entries", lambda r: r.split_1g),
    Measure(
        "page_table_pages_end",
        "page-table pages at the end",
        ("table", "pages"),
        "pages",
        lambda r: r.page_table_pages_end,
    ),
)
"""What became of the map."""

COST = (
    Measure("cpa_calls", "calls that change the map", ("calls",), "calls", lambda r: r.cpa_calls),
    Measure(
        "tlb_flushes",
        "TLB flushes of any kind",
        ("TLB", "flushes"),
        "flushes",
        lambda r: summed(r.tlb_flushes_split, r.tlb_flushes_call, r.tlb_flushes_ranged, r.merges),
    ),
    Measure("idle_pages_mean", "idle pages, mean", ("idle", "mean"), "pages", lambda r: r.idle_pages_mean),
    Measure("idle_pages_peak", "idle pages at most", ("idle", "at most"), "pages", lambda r: r.idle_pages_peak),
    Measure("refills", "refills", ("refills",), "refills", lambda r: summed(*r.refills.values())),
    Measure(
        "requests_not_served", "requests not served", ("not", "served"), "requests", lambda r: r.requests_not_served
    ),
)
"""What that took."""

MEASURES = MAP + COST


def saved(base: PolicyResult, result: PolicyResult, measure: Measure) -> Interval:
    """How much less of it than under `base`; below 0 where it is more.

    A policy that moved nothing saved nothing of what was recorded, whatever the width of the intervals.
    """
    if result is base or (base.policy == BASELINE and result.identity):
        return Interval(0, 0)
    return measure.of(base) - measure.of(result)


def saved_by_user(base: PolicyResult, result: PolicyResult) -> dict[str, Interval]:
    """By user, how many 2M frames less its changes split first than under `base`."""
    nothing = Interval(0, 0)
    users = dict.fromkeys((*base.split_2m_by_user, *result.split_2m_by_user))
    if result is base or (base.policy == BASELINE and result.identity):
        return dict.fromkeys(users, nothing)
    return {
        user: base.split_2m_by_user.get(user, nothing) - result.split_2m_by_user.get(user, nothing) for user in users
    }
