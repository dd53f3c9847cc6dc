"""What a replay found out about one policy: numbers as intervals, curves over time, and what they do not say."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Interval", "PolicyResult", "Series"]

Float = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A number that the trace decides (`lo == hi`), or the bounds between which it leaves it open.

    Attributes:
        lo, hi: the bounds.
        expected: what the policy holds for likeliest between them (see its docstring for how it comes about); None: it
            prefers nothing, and whoever needs one number takes the middle (`point`).
    """

    lo: float
    hi: float
    expected: float | None = None

    def __post_init__(self) -> None:
        if not self.lo <= self.hi:
            raise ValueError(f"not an interval: {self.lo} to {self.hi}")
        if self.expected is not None and not self.lo <= self.expected <= self.hi:
            raise ValueError(f"expected {self.expected}, which is not from {self.lo} to {self.hi}")

    @property
    def exact(self) -> bool:
        return self.lo == self.hi

    @property
    def point(self) -> float:
        """One number for it, to hold a measurement against: what is expected, else the middle."""
        return (self.lo + self.hi) / 2 if self.expected is None else self.expected

    def __str__(self) -> str:
        return _number(self.lo) if self.exact else f"{_number(self.lo)}–{_number(self.hi)}"

    @property
    def text(self) -> str:
        """The same in ASCII, for a terminal: `12`, `3-12`, `-4 to 12`."""
        if self.exact:
            return _number(self.lo)
        return f"{_number(self.lo)}{'-' if self.lo >= 0 else ' to '}{_number(self.hi)}"

    def __add__(self, other: Interval) -> Interval:
        return Interval(self.lo + other.lo, self.hi + other.hi)

    def __sub__(self, other: Interval) -> Interval:
        return Interval(self.lo - other.hi, self.hi - other.lo)

    def __or__(self, other: Interval) -> Interval:
        """The smallest interval that holds both; nothing is expected of it."""
        return Interval(min(self.lo, other.lo), max(self.hi, other.hi))

    def to_json(self) -> list[float | int]:
        """[lo, hi], whole numbers as integers."""
        return [int(v) if float(v).is_integer() else round(float(v), 3) for v in (self.lo, self.hi)]


def _number(value: float) -> str:
    return f"{int(value):,}" if float(value).is_integer() else f"{value:,.1f}"


@dataclass(frozen=True)
class Series:
    """Curves over time, one value a moment and bound; all arrays of one length, at least 1.

    Attributes:
        t_s: seconds since the start snapshot, ascending; a value holds until the next moment.
        split_lo, split_hi: distinct 2M frames split so far.
        live_lo, live_hi: of those, how many hold a special page at this moment.
        idle_lo, idle_hi: pages that the policy holds and nobody uses.
        by_user: (lower, upper) of the distinct 2M frames that a user's changes split first, by user; those who split any.
    """

    t_s: Float
    split_lo: Float
    split_hi: Float
    live_lo: Float
    live_hi: Float
    idle_lo: Float
    idle_hi: Float
    by_user: dict[str, tuple[Float, Float]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Lists; `by_user` as {user: {"lo": [...], "hi": [...]}}."""
        curves: dict[str, Any] = {
            name: _listed(getattr(self, name)) for name in self.__dataclass_fields__ if name != "by_user"
        }
        curves["by_user"] = {user: {"lo": _listed(lo), "hi": _listed(hi)} for user, (lo, hi) in self.by_user.items()}
        return curves


def _listed(curve: Float) -> list[float]:
    return [round(float(value), 6) for value in curve]


@dataclass(frozen=True)
class PolicyResult:
    """One policy on one trace.

    Attributes:
        policy, title: name and one line.
        identity: the policy moved nothing (see `replay.policies.Outcome`).
        split_2m: distinct 2M frames whose entry was split during the recording.
        split_2m_live_end, split_2m_live_peak: those of them that hold a special page (one that is not present or not
            writable, so that the frame could not be one 2M entry again), at the end and at most.
        split_2m_by_user: split_2m by whose change split the frame first; a block's frame counts from 0 to 1.
        split_frame_seconds: frames split while recording, summed up over the seconds since each was; from 0 where large
            entries are put back, for when is not followed. By the clock of the recording: see `emulated`.
        split_1g: distinct 1G entries split.
        merges: large entries that were put back by the policy; each flushes every TLB.
        leaf_entries_start, leaf_entries_end: entries that map the direct map.
        page_table_pages_start, page_table_pages_end: tables below the level of 1G entries, 4 KiB each.
        cpa_calls: primary calls of `__change_page_attr_set_clr`.
        cpa_steps: pieces of calls that reached the direct map's page tables.
        tlb_flushes_split: flushes of everything on every CPU, one a split (`split_large_page`).
        tlb_flushes_call: flushes at the end of a call (`cpa_flush`: everything, where an alias was changed).
        tlb_flushes_ranged: flushes of a range: by a refill, by vfree's reset, by secretmem's fault.
        idle_pages_mean, idle_pages_peak, idle_pages_end: pages that the policy holds and nobody uses.
        pages_unmapped: pages that the policy itself took out of the direct map.
        pages_released: pages given back under memory pressure, or because nobody needed them.
        refills: by order, largest first. refill_failures: refills that got nothing.
        requests: total, served, not_served, as_recorded (not the policy's business).
        requests_not_served: the last as an interval.
        requests_by_user, served_by_user, not_served_by_user: of all requests, of those that the policy served, of those that
            failed.
        series: curves over time.
        caveats, narrow: what the numbers do not say; what would narrow the intervals.
        emulated: recorded on an emulated machine, so that its times say nothing of a real one.
        as_asked: the recorded kernel's own caches were taken away first (see `replay.requests`).
        parameters: of the policy, as they were set.
        provenance: trace, kernel, tool.
    """

    policy: str
    title: str
    identity: bool
    split_2m: Interval
    split_2m_live_end: Interval
    split_2m_live_peak: Interval
    split_2m_by_user: dict[str, Interval]
    split_frame_seconds: Interval
    split_1g: Interval
    merges: Interval
    leaf_entries_start: Interval
    leaf_entries_end: Interval
    page_table_pages_start: Interval
    page_table_pages_end: Interval
    cpa_calls: Interval
    cpa_steps: Interval
    tlb_flushes_split: Interval
    tlb_flushes_call: Interval
    tlb_flushes_ranged: Interval
    idle_pages_mean: Interval
    idle_pages_peak: Interval
    idle_pages_end: Interval
    pages_unmapped: Interval
    pages_released: Interval
    refills: dict[int, Interval]
    refill_failures: Interval
    requests: dict[str, int]
    requests_not_served: Interval
    requests_by_user: dict[str, int]
    served_by_user: dict[str, int]
    not_served_by_user: dict[str, int]
    series: Series
    caveats: list[str] = field(default_factory=list)
    narrow: list[str] = field(default_factory=list)
    emulated: bool = False
    as_asked: bool = False
    parameters: dict[str, str] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Strict JSON: intervals as [lo, hi], curves as lists, no NaN; under `expected` what is expected of each, where
        the policy says so.
        """
        result: dict[str, Any] = {"expected": {}}
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if name in ("refills", "split_2m_by_user"):
                result[name] = {str(key): count.to_json() for key, count in value.items()}
            elif isinstance(value, Interval | Series):
                result[name] = value.to_json()
                if isinstance(value, Interval) and value.expected is not None:
                    result["expected"][name] = round(value.expected, 3)
            else:
                result[name] = value
        return result
