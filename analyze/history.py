"""The map at any moment of a trace: forward from START, or from a checkpoint that an earlier pass has left.

Example::

    history = History(load_course(trace))
    history.state_at(history.span.last_ns).counts()

What counts as "by then": a change is in effect from its exit on (one that changed the map itself and has nested calls:
from the first of these on). A call under way at the moment asked for may have done some of its pages already; how many
there are, `under_way` tells.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from analyze.changes import MAX_TS, Changes
from analyze.course import Course
from analyze.directmap import DirectMap, Runs
from analyze.entries import FRAME, N_FREE_SLABS, N_SLABS
from analyze.playback import Playback
from analyze.snapshots import SnapshotTable
from analyze.when import Span
from collect.errors import TraceError
from collect.schema import Moment
from collect.trace import Trace

__all__ = ["History", "span_of"]

MIN_SPACING = 1 << 14
"""Changes between checkpoints, at least: a few milliseconds of playing."""

CELLS_PER_CHANGE = 16
"""To write or load a checkpoint is to go over each frame and each page of a split one; that pays for as many changes."""

MAX_CHECKPOINT_BYTES = 128 << 20
"""Beyond, every second checkpoint goes, and the next ones come half as often."""


def span_of(trace: Trace, snapshots: SnapshotTable, changes: Changes | None = None) -> Span:
    """From when START was read (all of it) to when END was, or to the last change where there is no END.

    Changes that are not given are read, if it takes them.
    """
    zero = int(trace.manifest["ts_start_ns"])
    start, end = snapshots.rows(Moment.START), snapshots.rows(Moment.END)
    first = zero if start is None else max(zero, int(start["ts_ns"].max()))
    last = max(first, int(trace.manifest["ts_end_ns"]))
    if end is not None:
        last = max(last, int(end["ts_end_ns"].max()))
    elif changes is not None:
        last = max(last, int(changes.exit_ns.max(initial=0)))
    else:
        table = trace.table("changes", ["ts_ns", "duration_ns"])
        entry, duration = (np.minimum(table[name].to_numpy(), MAX_TS >> 1) for name in table.column_names)
        last = max(last, int((entry + duration).max(initial=0)))
    return Span(zero, first, last)


@dataclass(frozen=True)
class _Checkpoint:
    """The map when `place` changes were in effect and `n_reread` readings of hot-plugged ranges held."""

    place: int
    n_reread: int
    runs: Runs

    @property
    def n_bytes(self) -> int:
        return sum(column.nbytes for column in self.runs)


class History:
    """The map of a trace at any moment.

    The first call plays the trace up to the moment asked for and leaves checkpoints on the way, the more the longer it
    gets; later ones begin at the nearest one before, whichever order they come in. Memory: one map, the one handed
    out, and checkpoints of at most MAX_CHECKPOINT_BYTES.

    Attributes:
        course: what is played.
        span: which moments there are.
    """

    def __init__(self, course: Course) -> None:
        self.course = course
        self.span = span_of(course.trace, course.snapshots, course.changes)
        self._spacing = MIN_SPACING
        self._checkpoints: list[_Checkpoint] = []
        self._playback: Playback | None = None

    @property
    def trace(self) -> Trace:
        return self.course.trace

    def state_at(self, ts_ns: int) -> DirectMap:
        """The map with every change in effect at a moment: a copy, the caller's own.

        Raises TraceError for a moment before START was read or after the end of the recording.
        """
        return self.peek(ts_ns).copy()

    def peek(self, ts_ns: int) -> DirectMap:
        """The same map, not copied: good until the next question, and not to be changed."""
        self.check(ts_ns)
        place, n_reread = self.course.place_at(ts_ns), self.course.rereads_at(ts_ns)
        playback = self._nearest(place, n_reread)
        self._play(playback, place)
        playback.play(place, n_reread)
        self._playback = playback
        return playback.state

    def take(self, ts_ns: int) -> Playback:
        """A playback at a moment, the caller's own, to go on from there."""
        self.peek(ts_ns)
        playback, self._playback = self._playback, None
        assert playback is not None
        return playback

    def check(self, ts_ns: int) -> None:
        """Raises TraceError for a moment that the trace does not cover."""
        span = self.span
        if not span.first_ns <= ts_ns <= span.last_ns:
            raise TraceError(
                f"{self.trace.path}: {span.text(ts_ns)} s (@{ts_ns}) is outside the recording, which covers "
                f"{span.text(span.first_ns)} to {span.text(span.last_ns)} s; give a time in between"
            )

    def under_way(self, ts_ns: int) -> npt.NDArray[np.int64]:
        """Rows of the direct-map changes that were entered by a moment and not in effect yet."""
        changes = self.course.changes
        entered = changes.columns["ts_ns"] <= ts_ns
        return np.flatnonzero(changes.direct & entered & (changes.effect_ns > ts_ns))

    def rows_between(self, from_ns: int, to_ns: int) -> npt.NDArray[np.int64]:
        """Rows of the changes that took effect after one moment and by another, in order of effect."""
        return self.course.changes.order[self.course.place_at(from_ns) : self.course.place_at(to_ns)]

    def _nearest(self, place: int, n_reread: int) -> Playback:
        """A playback at or before a place: the last one used, a checkpoint, or START."""
        at = bisect_right(self._checkpoints, (place, n_reread), key=lambda c: (c.place, c.n_reread)) - 1
        checkpoint = self._checkpoints[at] if at >= 0 else None
        last = self._playback
        if last is not None and last.place <= place and last.n_reread <= n_reread:
            near = checkpoint is None or checkpoint.place <= last.place + self._spacing
            if near:
                return last
        self._playback = last = None  # its map is not needed any more
        if checkpoint is None:
            return Playback(self.course)
        state = self.course.start.map.empty_like()
        state.load(*checkpoint.runs)
        return Playback(self.course, state=state, place=checkpoint.place, n_reread=checkpoint.n_reread)

    def _play(self, playback: Playback, place: int) -> None:
        """Play as far as there are checkpoints to be left before a place."""
        while True:
            after = self._checkpoints[-1].place if self._checkpoints else 0
            following = max(after + max(self._spacing, _cost(playback.state)), playback.place)
            if following > place:
                return
            playback.play(following, max(self.course.rereads_before(following), playback.n_reread))
            self._checkpoints.append(_Checkpoint(following, playback.n_reread, playback.state.runs()))
            if sum(checkpoint.n_bytes for checkpoint in self._checkpoints) > MAX_CHECKPOINT_BYTES:
                del self._checkpoints[::2]
                self._spacing *= 2


def _cost(state: DirectMap) -> int:
    """What a checkpoint of a map costs, in changes that could be played meanwhile."""
    meta = state.entries.meta
    n_split = int(meta[N_SLABS] - meta[N_FREE_SLABS])
    return (n_split * FRAME + state.n_pages // FRAME) // CELLS_PER_CHANGE
