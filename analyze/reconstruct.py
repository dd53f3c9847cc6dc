"""Rebuilds the direct map from the start snapshot and the changes alone, and says what the rules predicted on the way."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analyze.changes import Changes
from analyze.course import Course, load_course
from analyze.directmap import DirectMap, SplitLog, Window, new_log
from analyze.observed_splits import ObservedSplits
from analyze.playback import NOT_PREDICTED, LeafCounts, Notes, Playback, Prediction
from analyze.snapshots import Snapshot, SnapshotTable, load_snapshot
from collect.schema import Level, Moment
from collect.trace import Trace

__all__ = ["NOT_PREDICTED", "Prediction", "Rebuild", "rebuild"]

K4, M2, G1 = int(Level.K4), int(Level.M2), int(Level.G1)


@dataclass
class Rebuild:
    """A rebuilt trace.

    Attributes:
        trace, changes: what was read.
        start: the START snapshot. Its `map` is the state there.
        end: the END snapshot, or None (a recovered trace may lack it). But for its times never used in rebuilding.
        final: the rebuilt state; each 2M frame as of the time when the END snapshot read it.
        window: those times, per 2M frame.
        splits: one row per split in order of effect: row (of changes), ts_ns, pfn (of the leaf), page (that caused
            it), level (Level that was split: 3 or 2), attrs (of the leaf).
        observed: splits that the probe saw as they were done.
        levels: leaf entries over time: ts_ns, k4, m2, g1; first at START, then when each change that altered them took
            effect, so in order of time.
        prediction: what the rules said of each change.
        course: to play it again, or a part of it (`analyze.playback`).
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
    course: Course


def rebuild(trace: Trace) -> Rebuild:
    """Rebuild a trace. Raises TraceError where it cannot be read, lacks the start snapshot or holds forged numbers."""
    course = load_course(trace)
    start = course.start
    end = load_snapshot(trace, course.snapshots, Moment.END)
    if end is not None:
        end.let_go()  # only its times are needed here
    hi = end.read_to if end is not None else np.full(len(start.read_from), np.iinfo(np.int64).max)
    window = Window(start.read_from, hi)
    notes = Notes(new_log(course.log_capacity), Prediction.empty(len(course.changes)), [])
    playback = Playback(course, window=window, notes=notes)
    notes.levels.append(LeafCounts(np.array([start.ts_first]), playback.state.entries.counts[:1].copy()))
    playback.to_end()
    return Rebuild(
        trace=trace,
        changes=course.changes,
        start=start,
        end=end,
        snapshots=course.snapshots,
        final=playback.state,
        window=window,
        splits=_splits(notes.log),
        observed=course.observed,
        levels=_level_table(notes.levels, start.ts_first),
        prediction=notes.prediction,
        course=course,
    )


def _splits(log: SplitLog) -> pd.DataFrame:
    n = int(log.n[0])
    names = ("row", "ts_ns", "pfn", "page", "level", "attrs")
    return pd.DataFrame({name: getattr(log, name)[:n].copy() for name in names})


def _level_table(parts: list[LeafCounts], first_ns: int) -> pd.DataFrame:
    ts = np.maximum(np.concatenate([part.ts_ns for part in parts]), first_ns)
    leaves = np.concatenate([part.counts for part in parts])
    return pd.DataFrame({"ts_ns": ts, "k4": leaves[:, K4], "m2": leaves[:, M2], "g1": leaves[:, G1]})
