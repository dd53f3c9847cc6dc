"""What each policy would have left: an interval of frames a policy, between the recording and what no policy can beat, and what it holds idle."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from analyze.plots.style import FAINT, INK, LEVELS, USERS, drawing, settled
from replay.judgement import BOUND, SUBJECT, frames_apart
from replay.judgement_words import between
from replay.measures import BASELINE
from replay.policies.eager_merge import SUFFIX
from replay.results import Interval, PolicyResult

__all__ = ["in_order", "puts_together", "saved_figure"]

_PAGES_PER_MIB = 256
_DONE, _BAR, _MINE = INK, LEVELS["4K"].light, USERS["module"].light
_HATCH = "////"


def in_order(results: Sequence[PolicyResult]) -> list[PolicyResult]:
    """As a reader compares them: the recording, then policies by what they leave at worst, then the bound."""
    rank = {BASELINE: 0, BOUND: 2}
    return sorted(
        results,
        key=lambda r: (rank.get(r.policy.partition(":")[0], 1), frames_apart(r).hi, r.idle_pages_peak.hi, r.policy),
    )


def puts_together(result: PolicyResult) -> bool:
    """Whether a policy merges entries again: then what it leaves are the frames apart at once, and not all that were ever split."""
    return bool(result.policy.partition(SUFFIX)[1])


def saved_figure(results: Sequence[PolicyResult]) -> Figure:
    """A row a policy: on the left frames left in 4K entries, on the right memory held idle; solid up to the lower end of what the
    trace leaves open, hatched up to the upper."""
    rows = in_order(results)
    with drawing():
        figure = Figure(figsize=(8.6, 1.15 + 0.31 * max(len(rows), 1)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=[2.4, 1.0])
        _panel(left, rows, [frames_apart(r) for r in rows], 1.0)
        _panel(right, rows, [r.idle_pages_peak for r in rows], _PAGES_PER_MIB)
        _bounds(left, rows)
        left.set_yticks(range(len(rows)), [f"{r.policy}, at once" if puts_together(r) else r.policy for r in rows])
        for label, result in zip(left.get_yticklabels(), rows, strict=True):
            label.set_fontweight("bold" if result.policy.startswith(SUBJECT) else "normal")
        left.set_ylim(len(rows) - 0.4, -0.6)
        left.set_xlabel("2M frames split (at once: apart at the same time, at most)")
        right.set_xlabel("held idle, at most [MiB]")
        left.set_title("What each policy leaves of these splits", loc="left", fontsize=10, fontweight="bold")
        right.set_title("and what it holds for that", loc="left", fontsize=10, fontweight="bold")
        return settled(figure)


def _panel(axes: Axes, rows: Sequence[PolicyResult], values: Sequence[Interval], unit: float) -> None:
    most = max((value.hi for value in values), default=0.0) / unit or 1.0
    for i, (result, value) in enumerate(zip(rows, values, strict=True)):
        colour = _DONE if result.policy == BASELINE else _MINE if result.policy.startswith(SUBJECT) else _BAR
        lo, hi = value.lo / unit, value.hi / unit
        axes.add_patch(Rectangle((0, i - 0.3), lo, 0.6, facecolor=colour, edgecolor=colour, linewidth=0.8))
        if hi > lo:
            axes.add_patch(
                Rectangle((lo, i - 0.3), hi - lo, 0.6, facecolor="none", edgecolor=colour, hatch=_HATCH, linewidth=0.9)
            )
        text = between(value) if unit == 1.0 else _mib(lo, hi)
        axes.annotate(text, (hi, i), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8.5)
    axes.set_xlim(0.0, most * 1.22)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=FAINT, linewidth=0.4)
    axes.set_axisbelow(True)


def _mib(lo: float, hi: float) -> str:
    ends = [f"{n:.0f}" if n >= 10 or n == 0 else f"{n:.1f}" for n in (lo, hi)]
    return ends[0] if ends[0] == ends[1] else "–".join(ends)


def _bounds(axes: Axes, rows: Sequence[PolicyResult]) -> None:
    """A line at what was recorded, and one below which no policy can get."""
    for result in rows:
        name = result.policy.partition(":")[0]
        if result.policy == BASELINE:
            axes.axvline(result.split_2m.hi, color=INK, linewidth=0.9, linestyle=(0, (2, 2)), zorder=0.5)
        elif name == BOUND and result.split_2m.lo > 0:
            axes.axvline(result.split_2m.lo, color=INK, linewidth=0.9, linestyle="solid", zorder=3)
