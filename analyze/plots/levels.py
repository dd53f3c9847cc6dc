"""Memory mapped by 1G, 2M and 4K entries over time, and under it, on the same time axis, who split what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyze.plots.style import FAINT, INK, LEVELS, PAPER, USERS, drawing, settled
from analyze.words.numbers import memory, number

__all__ = ["LevelsOverTime", "Moments", "SplitsOverTime", "draw_users", "levels_figure", "users_present"]

PAGES_PER_GIB = 1 << 18
MAX_LABELS = 6
MAX_MOMENTS = 64
SLICES = 800
"""Moments in a figure: more ticks or steps than this cannot be told apart at any size that we draw."""


@dataclass(frozen=True)
class LevelsOverTime:
    """Pages of 4 KiB mapped by each level, from each moment on; all arrays of one length, at least 1."""

    t_s: npt.NDArray[np.float64]
    pages_1g: npt.NDArray[np.int64]
    pages_2m: npt.NDArray[np.int64]
    pages_4k: npt.NDArray[np.int64]


@dataclass(frozen=True)
class SplitsOverTime:
    """One row a split, in order of time; all arrays of one length."""

    t_s: npt.NDArray[np.float64]
    user: npt.NDArray[np.object_]
    """A key of `USERS`; anything else is drawn as "other"."""
    is_1g: npt.NDArray[np.bool_]
    """True where a 1G entry became 2M entries, False where a 2M entry became 4K entries."""


@dataclass(frozen=True)
class Moments:
    """What else happened, on the same time axis; `lost` are spans (from, to) in which changes were not seen."""

    lost: Sequence[tuple[float, float]] = ()
    came_and_went: Sequence[tuple[float, str]] = ()
    """Memory that was added or removed, in words."""


def levels_figure(
    levels: LevelsOverTime, splits: SplitsOverTime, duration_s: float, moments: Moments | None = None
) -> Figure:
    """The figure. `duration_s` is the length of the recording, the end of the time axis."""
    rows = max(len(users_present(splits)), 1)
    with drawing():
        figure = Figure(figsize=(8.6, 2.9 + 0.42 * rows), layout="constrained")
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[2.3, 0.42 * rows])
        _draw_levels(top, levels, splits, duration_s, moments or Moments())
        draw_users(bottom, splits, duration_s)
        return settled(figure)


def users_present(splits: SplitsOverTime) -> list[str]:
    """Users who split anything, in the order of the legend."""
    return [name for name in USERS if np.any(_users(splits) == name)]


def _users(splits: SplitsOverTime) -> npt.NDArray[np.object_]:
    known = np.isin(splits.user.astype(str), list(USERS))
    return np.where(known, splits.user, "other")


def _draw_levels(
    axes: Axes, levels: LevelsOverTime, splits: SplitsOverTime, duration_s: float, moments: Moments
) -> None:
    kept = _last_of_slices(levels.t_s, duration_s)
    t_s = np.append(levels.t_s[kept], max(duration_s, float(levels.t_s[-1])))
    parts = {"1G": levels.pages_1g[kept], "2M": levels.pages_2m[kept], "4K": levels.pages_4k[kept]}
    below = np.zeros(len(t_s))
    for name, pages in parts.items():
        gib = np.append(pages, pages[-1]) / PAGES_PER_GIB
        above = below + gib
        axes.fill_between(t_s, below, above, step="post", color=LEVELS[name].light, linewidth=0)
        axes.plot(t_s, above, drawstyle="steps-post", color=FAINT if name != "4K" else INK, linewidth=0.8)
        below = above
    total = float(below.max())
    axes.set_ylim(0.0, total * 1.02 if total else 1.0)
    axes.set_ylabel("physical memory [GiB]")
    axes.set_title("Memory by the size of the entries that map it", loc="left", fontsize=10, fontweight="bold")
    _label_ends(axes, parts, total)
    for from_s, to_s in list(moments.lost)[:MAX_MOMENTS]:
        axes.axvspan(
            from_s,
            max(to_s, from_s + duration_s / 500),
            facecolor="none",
            edgecolor=INK,
            hatch="xxx",
            linewidth=0,
            zorder=3,
        )
    _draw_moments(axes, _told(splits, moments), duration_s)


def _told(splits: SplitsOverTime, moments: Moments) -> list[tuple[float, str]]:
    """Moments that matter, in order of time: 1G entries split, by whom; changes that were lost; memory that came or went."""
    users = _users(splits)
    found = [(float(splits.t_s[i]), f"1G split by {USERS[users[i]].label}") for i in np.flatnonzero(splits.is_1g)]
    found += [(from_s, "changes lost") for from_s, _ in moments.lost] + list(moments.came_and_went)
    return sorted(found)


def _draw_moments(axes: Axes, told: Sequence[tuple[float, str]], duration_s: float) -> None:
    """A dotted line each; as many with words as find room, one under the other in turn, the others counted."""
    for t, _ in told[:MAX_MOMENTS]:
        axes.axvline(t, color=INK, linewidth=0.7, linestyle=(0, (2, 2)), zorder=3)
    shown = list(told[:MAX_LABELS])
    if len(told) > MAX_LABELS:
        shown[-1] = (shown[-1][0], f"{shown[-1][1]}, and {number(len(told) - MAX_LABELS)} more")
    for i, (t, text) in enumerate(shown):
        right = t > 0.7 * duration_s
        axes.annotate(
            text,
            (t, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(-4 if right else 4, -11 - 12 * (i % 3)),
            textcoords="offset points",
            ha="right" if right else "left",
            fontsize=8,
            zorder=5,
            bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1.0, "alpha": 0.8},
        )


def _label_ends(axes: Axes, parts: dict[str, npt.NDArray[np.int64]], total: float) -> None:
    """Name each level at the right edge with what it held at the start and at the end."""
    floor = 0.0
    wanted: list[tuple[float, str]] = []
    for name, pages in parts.items():
        end = float(pages[-1]) / PAGES_PER_GIB
        wanted.append((floor + end / 2, f"{name}  {memory(int(pages[0]))} → {memory(int(pages[-1]))}"))
        floor += end
    gap = 0.12 * (total or 1.0)
    y = -gap
    placed: list[float] = []
    for position, _ in wanted:
        y = max(position, y + gap)
        placed.append(y)
    excess = max(0.0, placed[-1] - (total or 1.0))
    for (_, text), height in zip(wanted, placed, strict=True):
        axes.annotate(
            text,
            (1.0, height - excess),
            xycoords=("axes fraction", "data"),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            annotation_clip=False,
        )


def draw_users(axes: Axes, splits: SplitsOverTime, duration_s: float) -> None:
    """A row for each user: how many 2M entries it has split so far, a tick for each split, a diamond for a 1G entry."""
    users, present = _users(splits), users_present(splits)
    most = max((int(np.sum((users == name) & ~splits.is_1g)) for name in present), default=1) or 1
    for row, name in enumerate(reversed(present)):
        look, own = USERS[name], users == name
        t_2m, t_1g = splits.t_s[own & ~splits.is_1g], splits.t_s[own & splits.is_1g]
        kept = _last_of_slices(t_2m, duration_s)
        steps = np.concatenate([[0.0], t_2m[kept], [duration_s]])
        counts = np.concatenate([[0], kept + 1, [len(t_2m)]]) / most * 0.62
        base = row + 0.2
        axes.fill_between(steps, base, base + counts, step="post", color=look.light, alpha=0.55, linewidth=0)
        axes.plot(steps, base + counts, drawstyle="steps-post", color=look.light, linewidth=1.0)
        ticks = t_2m[kept]
        xs = np.repeat(ticks, 3)
        ys = np.tile([row + 0.04, row + 0.18, np.nan], len(ticks))
        axes.plot(xs, ys, color=look.light, linewidth=0.8, solid_capstyle="butt")
        if len(t_1g):
            _draw_diamonds(axes, t_1g[_last_of_slices(t_1g, duration_s)], row + 0.5, look.light)
        axes.annotate(
            f"{number(len(t_2m))} × 2M" + (f", {number(len(t_1g))} × 1G" if len(t_1g) else ""),
            (1.0, row + 0.42),
            xycoords=("axes fraction", "data"),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            annotation_clip=False,
        )
        if row:
            axes.axhline(row - 0.04, color=FAINT, linewidth=0.5)
    axes.set_yticks(np.arange(len(present)) + 0.42, [USERS[name].label for name in reversed(present)])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(-0.04, max(len(present), 1))
    axes.set_title(
        "Who split it: a tick for each 2M entry, ◆ for a 1G entry, rising with the count",
        loc="left",
        fontsize=10,
        fontweight="bold",
    )
    axes.set_xlim(0.0, max(duration_s, 1e-3))
    axes.set_xlabel("seconds since the start snapshot")
    if not present:
        axes.text(0.5, 0.5, "nobody split anything", transform=axes.transAxes, ha="center", va="center")


def _draw_diamonds(axes: Axes, t_s: npt.NDArray[np.float64], y: float, colour: str) -> None:
    axes.plot(
        t_s,
        np.full(len(t_s), y),
        linestyle="none",
        marker="D",
        markersize=5.5,
        markerfacecolor=colour,
        markeredgecolor=INK,
        markeredgewidth=0.9,
        clip_on=False,
        zorder=4,
    )


def _last_of_slices(t_s: npt.NDArray[np.float64], duration_s: float) -> npt.NDArray[np.int64]:
    """Of moments in ascending order, the index of the first, and of the last in each of SLICES equal slices of time."""
    if len(t_s) == 0:
        return np.zeros(0, np.int64)
    in_slice = np.floor(t_s / max(duration_s, 1e-9) * SLICES)
    last = np.append(np.flatnonzero(np.diff(in_slice)), len(t_s) - 1)
    return np.unique(np.append(0, last)).astype(np.int64)
