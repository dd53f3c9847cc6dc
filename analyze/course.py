"""What the map of a trace is played from: its start snapshot, and all that happened to it, in order of effect."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from analyze.changes import Changes, load_changes
from analyze.directmap import FRAME, GIGA
from analyze.hotplug import Reread, read_again
from analyze.observed_splits import ObservedSplits, load_splits
from analyze.snapshots import Snapshot, SnapshotTable, load_snapshot
from collect.errors import TraceError
from collect.schema import ChangeKind, Moment
from collect.trace import Trace

__all__ = ["Course", "load_course"]


@dataclass(frozen=True)
class Course:
    """Of a trace, all that its map is played from.

    Attributes:
        start: the START snapshot. Its `map` is the state there.
        observed: splits that the probe saw; those of calls that failed halfway are played, too.
        reread: readings of ranges where memory came or went, in order of time.
        effect_ns: when each change took effect, in that order (`Changes.order`).
        reread_places: how many changes took effect before each reading.
    """

    trace: Trace
    changes: Changes
    snapshots: SnapshotTable
    start: Snapshot
    observed: ObservedSplits
    reread: list[Reread]
    effect_ns: npt.NDArray[np.int64]
    reread_places: npt.NDArray[np.int64]

    def place_at(self, ts_ns: int) -> int:
        """How many changes, in order of effect, are in effect at a moment."""
        return int(np.searchsorted(self.effect_ns, ts_ns, "right"))

    def rereads_at(self, ts_ns: int) -> int:
        """How many readings of hot-plugged ranges hold at a moment."""
        return sum(part.ts_ns <= ts_ns for part in self.reread)

    def rereads_before(self, place: int) -> int:
        """How many readings belong before the change at a place: they hold wherever that change is in effect."""
        return int(np.searchsorted(self.reread_places, place, "left"))

    @cached_property
    def log_capacity(self) -> int:
        """Room for every split that there can be: each large page once, and again each time that it is put back."""
        changes, n_pages = self.changes, len(self.start.read_from) * FRAME
        back = (changes.columns["kind"] != ChangeKind.CPA) & changes.direct
        pages = int(np.maximum(changes.n_pages[back], GIGA).sum()) if back.any() else 0
        filled = changes.columns["has_pgd"].any() * 2  # holes that a change fills with large leaves
        read = sum(part.n_pages for part in self.reread) // FRAME * 2
        return (n_pages * (1 + int(filled)) + min(pages, 1 << 34)) // FRAME * 2 + read

    @cached_property
    def seen_level(self) -> npt.NDArray[np.uint8]:
        """Per row of changes: the larger level of the two that the probe saw after it."""
        levels: npt.NDArray[np.uint8] = np.maximum(
            self.changes.columns["level_first"], self.changes.columns["level_last"]
        )
        return levels

    @cached_property
    def _entered_from(self) -> npt.NDArray[np.int64]:
        """In order of effect: the earliest entry of this change and all that follow."""
        entries = self.changes.columns["ts_ns"][self.changes.order]
        earliest: npt.NDArray[np.int64] = np.minimum.accumulate(entries[::-1])[::-1]
        return earliest

    def entered_before(self, ts_ns: int) -> int:
        """How many changes, in order of effect, it takes to have all that were entered before a moment."""
        return int(np.searchsorted(self._entered_from, ts_ns, "left"))


def load_course(trace: Trace) -> Course:
    """Read it. Raises TraceError where the trace cannot be read, lacks the start snapshot or holds forged numbers."""
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
    observed = load_splits(trace, changes)
    reread = read_again(trace, table)
    effect = changes.effect_ns[changes.order]
    places = np.searchsorted(effect, [part.ts_ns for part in reread], "right").astype(np.int64)
    return Course(trace, changes, table, start, observed, reread, effect, places)
