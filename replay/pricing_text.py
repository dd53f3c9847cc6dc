"""Prices for a terminal: sums a policy, what each unit costs and who says so, what is not priced, and who disagrees."""

from __future__ import annotations

from collections.abc import Sequence

from analyze.words.terminal import COLUMNS, clean, wrapped
from replay.costs import Costs
from replay.pricing import Pricing
from replay.published import published_lines
from replay.results import Interval

__all__ = ["amount", "pricing_lines"]

_SECONDS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"))


def pricing_lines(
    costs: Costs, priced: Sequence[tuple[str, Pricing]], against: str, *, emulated: bool = False
) -> list[str]:
    """Lines under 80 columns, ASCII. `priced`: what each policy is called, and its prices."""
    title = f" ({clean(costs.title, 200)})" if costs.title else ""
    lines = ["", *wrapped(f"Priced by {clean(costs.name)}{title}, saved against {clean(against)}:")]
    lines += _sums(priced)
    items = {item.cost.key: item.cost for _, pricing in priced for item in pricing.items}
    for cost in items.values():
        each = f"{_figures(cost.each)} {clean(cost.unit, 30)}"
        note = f" {clean(cost.note, 500)}" if cost.note else ""
        lines += wrapped(f"- {cost.key}: {each} each ({cost.measured}; {clean(cost.source, 500)}).{note}", hang=2)
    reasons: dict[str, list[str]] = {}
    for key, why in {key: why for _, pricing in priced for key, why in pricing.not_priced.items()}.items():
        reasons.setdefault(why, []).append(key)
    for why, keys in reasons.items():
        lines += wrapped(f"- Not priced: {', '.join(keys)}; {clean(why, 200)}.", hang=2)
    if emulated:
        lines += wrapped(
            "- Recorded on an emulated machine: what was counted is priced, what its clock says is not.", hang=2
        )
    if not any(key.startswith("leaf-") for key in items):
        lines += wrapped(
            "- What a load pays for entries that are split, in TLB misses, is in none of these prices.", hang=2
        )
    return [*lines, "", *published_lines()]


def _sums(priced: Sequence[tuple[str, Pricing]]) -> list[str]:
    """A line a policy and unit: how much in all, how much saved."""
    rows = [
        (label if i == 0 else "", amount(total, unit), amount(pricing.saved[unit], unit))
        for label, pricing in priced
        for i, (unit, total) in enumerate(pricing.totals.items())
    ]
    if not rows:
        return ["  nothing"]
    widths = [max(len(row[i]) for row in [*rows, ("", "in all", "saved")]) for i in (1, 2)]
    width = max(8, min(max(len(row[0]) for row in rows), COLUMNS - sum(widths) - 6))
    lines = [f"  {'':<{width}}  {'in all':>{widths[0]}}  {'saved':>{widths[1]}}"]
    for label, total, saved in rows:
        name = clean(label, COLUMNS - 2)
        if len(name) > width:
            lines.append(f"  {name}")
            name = ""
        lines.append(f"  {name:<{width}}  {total:>{widths[0]}}  {saved:>{widths[1]}}")
    return lines


def amount(value: Interval, unit: str) -> str:
    """An amount with its unit: `1.2-3.4 ms`, `-5 to 7 cycles`; seconds in the unit that suits them."""
    name = clean(unit, 20)
    if unit == "s":
        most = max(abs(value.lo), abs(value.hi))
        factor, name = next(((f, n) for f, n in _SECONDS if most >= f), (1.0, "s") if not most else _SECONDS[-1])
        value = Interval(value.lo / factor, value.hi / factor)
    return f"{_figures(value)} {name}"


def _figures(value: Interval) -> str:
    lo, hi = _figure(value.lo), _figure(value.hi)
    if lo == hi:
        return hi
    return f"{lo}-{hi}" if value.lo >= 0 else f"{lo} to {hi}"


def _figure(number: float) -> str:
    """At most four figures where it is no whole number."""
    if abs(number) >= 1000:
        return f"{number:,.0f}"
    return f"{number:.4g}"
