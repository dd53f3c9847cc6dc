"""Free memory over time, by the size of the free blocks, a panel for each zone: what is left to make 2M entries of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyze.pages.free_blocks import HUGE_ORDER, FreeBlocks
from analyze.plots.style import FAINT, INK, LEVELS, drawing, settled
from analyze.words.numbers import count, memory

__all__ = ["free_figure"]

PAGES_PER_GIB = 1 << 18
MAX_ZONES = 4
"""Panels: the zones with most free memory; on a machine of many nodes the rest is left out, and counted."""
LEAST_SHARE = 0.01
"""Of the largest zone's free memory; a zone with less of it is left out (ZONE_DMA's 15 MB)."""
MAX_MOMENTS = 800

_HALF = 5
"""Orders below it are "up to 64 KiB", from it on to 2M "128 KiB to 1 MiB"."""
_PARTS = (
    ("2M and more", HUGE_ORDER, 64, LEVELS["1G"].light),
    ("128 KiB to 1 MiB", _HALF, HUGE_ORDER, LEVELS["2M"].light),
    ("up to 64 KiB", 0, _HALF, LEVELS["4K"].light),
)


def free_figure(zones: Sequence[FreeBlocks], start_ns: int, duration_s: float) -> Figure | None:
    """The figure; None where no zone ever had free memory. `start_ns`: of the START snapshot, 0 of the time axis."""
    largest = max((int(zone.pages.max()) for zone in zones), default=0)
    worth = [zone for zone in zones if zone.pages.max() > largest * LEAST_SHARE]
    most = sorted(worth, key=lambda zone: -int(zone.pages.max()))
    kept = sorted(most[:MAX_ZONES], key=lambda zone: (zone.node, zone.zone))
    if not kept:
        return None
    with drawing():
        figure = Figure(figsize=(8.6, 0.7 + 1.35 * len(kept)), layout="constrained")
        panels = np.atleast_1d(figure.subplots(len(kept), 1, sharex=True))
        for axes, zone in zip(panels, kept, strict=True):
            _draw(axes, zone, start_ns)
        panels[-1].set_xlim(0.0, max(duration_s, 1e-3))
        panels[-1].set_xlabel("seconds since the start snapshot")
        n_left = len(zones) - len(kept)
        left = f" ({count(n_left, 'zone')} with less left out)" if n_left else ""
        panels[0].set_title(
            f"Free memory by the size of the free blocks{left}", loc="left", fontsize=10, fontweight="bold"
        )
        return settled(figure)


def _draw(axes: Axes, zone: FreeBlocks, start_ns: int) -> None:
    at = _moments(len(zone.ts_ns))
    t_s = (zone.ts_ns[at] - start_ns) / 1e9
    pages = zone.blocks[at] * (1 << np.arange(zone.blocks.shape[1]))
    below = np.zeros(len(at))
    labels = []
    for name, first, end, colour in _PARTS:
        above = below + pages[:, first:end].sum(axis=1) / PAGES_PER_GIB
        axes.fill_between(t_s, below, above, step="post", color=colour, linewidth=0)
        axes.plot(t_s, above, drawstyle="steps-post", color=FAINT if first else INK, linewidth=0.8)
        labels.append((name, int(pages[-1, first:end].sum())))
        below = above
    top = float(below.max()) or 1.0
    axes.set_ylim(0.0, top * 1.05)
    axes.set_ylabel(f"{zone.zone}, node {zone.node}\nfree [GiB]")
    for i, (name, n_pages) in enumerate(labels):
        axes.annotate(
            f"{name}: {memory(n_pages)}",
            (1.0, 0.12 + 0.32 * i),
            xycoords="axes fraction",
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            annotation_clip=False,
        )


def _moments(n: int) -> npt.NDArray[np.int64]:
    """At most MAX_MOMENTS of n readings, the first and last among them."""
    return np.unique(np.linspace(0, n - 1, min(n, MAX_MOMENTS)).astype(np.int64))
