"""The state between START and END: rebuilt for each snapshot taken meanwhile, and held against it.

One way forward through the changes serves all of them (`Playback.as_read`): each 2M frame is compared as of the time in
which the snapshot read it. Nothing is rebuilt from these snapshots.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from analyze.compare import Difference, compare
from analyze.course import Course
from analyze.directmap import FRAME, GIGA, DirectMap
from analyze.hotplug import remove_range
from analyze.jit import kernel
from analyze.playback import Playback
from analyze.snapshots import Snapshot, snapshots_between
from collect.errors import TraceError
from collect.schema import ChangeKind, Level, Moment
from collect.trace import Trace

__all__ = ["MomentCheck", "Running", "check_moments", "mark_moving"]

M2, G1 = int(Level.M2), int(Level.G1)
_FRAMES = GIGA // FRAME


@dataclass(frozen=True)
class MomentCheck:
    """One snapshot between START and END against the state rebuilt for its moment.

    Attributes:
        number: in the table `snapshots`.
        moment: PERIODIC or REQUEST.
        ts_ns, ts_end_ns: the first and last read of it.
        difference: rebuilt state (a) against the snapshot (b).
        undecided: 2M frames not compared, because a change ran while they were read: the recorder gave up on them.
        changes: of the direct map since the snapshot before (or START), by when they took effect.
        entries: entries of the map that these gave another value.
        frames_again, rounds: 2M frames that changed while they were read and were read again, and how often the recorder
            had to begin again; None where the trace does not tell (a recovered one).
    """

    number: int
    moment: Moment
    ts_ns: int
    ts_end_ns: int
    difference: Difference
    undecided: int
    changes: int
    entries: int
    frames_again: int | None
    rounds: int | None

    @property
    def wrong(self) -> int:
        """Pages that differ, in level or in attributes."""
        return self.difference.level + self.difference.attributes

    @property
    def exact(self) -> bool:
        """Nothing differs, and something was compared: one whose frames all moved while they were read shows nothing."""
        return self.wrong == 0 and self.difference.pages > 0


def check_moments(
    course: Course, n_changed: npt.NDArray[np.int64], kfence_pool: tuple[int, int] | None
) -> list[MomentCheck]:
    """Check every snapshot between START and END, in order of time.

    Args:
        n_changed: entries that each change gave another value (`Prediction.n_changed`).
    Raises:
        TraceError: rows that lie, or snapshots that are not in order of time.
    """
    told = _told(course.trace)
    changes = course.changes
    counted = changes.direct & (changes.n_pages > 0)
    changes_until = np.concatenate(([0], np.cumsum(counted[changes.order])))
    entries_until = np.concatenate(([0], np.cumsum(n_changed[changes.order])))
    running = Running(course)
    playback: Playback | None = None  # a map of its own, which a trace without such snapshots does without
    place, found, last = course.place_at(course.start.ts_last), [], course.start.ts_last
    for number, moment, snapshot in snapshots_between(course.trace):
        if snapshot.ts_first < last:
            raise TraceError(
                f"{course.trace.path}: snapshot {number} ({moment.name}) was read before the one before it; copy anew"
            )
        last = int(snapshot.read_to.min())
        playback = playback or Playback(course)
        rebuilt = playback.as_read(snapshot)
        read = snapshot.take()
        undecided = _leave_out_moving(course, running, snapshot, read, rebuilt)
        here = course.place_at(snapshot.ts_last)
        again, rounds = told.get(number, (None, None))
        found.append(
            MomentCheck(
                number=number,
                moment=moment,
                ts_ns=snapshot.ts_first,
                ts_end_ns=snapshot.ts_last,
                difference=compare(rebuilt, read, kfence_pool),
                undecided=undecided,
                changes=int(changes_until[here] - changes_until[place]),
                entries=int(entries_until[here] - entries_until[place]),
                frames_again=again,
                rounds=rounds,
            )
        )
        place = here
        del snapshot, read, rebuilt  # before the next one is made: on a big host each takes a quarter of a gigabyte
    return found


def _told(trace: Trace) -> dict[int, tuple[int | None, int | None]]:
    """What the recorder told of each snapshot, by its number: frames read again, rounds."""
    table = trace.table("counters")
    table = table.filter(pc.starts_with(table["counter"], "recorder/snapshot"))
    at: dict[int, dict[str, int]] = {}
    for ts, name, value in zip(*(table[name].to_pylist() for name in ("ts_ns", "counter", "value")), strict=True):
        at.setdefault(ts, {})[name] = value
    return {
        told["recorder/snapshot"]: (
            told.get("recorder/snapshot_frames_again"),
            told.get("recorder/snapshot_rounds"),
        )
        for told in at.values()
        if "recorder/snapshot" in told
    }


class Running:
    """Which changes ran at a time, without a look at all of them for each snapshot."""

    def __init__(self, course: Course) -> None:
        changes = course.changes
        self._course = course
        self.entry_ns, self.exit_ns = changes.columns["ts_ns"], changes.exit_ns
        kinds = (ChangeKind.HOTPLUG_ADD, ChangeKind.HOTPLUG_REMOVE)
        hotplug = changes.direct & np.isin(changes.columns["kind"], kinds)
        if hotplug.any():  # over when its range has been read again: then the sizes of its entries are known
            read = np.array([*(part.ts_ns for part in course.reread), np.iinfo(np.int64).max], np.int64)
            self.exit_ns = np.where(hotplug, read[np.searchsorted(read, self.exit_ns)], self.exit_ns)
        # In order of effect: the latest exit of this change and all before it.
        self._left_by = np.maximum.accumulate(self.exit_ns[changes.order])

    def rows(self, first_ns: int, last_ns: int) -> npt.NDArray[np.int64]:
        """Changes of the direct map that ran between two moments, both included."""
        begin = int(np.searchsorted(self._left_by, first_ns, "left"))
        rows = self._course.changes.order[begin : self._course.entered_before(last_ns + 1)]
        ran = (self.exit_ns[rows] >= first_ns) & (self.entry_ns[rows] <= last_ns)
        return rows[self._course.changes.direct[rows] & ran]


def _leave_out_moving(course: Course, running: Running, snapshot: Snapshot, read: DirectMap, rebuilt: DirectMap) -> int:
    """Make holes, on both sides, of the frames that a change ran on while they were read; how many.

    The recorder reads those again until there are none, or gives up (collect.snapshot): only then one is found here.
    """
    changes = course.changes
    rows = running.rows(snapshot.ts_first, snapshot.ts_last)
    if not len(rows):
        return 0
    moving = np.zeros(len(snapshot.read_from), np.bool_)
    mark_moving(
        moving,
        rows,
        running.entry_ns,
        running.exit_ns,
        changes.first_pfn,
        changes.n_pages,
        changes.pfns,
        changes.pfns_start,
        snapshot.read_from,
        snapshot.read_to,
    )
    # A 1G entry that came apart meanwhile changed the level of all its frames.
    gigas = np.unique(np.flatnonzero(moving) // _FRAMES)
    for giga in gigas.tolist():
        if G1 in (rebuilt.entries.giga_level[giga], read.entries.giga_level[giga]):
            moving[giga * _FRAMES : (giga + 1) * _FRAMES] = True
    frames = np.flatnonzero(moving)
    for frame in frames.tolist():
        remove_range(rebuilt.entries, frame * FRAME, FRAME)
        remove_range(read.entries, frame * FRAME, FRAME)
    return len(frames)


@kernel
def mark_moving(
    moving: npt.NDArray[np.bool_],
    rows: npt.NDArray[np.int64],
    entry_ns: npt.NDArray[np.int64],
    exit_ns: npt.NDArray[np.int64],
    first_pfn: npt.NDArray[np.int64],
    n_pages: npt.NDArray[np.int64],
    pfns: npt.NDArray[np.int64],
    pfns_start: npt.NDArray[np.int64],
    read_from: npt.NDArray[np.int64],
    read_to: npt.NDArray[np.int64],
) -> None:
    """Mark the frames that a change of `rows` ran on while they were read."""
    for row in rows:
        begin, stop = pfns_start[row], pfns_start[row + 1]
        n_ranges = max(1, stop - begin)
        for i in range(n_ranges):
            first = pfns[begin + i] if stop > begin else first_pfn[row]
            last = first if stop > begin else first + max(n_pages[row], 1) - 1
            for frame in range(first // FRAME, min(last // FRAME, len(moving) - 1) + 1):
                if exit_ns[row] >= read_from[frame] and entry_ns[row] <= read_to[frame]:
                    moving[frame] = True
