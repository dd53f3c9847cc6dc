"""Rows of measures for CSV: one value a cell, a lower and an upper bound for each measure."""

from __future__ import annotations

from replay.measures import MEASURES
from replay.results import Interval
from replay.side_by_side import Row, SideBySide
from replay.sweep import Sweep

__all__ = ["comparison_csv", "sweep_csv"]


def _cells(row: Row) -> dict[str, object]:
    """`KEY_lo`, `KEY_hi` of each measure, and `saved_KEY_lo`, `saved_KEY_hi` of each."""
    cells: dict[str, object] = {}
    for measure in MEASURES:
        for name, value in ((measure.key, measure.of(row.result)), (f"saved_{measure.key}", row.saved[measure.key])):
            cells |= _bounds(name, value)
    return cells


def _bounds(name: str, value: Interval) -> dict[str, object]:
    lo, hi = value.to_json()
    return {f"{name}_lo": lo, f"{name}_hi": hi}


def comparison_csv(found: SideBySide) -> list[dict[str, object]]:
    """A row a trace and policy."""
    return [
        {
            "trace": row.trace,
            "kernel": str(row.result.provenance["kernel"]),
            "policy": row.result.policy,
            "against": found.against,
            **_cells(row),
        }
        for row in found.rows
    ]


def sweep_csv(found: Sweep) -> list[dict[str, object]]:
    """A row a combination of values; the first two columns say of what."""
    return [
        {
            "trace": row.trace,
            "policy": found.policy,
            **{axis.label: value for axis, value in zip(found.axes, values, strict=True)},
            **_cells(row),
        }
        for values, row in found.points
    ]
