"""A result in costs: counts times what each costs, intervals in and out, and what is not priced and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from replay.costs import UNITS, Cost, Costs
from replay.measures import BASELINE
from replay.published import RESULTS
from replay.results import Interval, PolicyResult

__all__ = ["Item", "Pricing", "costs_json", "price", "priced", "times"]


@dataclass(frozen=True)
class Item:
    """One unit priced.

    Attributes:
        cost: what each costs.
        count: how many there are.
        total: count times cost, in the cost's `sum_unit`.
        saved: the same of how many fewer there are than under the policy that it is held against; below 0: more.
    """

    cost: Cost
    count: Interval
    total: Interval
    saved: Interval


@dataclass(frozen=True)
class Pricing:
    """A result, priced.

    Attributes:
        items: in the order of `UNITS`.
        not_priced: by key, why: the file does not price it, or must not for this trace.
    """

    items: list[Item]
    not_priced: dict[str, str]

    @property
    def totals(self) -> dict[str, Interval]:
        """By unit, all items together."""
        return self._sums([(item.cost.sum_unit, item.total) for item in self.items])

    @property
    def saved(self) -> dict[str, Interval]:
        """By unit, what all items together save."""
        return self._sums([(item.cost.sum_unit, item.saved) for item in self.items])

    @staticmethod
    def _sums(parts: list[tuple[str, Interval]]) -> dict[str, Interval]:
        sums: dict[str, Interval] = {}
        for unit, value in parts:
            sums[unit] = sums[unit] + value if unit in sums else value
        return sums

    def to_json(self) -> dict[str, Any]:
        """Intervals as [lo, hi]; sums by unit, times in seconds."""
        return {
            "items": [
                {
                    "unit_priced": item.cost.key,
                    "count": item.count.to_json(),
                    "each": _exact(item.cost.each),
                    "unit": item.cost.unit,
                    "measured": item.cost.measured,
                    "source": item.cost.source,
                    "total": _exact(item.total),
                    "saved": _exact(item.saved),
                    "sum_unit": item.cost.sum_unit,
                }
                for item in self.items
            ],
            "totals": {unit: _exact(value) for unit, value in self.totals.items()},
            "saved": {unit: _exact(value) for unit, value in self.saved.items()},
            "not_priced": self.not_priced,
        }


def _exact(value: Interval) -> list[float]:
    """Not rounded: a nanosecond is a small part of a second."""
    return [value.lo, value.hi]


def times(count: Interval, each: Interval) -> Interval:
    """The product of two intervals; the second is not below 0."""
    corners = [a * b for a in (count.lo, count.hi) for b in (each.lo, each.hi)]
    return Interval(min(corners), max(corners))


def price(result: PolicyResult, base: PolicyResult, costs: Costs) -> Pricing:
    """Price a result, and what it saves against `base` of the same trace.

    A difference is priced as a whole, not as the difference of two prices: each costs the same on both sides, whatever it is.
    """
    items, not_priced = [], {}
    for key, unit in UNITS.items():
        cost = costs.by_key.get(key)
        why = "the file has no cost for it" if cost is None else _unfit(result, cost, costs)
        if cost is None or why:
            not_priced[key] = why
            continue
        count = unit.of(result)
        fewer = Interval(0, 0)
        if result is not base and not (base.policy == BASELINE and result.identity):
            fewer = unit.of(base) - count
        items.append(Item(cost, count, times(count, cost.scaled), times(fewer, cost.scaled)))
    return Pricing(items, not_priced)


def costs_json(costs: Costs | None) -> dict[str, Any]:
    """The keys `costs` and `published` of whatever is priced: null and empty where nothing is."""
    return {
        "costs": None if costs is None else costs.to_json(),
        "published": [] if costs is None else [one.to_json() for one in RESULTS],
    }


def priced(result: PolicyResult, results: Sequence[PolicyResult], costs: Costs) -> Pricing:
    """Price one of several results of a trace, against the one of them that is `none`."""
    return price(result, next(one for one in results if one.policy == BASELINE), costs)


def _unfit(result: PolicyResult, cost: Cost, costs: Costs) -> str:
    """Why a cost cannot be applied to this trace; "" if it can."""
    if UNITS[cost.key].of_time and result.emulated:
        return "the trace comes from an emulated machine, whose seconds are none"
    if cost.measured != "host":
        return ""
    if result.emulated:
        return "measured on the trace's host, which is emulated"
    cpu = str(result.provenance["cpu"])
    if cpu != costs.cpu:
        return f"measured on {costs.cpu[:60]}, and the trace's host is another: {cpu[:60]}"
    return ""
