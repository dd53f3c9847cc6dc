"""Rebuilds the direct map from the start snapshot and the changes alone, and says what the rules predicted on the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from analyze.changes import Changes, load_changes
from analyze.directmap import FRAME, GIGA, DirectMap, SplitLog, Window, new_log, raise_failure
from analyze.entries import Entries, collapse_frame, collapse_giga, entry_at
from analyze.hotplug import Reread, add_range, read_again, remove_range
from analyze.jit import kernel
from analyze.observed_splits import ObservedSplits, load_splits
from analyze.rules import change_range, split_leaf
from analyze.snapshots import Snapshot, SnapshotTable, load_snapshot
from collect.errors import TraceError
from collect.schema import ChangeKind, Level, Moment
from collect.trace import Trace

__all__ = ["Prediction", "Rebuild", "rebuild"]

K4, M2, G1 = int(Level.K4), int(Level.M2), int(Level.G1)
_CPA, _COLLAPSE, _ADD, _REMOVE = (int(kind) for kind in ChangeKind)

NOT_PREDICTED = 255
"""Level in a `Prediction` where the rules say nothing: not a direct-map change, or outside the snapshots' times."""


@dataclass
class Prediction:
    """What the rules say of each change, one cell per row of the table changes.

    Levels are NOT_PREDICTED where nothing can be said. `before` is the first page's entry before the change, `first`
    and `last` are the entries of the first and the last completed page after it.
    """

    level_before: npt.NDArray[np.uint8]
    attrs_before: npt.NDArray[np.uint64]
    level_first: npt.NDArray[np.uint8]
    attrs_first: npt.NDArray[np.uint64]
    level_last: npt.NDArray[np.uint8]
    attrs_last: npt.NDArray[np.uint64]
    n_changed: npt.NDArray[np.int64]  # entries that got another value


@dataclass
class Rebuild:
    """A rebuilt trace.

    Attributes:
        trace, changes: what was read.
        start: the START snapshot. Its `map` is the state there.
        end: the END snapshot, or None (a recovered trace may lack it). Never used in rebuilding.
        final: the rebuilt state; each 2M frame as of the time when the END snapshot read it.
        window: those times, per 2M frame.
        splits: one row per split in order of effect: row (of changes), ts_ns, pfn (of the leaf), page (that caused
            it), level (Level that was split: 3 or 2), attrs (of the leaf).
        observed: splits that the probe saw as they were done.
        levels: leaf entries over time: ts_ns, k4, m2, g1; first at START, then after each change that altered them.
        prediction: what the rules said of each change.
    """

    trace: Trace
    changes: Changes
    start: Snapshot
    end: Snapshot | None
    snapshots: SnapshotTable
    final: DirectMap
    window: Window
    splits: pd.DataFrame
    observed: ObservedSplits
    levels: pd.DataFrame
    prediction: Prediction


def rebuild(trace: Trace) -> Rebuild:
    """Rebuild a trace. Raises TraceError where it cannot be read, lacks the start snapshot or holds forged numbers."""
    changes = load_changes(trace)
    table = SnapshotTable(trace)
    start = load_snapshot(trace, table, Moment.START)
    if start is None and trace.manifest["sampling"].get("only_pages"):
        raise TraceError(
            f"{trace.path}: recorded with --only-pages, so it holds page events and no state of the direct map; "
            "record without it, on a kernel with fentry and /proc/kcore"
        )
    if start is None:
        raise TraceError(
            f"{trace.path}: no START snapshot, so there is nothing to rebuild from; record again "
            "(the recorder died before it had read the page tables)"
        )
    end = load_snapshot(trace, table, Moment.END)
    final = start.map.copy()
    hi = end.read_to if end is not None else np.full(len(start.read_from), np.iinfo(np.int64).max)
    window = Window(start.read_from, hi)
    observed = load_splits(trace, changes)
    reread = read_again(trace, table)
    log = new_log(_log_capacity(final, changes) + sum(part.n_pages for part in reread) // FRAME * 2)
    prediction = _empty_prediction(len(changes))
    levels = [_Levels(np.array([start.ts_first]), final.entries.counts[:1].copy())]
    begin = 0
    for part, cut in [*zip(reread, _places(changes, reread), strict=True), (None, len(changes))]:
        levels.append(_apply(final, log, window, changes, changes.order[begin:cut], observed, prediction))
        begin = cut
        if part is not None:
            part.put_into(final)
            levels.append(_Levels(np.array([part.ts_ns]), final.entries.counts[:1].copy()))
    table_of_levels = _level_table(levels, start.ts_first)
    return Rebuild(
        trace, changes, start, end, table, final, window, _splits(log), observed, table_of_levels, prediction
    )


class _Levels(NamedTuple):
    """Leaf entries by Level, shape (n, 4), at the times of a part of the trace."""

    ts_ns: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]


def _places(changes: Changes, reread: list[Reread]) -> list[int]:
    """Where among the changes in order of effect each reading belongs: behind those that ended before it."""
    exits = changes.exit_ns[changes.order]
    return [int(np.searchsorted(exits, part.ts_ns, "right")) for part in reread]


def _apply(
    final: DirectMap,
    log: SplitLog,
    window: Window,
    changes: Changes,
    order: npt.NDArray[np.int64],
    observed: ObservedSplits,
    prediction: Prediction,
) -> _Levels:
    """Apply the changes of the rows in `order`; numbers of leaf entries after those that altered them."""
    altered, leaves = np.empty(len(order), np.int64), np.empty((len(order), 4), np.int64)
    status = _apply_all(
        final.entries,
        log,
        window,
        order,
        changes.direct,
        changes.columns["kind"],
        changes.columns["ts_ns"],
        changes.exit_ns,
        changes.first_pfn,
        changes.n_pages,
        changes.n_done,
        changes.columns["mask_set"],
        changes.columns["mask_clr"],
        changes.columns["force_split"],
        changes.columns["has_pgd"],
        changes.columns["ret"],
        np.maximum(changes.columns["level_first"], changes.columns["level_last"]),
        changes.columns["attrs_first"],
        changes.pfns,
        changes.pfns_start,
        observed.left_row,
        observed.left_pfn,
        observed.left_level,
        prediction.level_before,
        prediction.attrs_before,
        prediction.level_first,
        prediction.attrs_first,
        prediction.level_last,
        prediction.attrs_last,
        prediction.n_changed,
        altered,
        leaves,
    )
    raise_failure(min(status, 0))
    return _Levels(changes.exit_ns[altered[:status]], leaves[:status])


def _log_capacity(state: DirectMap, changes: Changes) -> int:
    """Every large page can split once, and again for each time that it is put back."""
    back = (changes.columns["kind"] != ChangeKind.CPA) & changes.direct
    pages = int(np.maximum(changes.n_pages[back], GIGA).sum()) if back.any() else 0
    filled = changes.columns["has_pgd"].any() * 2  # holes that a change fills with large leaves
    return (state.n_pages * (1 + int(filled)) + min(pages, 1 << 34)) // FRAME * 2


def _empty_prediction(n: int) -> Prediction:
    def level() -> npt.NDArray[np.uint8]:
        return np.full(n, NOT_PREDICTED, np.uint8)

    def attrs() -> npt.NDArray[np.uint64]:
        return np.zeros(n, np.uint64)

    return Prediction(level(), attrs(), level(), attrs(), level(), attrs(), np.zeros(n, np.int64))


def _splits(log: SplitLog) -> pd.DataFrame:
    n = int(log.n[0])
    names = ("row", "ts_ns", "pfn", "page", "level", "attrs")
    return pd.DataFrame({name: getattr(log, name)[:n].copy() for name in names})


def _level_table(parts: list[_Levels], first_ns: int) -> pd.DataFrame:
    ts = np.maximum(np.concatenate([part.ts_ns for part in parts]), first_ns)
    leaves = np.concatenate([part.counts for part in parts])
    return pd.DataFrame({"ts_ns": ts, "k4": leaves[:, K4], "m2": leaves[:, M2], "g1": leaves[:, G1]})


@kernel
def _inside(window: Window, pfn: int, entry_ns: int, exit_ns: int) -> bool:
    frame = pfn // FRAME
    return exit_ns > window.lo[frame] and entry_ns < window.hi[frame]  # type: ignore[no-any-return]


@kernel
def _apply_all(
    m: Entries,
    log: SplitLog,
    window: Window,
    order: npt.NDArray[np.int64],
    direct: npt.NDArray[np.bool_],
    kind: npt.NDArray[np.uint8],
    entry_ns: npt.NDArray[np.int64],
    exit_ns: npt.NDArray[np.int64],
    first_pfn: npt.NDArray[np.int64],
    n_pages: npt.NDArray[np.int64],
    n_done: npt.NDArray[np.int64],
    mask_set: npt.NDArray[np.uint64],
    mask_clr: npt.NDArray[np.uint64],
    force_split: npt.NDArray[np.uint8],
    has_pgd: npt.NDArray[np.uint8],
    ret: npt.NDArray[np.int32],
    seen_level: npt.NDArray[np.uint8],
    seen_attrs: npt.NDArray[np.uint64],
    pfns: npt.NDArray[np.int64],
    pfns_start: npt.NDArray[np.int64],
    left_row: npt.NDArray[np.int64],
    left_pfn: npt.NDArray[np.int64],
    left_level: npt.NDArray[np.uint8],
    level_before: npt.NDArray[np.uint8],
    attrs_before: npt.NDArray[np.uint64],
    level_first: npt.NDArray[np.uint8],
    attrs_first: npt.NDArray[np.uint64],
    level_last: npt.NDArray[np.uint8],
    attrs_last: npt.NDArray[np.uint64],
    n_changed: npt.NDArray[np.int64],
    altered: npt.NDArray[np.int64],
    leaves: npt.NDArray[np.int64],
) -> int:
    """Direct-map changes in order of effect, and what the rules say before and after each.

    A call that failed leaves what it has split (sm: split_large_page returns -ENOMEM, nothing is rolled back), also above
    a page that it did not complete; which splits those are, only the probe saw (`left_row` ascends).

    Returns how many rows altered the numbers of leaf entries (they stand in `altered`, the numbers in `leaves`), or a
    failure (< 0).
    """
    n_altered = 0
    last_4k, last_2m, last_1g = m.counts[0, K4], m.counts[0, M2], m.counts[0, G1]
    for row in order:
        if direct[row] and n_pages[row] > 0:
            first = first_pfn[row]
            entry, leave = entry_ns[row], exit_ns[row]
            inside = _inside(window, first, entry, leave)
            if inside:
                level, code = entry_at(m, first)
                level_before[row], attrs_before[row] = level, m.attrs[code]
            last = first + max(n_done[row], 1) - 1
            if kind[row] == _CPA:
                begin, stop = pfns_start[row], pfns_start[row + 1]
                if stop > begin:
                    last = pfns[begin + max(n_done[row], 1) - 1]
                n_ranges = n_done[row] if stop > begin else 1
                for i in range(n_ranges):
                    at = pfns[begin + i] if stop > begin else first
                    n = 1 if stop > begin else n_pages[row]
                    done = 1 if stop > begin else n_done[row]
                    got = change_range(
                        m, log, window, row, entry, leave, at, n, done,
                        mask_set[row], mask_clr[row], force_split[row] != 0, has_pgd[row] != 0,
                    )  # fmt: skip
                    if got[0] < 0:
                        return got[0]
                    n_changed[row] += got[2]
                if ret[row] != 0:
                    for i in range(np.searchsorted(left_row, row), np.searchsorted(left_row, row, "right")):
                        if _inside(window, left_pfn[i], entry, leave):
                            failed = split_leaf(m, log, row, leave, left_pfn[i], left_level[i])
                            if failed < 0:
                                return failed
            elif inside and kind[row] == _COLLAPSE:
                if collapse_frame(m, first // FRAME) and ret[row] == 2:
                    collapse_giga(m, first // GIGA)
            elif inside and kind[row] == _REMOVE:
                remove_range(m, first, n_pages[row])
            elif inside and kind[row] == _ADD and ret[row] == 0:
                got_code = add_range(m, first, n_pages[row], seen_level[row], seen_attrs[row])
                if got_code < 0:
                    return got_code
            if inside and kind[row] == _CPA and (n_done[row] > 0 or ret[row] == 0):
                level, code = entry_at(m, first)
                level_first[row], attrs_first[row] = level, m.attrs[code]
                if _inside(window, last, entry, leave):
                    level, code = entry_at(m, last)
                    level_last[row], attrs_last[row] = level, m.attrs[code]
        if m.counts[0, K4] != last_4k or m.counts[0, M2] != last_2m or m.counts[0, G1] != last_1g:
            last_4k, last_2m, last_1g = m.counts[0, K4], m.counts[0, M2], m.counts[0, G1]
            altered[n_altered] = row
            leaves[n_altered] = m.counts[0]
            n_altered += 1
    return n_altered
