"""Snapshots of the direct map that are exact while it changes.

A walk takes milliseconds to seconds, so changes happen meanwhile. Every piece of a snapshot carries the time in which
it was read; whatever a recorded change touched in that time is read again, until nothing was touched. What comes out is
exact for each 2 MiB frame as of its own time, which is all that the analyzer needs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from collect.pagetables import Leaves, Walker, runs
from collect.schema import LEAF_PAGES, TABLES, Level, Moment, Space

__all__ = ["Snapshot", "Touched", "still", "walk_once"]

U64 = npt.NDArray[np.uint64]
MAX_ROUNDS = 64
GIG_FRAMES = 512


class Touched(NamedTuple):
    """Changes of the direct map: when each ran, and the pages it was to change. Arrays of equal length."""

    entry_ns: U64
    exit_ns: U64
    pfn: U64
    n_pages: U64


class Snapshot(NamedTuple):
    """Leaves with the time in which each was read.

    Attributes:
        leaves: of the direct map.
        ts_ns, ts_end_ns: per leaf.
        image: of the kernel image's mapping; image_ts_ns, image_ts_end_ns: when it was read.
        n_unstable: units that kept changing until the rounds ran out (their rows are not exact).
        n_rounds: times that something had to be read again.
    """

    leaves: Leaves
    ts_ns: U64
    ts_end_ns: U64
    image: Leaves
    image_ts_ns: int
    image_ts_end_ns: int
    n_unstable: int
    n_rounds: int

    def table(self, number: int, moment: Moment) -> pa.Table:
        """Rows of the table `snapshots`."""
        image_size = len(self.image.pfn)
        image_ts = (
            np.full(image_size, self.image_ts_ns, np.uint64),
            np.full(image_size, self.image_ts_end_ns, np.uint64),
        )
        parts = [
            _rows(number, moment, Space.DIRECT_MAP, self.leaves, self.ts_ns, self.ts_end_ns),
            _rows(number, moment, Space.KERNEL_IMAGE, self.image, *image_ts),
        ]
        return pa.concat_tables(parts)

    def counts_kb(self) -> dict[str, int]:
        """Memory that each level maps in the direct map, in kB, as /proc/meminfo names it."""
        n = np.bincount(self.leaves.level, minlength=4)
        return {
            name: int(n[level]) * LEAF_PAGES[level] * 4
            for name, level in (("DirectMap4k", Level.K4), ("DirectMap2M", Level.M2), ("DirectMap1G", Level.G1))
        }


def walk_once(walker: Walker) -> Snapshot:
    """A single walk, for a moment at which changes are not recorded."""
    begin = time.monotonic_ns()
    leaves = walker.direct_map()
    end = time.monotonic_ns()
    image = walker.kernel_image()
    return Snapshot(leaves, _full(begin, leaves), _full(end, leaves), image, end, time.monotonic_ns(), 0, 0)


def still(walker: Walker, touched: Callable[[], Touched]) -> Snapshot:
    """A snapshot exact as of each piece's own time.

    Args:
        touched: drains the rings and returns every change seen since this call began. Must wait for the changes that
            were running when it was called.
    """
    first = walk_once(walker)
    leaves, begin, end = first.leaves, first.ts_ns, first.ts_end_ns
    window = np.array([[first.ts_ns[0], first.ts_end_ns[0]]], np.uint64)
    # Units read last, with their windows: at first one window for all.
    units: U64 | None = None
    for n_rounds in range(MAX_ROUNDS):
        again = _units_touched(touched(), leaves, units, window)
        if len(again) == 0:
            return Snapshot(leaves, begin, end, first.image, first.image_ts_ns, first.image_ts_end_ns, 0, n_rounds)
        leaves, begin, end, window, units = _read_again(walker, again, leaves, begin, end)
    return Snapshot(leaves, begin, end, first.image, first.image_ts_ns, first.image_ts_end_ns, len(again), MAX_ROUNDS)


def _units_touched(changes: Touched, leaves: Leaves, units: U64 | None, window: npt.NDArray[np.uint64]) -> U64:
    """Frames (2 MiB, by number) that a change touched while they were read.

    Where one 1G entry maps a frame, the first frame of its range stands for all 512: a split changes all of them.
    """
    last = changes.pfn + np.maximum(changes.n_pages, np.uint64(1)) - np.uint64(1)
    gig_leaves = leaves.pfn[leaves.level == Level.G1] >> np.uint64(18)
    found: list[U64] = []
    first_frame, last_frame = changes.pfn >> np.uint64(9), last >> np.uint64(9)
    for i in range(len(changes.pfn)):  # few: the changes of a moment
        frames = np.arange(int(first_frame[i]), int(last_frame[i]) + 1, dtype=np.uint64)
        in_gig = np.isin(frames >> np.uint64(9), gig_leaves)
        frames = np.where(in_gig, frames & ~np.uint64(GIG_FRAMES - 1), frames)
        if units is None:
            if changes.exit_ns[i] >= window[0, 0] and changes.entry_ns[i] <= window[0, 1]:
                found.append(frames)
            continue
        read = np.isin(units, frames) | np.isin(units, frames & ~np.uint64(GIG_FRAMES - 1))
        overlap = (changes.exit_ns[i] >= window[:, 0]) & (changes.entry_ns[i] <= window[:, 1])
        found.append(units[read & overlap])
    return np.unique(np.concatenate(found)) if found else np.empty(0, np.uint64)


def _read_again(
    walker: Walker, units: U64, leaves: Leaves, begin: U64, end: U64
) -> tuple[Leaves, U64, U64, npt.NDArray[np.uint64], U64]:
    gig_leaves = leaves.pfn[leaves.level == Level.G1] >> np.uint64(18)
    windows, parts, part_begin, part_end = [], [], [], []
    keep = np.ones(len(leaves.pfn), np.bool_)
    frame_of_leaf, gig_of_leaf = leaves.pfn >> np.uint64(9), leaves.pfn >> np.uint64(18)
    for unit in units:
        gig = unit >> np.uint64(9)
        whole_gig = gig in gig_leaves
        b = time.monotonic_ns()
        read = walker.gigs(np.array([gig], np.uint64)) if whole_gig else walker.frame(int(unit))
        e = time.monotonic_ns()
        whole_gig = whole_gig or bool(np.any(read.level == Level.G1))
        keep &= (gig_of_leaf != gig) if whole_gig else (frame_of_leaf != unit)
        windows.append((b, e))
        parts.append(read)
        part_begin.append(_full(b, read))
        part_end.append(_full(e, read))
    columns = [
        np.concatenate([old[keep], *new])
        for old, new in zip((*leaves, begin, end), (*zip(*parts, strict=True), part_begin, part_end), strict=True)
    ]
    order = np.argsort(columns[0], kind="stable")
    pfn, level, attrs, begin, end = (column[order] for column in columns)
    return Leaves(pfn, level, attrs), begin, end, np.array(windows, np.uint64), units


def _full(value: int, leaves: Leaves) -> U64:
    return np.full(len(leaves.pfn), value, np.uint64)


def _rows(number: int, moment: Moment, space: Space, leaves: Leaves, begin: U64, end: U64) -> pa.Table:
    at = runs(leaves.pfn, leaves.level, leaves.attrs, begin, end)
    n_leaves = np.diff(np.append(at, len(leaves.pfn)))
    n = len(at)
    columns = {
        "snapshot": np.full(n, number, np.uint32),
        "moment": np.full(n, moment, np.uint8),
        "ts_ns": begin[at],
        "ts_end_ns": end[at],
        "space": np.full(n, space, np.uint8),
        "pfn": leaves.pfn[at],
        "level": leaves.level[at],
        "n_leaves": n_leaves.astype(np.uint64),
        "attrs": leaves.attrs[at],
    }
    return pa.table(columns, schema=TABLES["snapshots"])
