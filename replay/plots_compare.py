"""Traces and policies as intervals on the same axes: a line a pair, a panel a measure."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analyze.plots.style import FAINT, INK, USERS, drawing
from replay.measures import MEASURES
from replay.side_by_side import SideBySide

__all__ = ["COLOURS", "MARKS", "compare_figure", "span"]

COLOURS = [USERS[name].light for name in ("other", "module", "bpf", "ftrace", "kprobe", "secretmem", "collector")]
MARKS = ["o", "s", "^", "D", "v", "P", "X"]
"""Traces are told apart by mark and order, not by colour alone."""

PANELS: dict[str, tuple[str, float]] = {
    "split_2m": ("2M frames split", 1.0),
    "page_table_pages_end": ("page-table pages\nat the end", 1.0),
    "tlb_flushes": ("TLB flushes", 1.0),
    "idle_pages_peak": ("held idle at most\n[MiB]", 256.0),
}
"""Key of a measure: label of its axis, and how many of its units one of the axis is."""

MOST_ROWS = 400
"""Lines of a picture; more of them nobody reads, and a picture of a metre's height few programs open."""


def compare_figure(found: SideBySide) -> Figure:
    """A panel a measure; bars from lower to upper bound, one mark where both are one, dotted lines where all are held against."""
    traces, policies = found.traces, found.policies
    lanes = {(row.trace, row.result.policy): row for row in found.rows}
    keys = [key for key in ((t, p) for p in policies for t in traces) if key in lanes][:MOST_ROWS]
    gap = 0.6 if len(traces) > 1 else 0.0
    at = {key: i + gap * policies.index(key[1]) for i, key in enumerate(keys)}
    with drawing():
        figure = Figure(figsize=(8.6, 1.5 + 0.17 * (max(at.values(), default=0) + 1)), layout="constrained")
        panels = figure.subplots(1, len(PANELS), sharey=True, squeeze=False)[0]
        of = {measure.key: measure for measure in MEASURES}
        for axes, (key, (label, unit)) in zip(panels, PANELS.items(), strict=True):
            for number, trace in enumerate(traces):
                first = next(row for row in found.rows if row.trace == trace)
                bounds = of[key].of(first.result)
                for edge in {bounds.lo, bounds.hi}:
                    axes.axvline(edge / unit, color=_colour(number), linewidth=0.7, linestyle=":")
            for pair in keys:
                value = of[key].of(lanes[pair].result)
                span(axes, at[pair], value.lo / unit, value.hi / unit, traces.index(pair[0]))
            axes.set_xlabel(label)
            axes.set_xlim(left=0.0)
            axes.margins(x=0.06)
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            axes.grid(axis="x", color=FAINT, linewidth=0.4)
            axes.set_axisbelow(True)
            axes.tick_params(axis="y", length=0)
        middle = {p: [at[key] for key in keys if key[1] == p] for p in policies}
        named = [(sum(ys) / len(ys), p) for p, ys in middle.items() if ys]
        panels[0].set_yticks([y for y, _ in named], [p for _, p in named])
        panels[0].set_ylim(max(at.values(), default=0) + 0.8, -0.8)
        emulated = ", recorded on emulated machines" if any(row.result.emulated for row in found.rows) else ""
        title = f"What each policy would have made of {'each trace' if len(traces) > 1 else traces[0]}{emulated}"
        figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
        handles = [_handle(number, trace) for number, trace in enumerate(traces)] if len(traces) > 1 else []
        handles.append(Line2D([], [], color=INK, linestyle=":", linewidth=0.7, label=f"under {found.against}"))
        figure.legend(handles=handles, loc="outside lower left", ncols=4, frameon=False, fontsize=8.5)
    return figure


def span(axes: Axes, y: float, lo: float, hi: float, number: int) -> None:
    """One interval: a bar between two marks of trace `number`, which are one where the trace decides."""
    colour, mark = _colour(number), MARKS[number % len(MARKS)]
    if lo < hi:
        axes.plot([lo, hi], [y, y], color=colour, linewidth=3.0, solid_capstyle="butt", alpha=0.45)
    axes.plot([lo, hi], [y, y], color=colour, marker=mark, markersize=4.0, linestyle="none", clip_on=False)


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _handle(number: int, trace: str) -> Line2D:
    return Line2D(
        [], [], color=_colour(number), marker=MARKS[number % len(MARKS)], markersize=4.5, linestyle="none", label=trace
    )
