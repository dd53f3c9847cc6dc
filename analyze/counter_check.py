"""Splits found in a trace against those that /proc/vmstat counted in the same time.

The counters (split_page_count, arch/x86/mm/pat/set_memory.c) hold the splits of the direct map and of the kernel's
high mapping, but not those made through decoy addresses (set_mce_nospec), which fail virt_addr_valid().
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from analyze.directmap import FRAME, Window
from analyze.jit import kernel
from analyze.reconstruct import NOT_PREDICTED, Rebuild
from analyze.stacks import Stacks
from collect.errors import TraceError
from collect.schema import LEAF_PAGES, ChangeKind, Level, Moment, Space
from collect.trace import Trace

__all__ = ["SplitCount", "check_counters", "counter"]

_COUNTERS = {Level.M2: "vmstat/direct_map_level2_splits", Level.G1: "vmstat/direct_map_level3_splits"}
DECOYS = ("set_mce_nospec", "clear_mce_nospec")


@dataclass
class SplitCount:
    """Splits of one level in the time between the two readings of the counter.

    Attributes:
        found: in the direct map: rebuilt, and (`margin` of them) seen by the probe in frames whose state was read
            only later, or had been read already.
        high: in the kernel's high mapping.
        decoys: of `found`, made through decoy addresses, which the kernel does not count.
        counted: what the kernel counted; None where it does not count.
        countable: entries of this level that the kernel believed in at the first reading; once its count is down to 0
            it counts no more splits. None where it does not say.
        slack: changes that ran while a counter was read and frames changed in the margin without
            the probe having looked at them.
    """

    found: int
    margin: int
    high: int
    decoys: int
    counted: int | None
    countable: int | None
    slack: int

    @property
    def agree(self) -> bool | None:
        """Whether found + high - decoys is what was counted; None where nothing was counted."""
        if self.counted is None:
            return None
        expected = self.found + self.high - self.decoys
        if self.countable is not None:
            expected = min(expected, self.countable)
        return abs(expected - self.counted) <= self.slack


def check_counters(rebuilt: Rebuild, stacks: Stacks) -> dict[Level, SplitCount]:
    """Both levels. Without counters the whole time between the START and END snapshots is looked at."""
    readings = {level: counter(rebuilt.trace, name) for level, name in _COUNTERS.items()}
    return {level: _count(rebuilt, stacks, level, readings[level]) for level in (Level.M2, Level.G1)}


def counter(trace: Trace, name: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
    """Times and values of one counter (by its whole name), in order of time. Raises TraceError for times centuries after boot."""
    table = trace.table("counters")
    mine = table["counter"].to_numpy(zero_copy_only=False) == name
    ts, values = table["ts_ns"].to_numpy()[mine], table["value"].to_numpy()[mine]
    if len(ts) and ts.max() >= 1 << 62:
        raise TraceError(f"{trace.path}: table counters: a time stamp is centuries after boot; copy the trace anew")
    order = np.argsort(ts, kind="stable")
    return ts[order].astype(np.int64), values[order]


def _count(
    rebuilt: Rebuild, stacks: Stacks, level: Level, reading: tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]
) -> SplitCount:
    changes, splits = rebuilt.changes, rebuilt.splits
    start, end = rebuilt.start.ts_first, rebuilt.end.ts_last if rebuilt.end else rebuilt.trace.manifest["ts_end_ns"]
    ts, values = reading
    counted = None
    first, last = start, end
    if len(ts) >= 2:
        at = max(int(np.searchsorted(ts, start, "right")) - 1, 0)  # the last reading before the start snapshot
        to = min(int(np.searchsorted(ts, end, "left")), len(ts) - 1)  # the first one after the end snapshot
        first, last = int(ts[at]), int(ts[to])
        counted = int(values[to]) - int(values[at])
    entry, leave = changes.columns["ts_ns"], changes.exit_ns
    cpa = (changes.columns["kind"] == ChangeKind.CPA) & changes.direct
    outside = cpa & ((leave <= first) | (entry >= last))
    rows = splits.loc[splits["level"] == level, "row"].to_numpy(np.int64)
    rows = rows[~outside[rows]]
    margin, unseen = 0, 0
    slack = cpa & (((entry < first) & (leave > first)) | ((entry < last) & (leave > last)))
    if counted is not None:
        not_rebuilt = cpa & ~outside & (rebuilt.prediction.level_first == NOT_PREDICTED) & (changes.n_pages > 0)
        margin = _margin(rebuilt, level, np.flatnonzero(not_rebuilt))
        unseen = _unseen_frames(
            np.flatnonzero(cpa & ~outside & (changes.n_pages > 1)),
            entry,
            leave,
            changes.first_pfn,
            changes.n_done,
            changes.pfns,
            changes.pfns_start,
            rebuilt.window,
        )
    decoy_stack = stacks.having(DECOYS)[stacks.known(changes.columns["stack_id"][rows])]
    return SplitCount(
        found=len(rows) + margin,
        margin=margin,
        high=_high_mapping(rebuilt, level, first, last),
        decoys=int(decoy_stack.sum()),
        counted=counted,
        countable=_countable(rebuilt, first) if level == Level.G1 else None,
        slack=int(slack.sum()) + unseen,
    )


def _margin(rebuilt: Rebuild, level: Level, rows: npt.NDArray[np.int64]) -> int:
    """Splits between a counter and the reading of the frame: what the probe saw at one end, the snapshot at the other."""
    if not len(rows):
        return 0
    columns, size = rebuilt.changes.columns, LEAF_PAGES[level]
    pfn = rebuilt.changes.first_pfn[rows]
    early = rebuilt.changes.exit_ns[rows] <= rebuilt.window.lo[pfn // FRAME]
    seen = pd.DataFrame(
        {
            "block": pfn // size,
            "before": np.where(early, columns["level_before"][rows], rebuilt.final.level_of(pfn)),
            "after": np.where(early, rebuilt.start.map.level_of(pfn), columns["level_first"][rows]),
            "early": early,
        }
    )
    blocks = seen.groupby(["block", "early"]).agg({"before": "max", "after": "min"})
    return int(((blocks["before"] >= level) & (blocks["after"] < level) & (blocks["after"] > 0)).sum())


def _countable(rebuilt: Rebuild, at_ns: int) -> int | None:
    """1G entries by /proc/meminfo at a time. Splits never add to them (nor is that so of 2M entries), but new memory may."""
    columns = rebuilt.changes.columns
    added = columns["kind"] == ChangeKind.HOTPLUG_ADD
    if ((columns["level_first"][added] == Level.G1) | (columns["level_last"][added] == Level.G1)).any():
        return None
    ts, kilobytes = counter(rebuilt.trace, "meminfo/DirectMap1G")
    at = int(np.searchsorted(ts, at_ns, "right")) - 1
    return int(kilobytes[max(at, 0)]) >> 20 if len(ts) else None


@kernel
def _unseen_frames(
    rows: npt.NDArray[np.int64],
    entry_ns: npt.NDArray[np.int64],
    exit_ns: npt.NDArray[np.int64],
    first_pfn: npt.NDArray[np.int64],
    n_done: npt.NDArray[np.int64],
    pfns: npt.NDArray[np.int64],
    pfns_start: npt.NDArray[np.int64],
    window: Window,
) -> int:
    """2M frames that calls on several pages changed outside the snapshots' times, but for each call's first one."""
    n = 0
    for row in rows:
        begin, stop = pfns_start[row], pfns_start[row + 1]
        if stop > begin:
            for at in range(begin + 1, begin + n_done[row]):
                frame = pfns[at] // FRAME
                if exit_ns[row] <= window.lo[frame] or entry_ns[row] >= window.hi[frame]:
                    n += 1
        else:
            for frame in range(first_pfn[row] // FRAME + 1, (first_pfn[row] + n_done[row] - 1) // FRAME + 1):
                if exit_ns[row] <= window.lo[frame] or entry_ns[row] >= window.hi[frame]:
                    n += 1
    return n


def _high_mapping(rebuilt: Rebuild, level: Level, first: int, last: int) -> int:
    """Splits in the kernel's high mapping: as observed, else by what the probe saw: a block whose level fell below `level`."""
    seen_done = rebuilt.observed
    if seen_done.observed:
        within = (seen_done.image_ts_ns > first) & (seen_done.image_ts_ns < last)
        return int((within & (seen_done.image_level == level)).sum())
    columns = rebuilt.changes.columns
    rows = np.flatnonzero(
        (columns["space"] == Space.KERNEL_IMAGE)
        & (columns["kind"] == ChangeKind.CPA)
        & (rebuilt.changes.exit_ns > first)
        & (columns["ts_ns"] < last)
        & (columns["level_first"] > 0)
        & (columns["pfn"] < 1 << 40)
    )
    if not len(rows):
        return 0
    rows = rows[np.argsort(rebuilt.changes.exit_ns[rows], kind="stable")]
    pfn = columns["pfn"][rows].astype(np.int64)
    last_pfn = pfn + np.clip(rebuilt.changes.n_done[rows], 1, 1 << 24) - 1
    size = LEAF_PAGES[level]
    seen = pd.DataFrame(
        {
            "block": np.concatenate((pfn, pfn, last_pfn)) // size,
            "when": np.concatenate(
                (np.arange(len(rows)) * 2, np.arange(len(rows)) * 2 + 1, np.arange(len(rows)) * 2 + 1)
            ),
            "level": np.concatenate(
                (columns["level_before"][rows], columns["level_first"][rows], columns["level_last"][rows])
            ),
        }
    ).sort_values("when", kind="stable")
    lowest = seen.groupby("block")["level"].agg(["first", "min"])
    snapshot = _image_levels(rebuilt, size)
    before = np.maximum(lowest["first"].to_numpy(), [snapshot.get(int(b), 0) for b in lowest.index])
    return int(((before >= level) & (lowest["min"].to_numpy() < level) & (lowest["min"].to_numpy() > 0)).sum())


def _image_levels(rebuilt: Rebuild, size: int) -> dict[int, int]:
    """Level of each large leaf of the high mapping in the START snapshot, by its block of `size` pages."""
    rows = rebuilt.snapshots.rows(Moment.START, Space.KERNEL_IMAGE)
    if rows is None:
        return {}
    levels: dict[int, int] = {}
    for pfn, level, n in zip(rows["pfn"].tolist(), rows["level"].tolist(), rows["n_leaves"].tolist(), strict=True):
        if level > Level.K4 and n <= 1 << 12:  # the high mapping spans 1 GB at most
            for leaf in range(n):
                levels[(pfn + leaf * LEAF_PAGES[min(level, Level.G1)]) // size] = level
    return levels
