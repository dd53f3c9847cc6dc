"""2M frames split over time, a line a policy, with a band where the trace leaves it open."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyze.plots.style import FAINT, PAPER, USERS, drawing, inline_svg
from replay.results import PolicyResult

__all__ = ["png", "split_figure", "svg"]

Floats = npt.NDArray[np.float64]

_COLOURS = [USERS[name].light for name in ("other", "module", "bpf", "ftrace", "kprobe", "secretmem", "collector")]
"""Okabe and Ito's, as everywhere; the line's dashes and the label at its end tell policies apart without colour."""
_DASHES = ["solid", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.2, 1.5)), (0, (3, 3)), (0, (8, 3)), (0, (1, 3))]
_HATCHES = ["", "////", "\\\\\\\\", "||||", "----", "++", "xx"]  # of lines: dots make an SVG ten times larger


def split_figure(results: Sequence[PolicyResult]) -> Figure:
    """Two panels on one time axis: 2M frames split since the start, and pages held idle."""
    with drawing():
        low = max(1.0, len(results) / 5)  # room for a label a policy, where most hold nothing
        figure = Figure(figsize=(8.6, 4.6 * (2.6 + low) / 3.6), layout="constrained")
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[2.6, low])
        _panel(top, results, "split", 1.0)
        top.set_ylabel("2M frames split")
        top.set_title("2M frames of the direct map split, by policy", loc="left", fontsize=10, fontweight="bold")
        _panel(bottom, results, "idle", 256.0)
        bottom.set_ylabel("idle [MiB]")
        bottom.set_title("Memory held by the policy and used by nobody", loc="left", fontsize=10, fontweight="bold")
        emulated = any(r.emulated for r in results)
        bottom.set_xlabel("seconds since the start snapshot" + (", on an emulated machine" if emulated else ""))
        last = max((float(r.series.t_s[-1]) for r in results), default=1.0)
        bottom.set_xlim(0.0, last or 1.0)
    return figure


def _panel(axes: Axes, results: Sequence[PolicyResult], curve: str, unit: float) -> None:
    """Lines at the upper bounds, bands down to the lower ones, each named at its right end."""
    tops: list[tuple[float, str, str]] = []
    highest = 0.0
    for i, result in enumerate(results):
        again = i // 7  # a colour that comes again has other dashes
        colour, dashes, hatch = _COLOURS[i % 7], _DASHES[(i + again) % 7], _HATCHES[(i + again) % 7]
        t, lo, hi = _corners(result, curve)
        lo, hi = lo / unit, hi / unit
        if np.any(hi > lo):
            axes.fill_between(
                t, lo, hi, step="post", facecolor=colour, alpha=0.16, edgecolor=colour, hatch=hatch, linewidth=0
            )
            axes.plot(t, lo, drawstyle="steps-post", color=colour, linewidth=0.8, linestyle=dashes)
        axes.plot(t, hi, drawstyle="steps-post", color=colour, linewidth=1.6, linestyle=dashes)
        highest = max(highest, float(hi.max()))
        text = f"{result.policy}  {_ends(float(lo[-1]), float(hi[-1]))}"
        if result.identity and any(not other.identity for other in results):
            text += "  (as recorded)" if result.policy != "none" else ""
        tops.append((float(hi[-1]), text, colour))
    axes.set_ylim(0.0, highest * 1.05 if highest else 1.0)
    axes.grid(axis="y", color=FAINT, linewidth=0.4)
    axes.set_axisbelow(True)
    _label_ends(axes, tops)


def _corners(result: PolicyResult, curve: str) -> tuple[Floats, Floats, Floats]:
    """Time and bounds of a curve where either bound changes, and at the end: what a picture of steps needs."""
    lo, hi = getattr(result.series, f"{curve}_lo"), getattr(result.series, f"{curve}_hi")
    keep = np.concatenate(([True], (np.diff(lo) != 0) | (np.diff(hi) != 0)))
    keep[-1] = True
    return result.series.t_s[keep], lo[keep], hi[keep]


def _label_ends(axes: Axes, tops: list[tuple[float, str, str]]) -> None:
    """Write each label at the height where its line ends, pushed apart where they would touch."""
    bottom, top = axes.get_ylim()
    gap = (top - bottom) * 16.0 / max(axes.get_window_extent().height * 72.0 / axes.figure.dpi, 60.0)
    height = bottom - gap
    placed = []
    for value, text, colour in sorted(tops):
        height = max(value, height + gap)
        placed.append((height, text, colour))
    for y, text, colour in placed:
        axes.annotate(
            text,
            (1.0, y),
            xycoords=("axes fraction", "data"),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=colour,
            fontweight="bold",
            annotation_clip=False,
        )


def _ends(lo: float, hi: float) -> str:
    return f"{hi:,.0f}" if round(lo) == round(hi) else f"{lo:,.0f}–{hi:,.0f}"


def svg(results: Sequence[PolicyResult]) -> str:
    """The figure as an <svg> element for a page that holds `analyze.plots.style.CSS` (it also stands alone, light)."""
    ends = "; ".join(f"{r.policy} {r.split_2m}" for r in results)
    return inline_svg(split_figure(results), "replay", f"2M frames split over time by policy, at the end: {ends}")


def png(results: Sequence[PolicyResult]) -> bytes:
    """The figure as PNG, on white."""
    buffer = io.BytesIO()
    figure = split_figure(results)
    with drawing():
        figure.savefig(buffer, format="png", metadata={"Software": None}, facecolor=PAPER, dpi=200)
    return buffer.getvalue()
