"""A policy over the values of a parameter: bounds as bands, one line a value of the second parameter."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator

from analyze.plots.style import FAINT, INK, drawing
from replay.measures import MEASURES, Measure
from replay.plots_compare import COLOURS, MARKS, PANELS
from replay.side_by_side import Row
from replay.sweep import Sweep

__all__ = ["sweep_figure"]

_DASHES = ["solid", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.2, 1.5)), (0, (3, 3)), (0, (8, 3)), (0, (1, 3))]
_HATCHES = ["", "////", "\\\\\\\\", "||||", "----", "++", "xx"]

MANY_TIMES = 32
"""Where the largest number is so many times the smallest, the axis is one of powers of two."""

MOST_TICKS = 12


def sweep_figure(found: Sweep) -> Figure:
    """Four panels of one parameter on the same axis; dotted: the policy that savings are held against."""
    axis, base = found.axes[0], found.base.result.policy
    if len(found.axes) > 1 and found.axes[1].numeric and not axis.numeric:
        axis = found.axes[1]
    at = found.axes.index(axis)
    lines: dict[str | int, list[tuple[str | int, Row]]] = {}
    for values, row in found.points:
        other = values[1 - at] if len(values) > 1 else ""
        lines.setdefault(other, []).append((values[at], row))
    of = {measure.key: measure for measure in MEASURES}
    with drawing():
        figure = Figure(figsize=(8.6, 5.2), layout="constrained")
        panels = figure.subplots(2, 2, sharex=True)
        for axes, (key, (label, unit)) in zip(panels.flat, PANELS.items(), strict=True):
            for number, (other, points) in enumerate(lines.items()):
                _line(axes, axis.values, points, of[key], unit, number, str(other))
            recorded = of[key].of(found.base.result)
            for edge in {recorded.lo, recorded.hi}:
                axes.axhline(edge / unit, color=INK, linewidth=0.8, linestyle=":", label=f"under {base}")
            axes.set_title(label.replace("\n", " "), loc="left", fontsize=9)
            axes.set_ylim(bottom=0.0)
            axes.margins(y=0.08)
            axes.grid(axis="y", color=FAINT, linewidth=0.4)
            axes.set_axisbelow(True)
        _ticks(panels[1][0], axis.values)
        for axes in panels[1]:
            axes.set_xlabel(axis.titled)
        emulated = ", recorded on an emulated machine" if found.base.result.emulated else ""
        figure.suptitle(
            f"{found.policy} on {found.base.trace}{emulated}", x=0.01, ha="left", fontsize=10, fontweight="bold"
        )
        handles, labels = panels[0][0].get_legend_handles_labels()
        shown = {label: handle for handle, label in zip(handles, labels, strict=True)}
        names = [found.axes[1 - at].label] if len(found.axes) > 1 else []
        figure.legend(
            shown.values(), shown.keys(), loc="outside lower left", ncols=6, frameon=False, fontsize=8.5,
            title=" ".join(names) or None, alignment="left", title_fontsize=8.5,
        )  # fmt: skip
    return figure


def _places(values: list[str | int]) -> list[float]:
    """Where each value lies on the axis: numbers at themselves, or at their logarithm; words one after another."""
    numbers = [value for value in values if isinstance(value, int)]
    if len(numbers) < len(values):
        return [float(i) for i in range(len(values))]
    if min(numbers) > 0 and max(numbers) >= MANY_TIMES * min(numbers):
        return [float(np.log2(number)) for number in numbers]
    return [float(number) for number in numbers]


def _line(
    axes: Axes, values: list[str | int], points: list[tuple[str | int, Row]], measure: Measure, unit: float, number: int,
    label: str,
) -> None:  # fmt: skip
    places = dict(zip(values, _places(values), strict=True))
    bounds = [measure.of(row.result) for _, row in points]
    order = np.argsort([places[value] for value, _ in points], kind="stable")
    x = np.array([places[value] for value, _ in points])[order]
    lo = np.array([one.lo for one in bounds])[order] / unit
    hi = np.array([one.hi for one in bounds])[order] / unit
    colour, mark = COLOURS[number % len(COLOURS)], MARKS[number % len(MARKS)]
    look: dict[str, Any] = {
        "color": colour,
        "marker": mark,
        "markersize": max(3.0, 5.5 - number),
        "linestyle": _DASHES[number % len(_DASHES)],
        "clip_on": False,
    }
    words = not isinstance(values[0], int)
    if words:  # side by side, for they have no line
        x = x + 0.06 * number
    if np.any(hi > lo):
        if words:
            axes.vlines(x, lo, hi, color=colour, linewidth=3.0, alpha=0.45)
        else:
            axes.fill_between(
                x, lo, hi, facecolor=colour, alpha=0.16, edgecolor=colour, hatch=_HATCHES[number % 7], linewidth=0
            )
        axes.plot(x, lo, **{**look, "linestyle": "none"} if words else look, linewidth=0.8)
    axes.plot(x, hi, **{**look, "linestyle": "none"} if words else look, linewidth=1.4, label=label or "bounds")


def _ticks(axes: Axes, values: list[str | int]) -> None:
    """A tick a value, thinned out where there are many."""
    step = -(-len(values) // MOST_TICKS)
    places, shown = _places(values)[::step], [str(value) for value in values[::step]]
    axes.xaxis.set_major_locator(FixedLocator(places))
    axes.xaxis.set_major_formatter(FixedFormatter(shown))
