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

__all__ = [
    "RangeSnapshot",
    "Snapshot",
    "Touched",
    "frames_split",
    "still",
    "still_range",
    "walk_once",
    "zone_counts_kb",
]

U64 = npt.NDArray[np.uint64]
MAX_ROUNDS = 64
MAX_NS = 60 * 10**9
"""A map that has not come to rest after so many rounds, or so long after the first walk, is taken as it is, and what moved is
counted."""

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
        n_again: 2M frames read again, each counted once.
    """

    leaves: Leaves
    ts_ns: U64
    ts_end_ns: U64
    image: Leaves
    image_ts_ns: int
    image_ts_end_ns: int
    n_unstable: int
    n_rounds: int
    n_again: int

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
        return _counts_kb(self.leaves.level)


def walk_once(walker: Walker, go_on: Callable[[], object] | None = None) -> Snapshot:
    """A single walk, for a moment at which changes are not recorded; `go_on` as for `still`."""
    begin = time.monotonic_ns()
    leaves = walker.direct_map(go_on)
    end = time.monotonic_ns()
    image = walker.kernel_image()
    return Snapshot(leaves, _full(begin, leaves), _full(end, leaves), image, end, time.monotonic_ns(), 0, 0, 0)


def still(walker: Walker, touched: Callable[[], Touched], go_on: Callable[[], object] | None = None) -> Snapshot:
    """A snapshot exact as of each piece's own time.

    Args:
        touched: drains the rings and returns every change seen since this call began. Must wait for the changes that
            were running when it was called.
        go_on: called often while page tables are read, for what cannot wait until all are: a big host has a million.
    """
    first = walk_once(walker, go_on)
    window = (int(first.ts_ns[0]), int(first.ts_end_ns[0]))
    leaves, begin, end, n_unstable, n_rounds, n_again = _until_still(walker, touched, first.leaves, window)
    return first._replace(
        leaves=leaves, ts_ns=begin, ts_end_ns=end, n_unstable=n_unstable, n_rounds=n_rounds, n_again=n_again
    )


class RangeSnapshot(NamedTuple):
    """Leaves of a range of pages alone, each with the time in which it was read.

    Attributes:
        first_pfn, end_pfn: the range.
        leaves, ts_ns, ts_end_ns: of the direct map; what no leaf covers was a hole
        window: when the whole range was read first.
        n_unstable: as in `Snapshot`.
    """

    first_pfn: int
    end_pfn: int
    leaves: Leaves
    ts_ns: U64
    ts_end_ns: U64
    window: tuple[int, int]
    n_unstable: int

    def table(self, number: int) -> pa.Table:
        """Rows of the table `snapshots`, of the moment HOTPLUG; holes have rows of their own, of level NONE."""
        end = self.leaves.pfn + np.array(LEAF_PAGES, np.uint64)[self.leaves.level]
        begins = np.concatenate([np.array([self.first_pfn], np.uint64), end])
        ends = np.concatenate([self.leaves.pfn, np.array([self.end_pfn], np.uint64)])
        hole = begins < ends
        n = int(hole.sum())
        columns = {
            "snapshot": np.full(n, number, np.uint32),
            "moment": np.full(n, Moment.HOTPLUG, np.uint8),
            "ts_ns": np.full(n, self.window[0], np.uint64),
            "ts_end_ns": np.full(n, self.window[1], np.uint64),
            "space": np.full(n, Space.DIRECT_MAP, np.uint8),
            "pfn": begins[hole],
            "level": np.full(n, Level.NONE, np.uint8),
            "n_leaves": (ends - begins)[hole],
            "attrs": np.zeros(n, np.uint64),
        }
        holes = pa.table(columns, schema=TABLES["snapshots"])
        leaves = _rows(number, Moment.HOTPLUG, Space.DIRECT_MAP, self.leaves, self.ts_ns, self.ts_end_ns)
        return pa.concat_tables([leaves, holes])


def still_range(walker: Walker, touched: Callable[[], Touched], first_pfn: int, end_pfn: int) -> RangeSnapshot:
    """A snapshot of the pages [first_pfn, end_pfn) alone, exact as that of `still`.

    Entries that reach beyond the range are left out; hotplug makes none (split_mem_range, arch/x86/mm/init.c).
    """
    gigs = np.arange(first_pfn // LEAF_PAGES[Level.G1], -(-end_pfn // LEAF_PAGES[Level.G1]), dtype=np.uint64)
    window_begin = time.monotonic_ns()
    read = walker.gigs(gigs)
    window = (window_begin, time.monotonic_ns())
    leaves, begin, end, n_unstable, _, _ = _until_still(walker, touched, read, window)
    pages = np.array(LEAF_PAGES, np.uint64)[leaves.level]
    inside = (leaves.pfn >= np.uint64(first_pfn)) & (leaves.pfn + pages <= np.uint64(end_pfn))
    inside &= np.isin(leaves.pfn >> np.uint64(18), gigs)
    mine = Leaves(leaves.pfn[inside], leaves.level[inside], leaves.attrs[inside])
    return RangeSnapshot(first_pfn, end_pfn, mine, begin[inside], end[inside], window, n_unstable)


def _until_still(
    walker: Walker, touched: Callable[[], Touched], leaves: Leaves, read: tuple[int, int]
) -> tuple[Leaves, U64, U64, int, int, int]:
    """Leaves read in the window `read`, with what changed meanwhile read again until nothing does.

    Returns leaves, the times of each, units that never came to rest, rounds, and frames read again.
    """
    begin, end = _full(read[0], leaves), _full(read[1], leaves)
    window = np.array([read], np.uint64)
    # Units read last, with their windows: at first one window for all.
    units: U64 | None = None
    read_again = np.empty(0, np.uint64)
    for n_rounds in range(MAX_ROUNDS + 1):
        again = _units_touched(touched(), leaves, units, window)
        tired = n_rounds == MAX_ROUNDS or int(window[:, 1].max()) - read[1] > MAX_NS
        if len(again) == 0 or tired:
            break
        leaves, begin, end, window, units = _read_again(walker, again, leaves, begin, end)
        read_again = np.union1d(read_again, units)
    return leaves, begin, end, len(again), n_rounds, len(read_again)


def _units_touched(changes: Touched, leaves: Leaves, units: U64 | None, window: npt.NDArray[np.uint64]) -> U64:
    """Frames (2 MiB, by number) that a change touched while they were read.

    Where one 1G entry maps a frame, the first frame of its range stands for all 512: a split changes all of them.
    """
    near = (changes.exit_ns >= window[:, 0].min()) & (changes.entry_ns <= window[:, 1].max())
    entry_ns, exit_ns, pfn, n_pages = (column[near] for column in changes)
    last = pfn + np.maximum(n_pages, np.uint64(1)) - np.uint64(1)
    first_frame, last_frame = pfn >> np.uint64(9), last >> np.uint64(9)
    gig_leaves = leaves.pfn[leaves.level == Level.G1] >> np.uint64(18)
    if units is None:  # one window, so each range of frames counts once, however often it changed
        ranges = np.unique(np.column_stack([first_frame, last_frame]), axis=0)
        first_frame, last_frame = ranges[:, 0], ranges[:, 1]
    found: list[U64] = []
    for i in range(len(first_frame)):  # few: the changes of a moment
        frames = np.arange(int(first_frame[i]), int(last_frame[i]) + 1, dtype=np.uint64)
        in_gig = np.isin(frames >> np.uint64(9), gig_leaves)
        frames = np.where(in_gig, frames & ~np.uint64(GIG_FRAMES - 1), frames)
        if units is None:
            found.append(frames)
        else:
            overlap = (exit_ns[i] >= window[:, 0]) & (entry_ns[i] <= window[:, 1])
            found.append(units[np.isin(units, frames) & overlap])
    return np.unique(np.concatenate(found)) if found else np.empty(0, np.uint64)


class _Piece(NamedTuple):
    """What one reading gave: a frame's leaves, or those of a whole 1 GiB range; when; and the frames it stands for."""

    leaves: Leaves
    begin_ns: int
    end_ns: int
    frames: U64


def _read_again(
    walker: Walker, units: U64, leaves: Leaves, begin: U64, end: U64
) -> tuple[Leaves, U64, U64, npt.NDArray[np.uint64], U64]:
    """The snapshot with some units read again; the windows of these readings and the frames that each covers.

    A 1 GiB range that was read as a whole counts as all its 512 frames: a change of any of them meanwhile matters,
    even if the range came out as smaller leaves.
    """
    gig_leaves = set((leaves.pfn[leaves.level == Level.G1] >> np.uint64(18)).tolist())
    pieces: dict[int, list[_Piece]] = {}
    whole: set[int] = set()
    for unit in units.tolist():
        gig = unit >> 9
        if gig in whole:
            continue
        b = time.monotonic_ns()
        read = walker.gigs(np.array([gig], np.uint64)) if gig in gig_leaves else walker.frame(unit)
        e = time.monotonic_ns()
        if gig in gig_leaves or np.any(read.level == Level.G1):
            whole.add(gig)
            frames = np.arange(gig * GIG_FRAMES, (gig + 1) * GIG_FRAMES, dtype=np.uint64)
            pieces[gig] = [_Piece(read, b, e, frames)]
        else:
            pieces.setdefault(gig, []).append(_Piece(read, b, e, np.array([unit], np.uint64)))
    new = [piece for of_gig in pieces.values() for piece in of_gig]
    covered = np.concatenate([piece.frames for piece in new])
    windows = np.concatenate([np.tile(np.array([p.begin_ns, p.end_ns], np.uint64), (len(p.frames), 1)) for p in new])
    # A 1G leaf is gone as a whole: whatever touched it had its whole range read again.
    keep = ~np.isin(leaves.pfn >> np.uint64(9), covered)
    pfn = np.concatenate([leaves.pfn[keep], *(piece.leaves.pfn for piece in new)])
    order = np.argsort(pfn, kind="stable")
    joined = Leaves(
        pfn[order],
        np.concatenate([leaves.level[keep], *(piece.leaves.level for piece in new)])[order],
        np.concatenate([leaves.attrs[keep], *(piece.leaves.attrs for piece in new)])[order],
    )
    begins = np.concatenate([begin[keep], *(_full(piece.begin_ns, piece.leaves) for piece in new)])[order]
    ends = np.concatenate([end[keep], *(_full(piece.end_ns, piece.leaves) for piece in new)])[order]
    return joined, begins, ends, windows, covered


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


def frames_split(before: Leaves, after: Leaves) -> int:
    """2M frames that were mapped by one large entry in `before` and are in 4K entries in `after`."""
    small_before = np.unique(before.pfn[before.level == Level.K4] >> np.uint64(9))
    small_after = np.unique(after.pfn[after.level == Level.K4] >> np.uint64(9))
    return len(np.setdiff1d(small_after, small_before, assume_unique=True))


def zone_counts_kb(leaves: Leaves, zones: dict[str, tuple[int, int]]) -> dict[str, dict[str, int]]:
    """As `Snapshot.counts_kb`, by the zone in which a leaf begins.

    Args:
        zones: first and end page frame number of each; `outside` is where none of them is (reserved memory).
    """
    found: dict[str, dict[str, int]] = {}
    left = np.ones(len(leaves.pfn), bool)
    for zone, (first, end) in zones.items():
        inside = left & (leaves.pfn >= np.uint64(first)) & (leaves.pfn < np.uint64(end))
        left &= ~inside
        found[zone] = _counts_kb(leaves.level[inside])
    return found | ({"outside": _counts_kb(leaves.level[left])} if left.any() else {})


def _counts_kb(levels: npt.NDArray[np.uint8]) -> dict[str, int]:
    n = np.bincount(levels, minlength=4)
    return {
        name: int(n[level]) * LEAF_PAGES[level] * 4
        for name, level in (("DirectMap4k", Level.K4), ("DirectMap2M", Level.M2), ("DirectMap1G", Level.G1))
    }
