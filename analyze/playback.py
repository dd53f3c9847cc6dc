"""Plays the changes of a trace onto its start snapshot, forward through time, and hands out the map on the way.

Example::

    playback = Playback(load_course(trace))
    playback.to(ts_ns)              # everything in effect by then
    then = playback.state.copy()    # costs what its split frames cost
    playback.to(later_ns)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from analyze.course import Course
from analyze.directmap import FRAME, GIGA, DirectMap, SplitLog, Window, new_log, raise_failure
from analyze.entries import Entries, collapse_frame, collapse_giga, entry_at, met
from analyze.hotplug import add_range, remove_range
from analyze.jit import first_from, kernel, signed
from analyze.rule_names import Rule
from analyze.rules import change_range, split_leaf
from analyze.snapshots import Snapshot
from collect.errors import TraceError
from collect.schema import ChangeKind, Level

__all__ = ["NOT_PREDICTED", "LeafCounts", "Notes", "Playback", "Prediction"]

K4, M2, G1 = int(Level.K4), int(Level.M2), int(Level.G1)
_CPA, _COLLAPSE, _ADD, _REMOVE = (int(kind) for kind in ChangeKind)
_COLLAPSED_2M, _COLLAPSED_1G = int(Rule.COLLAPSED_2M), int(Rule.COLLAPSED_1G)
_HOTPLUG_ADD, _HOTPLUG_REMOVE = int(Rule.HOTPLUG_ADD), int(Rule.HOTPLUG_REMOVE)

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

    @classmethod
    def empty(cls, n: int) -> Prediction:
        """Of `n` changes, none predicted yet."""

        def level() -> npt.NDArray[np.uint8]:
            return np.full(n, NOT_PREDICTED, np.uint8)

        def attrs() -> npt.NDArray[np.uint64]:
            return np.zeros(n, np.uint64)

        return cls(level(), attrs(), level(), attrs(), level(), attrs(), np.zeros(n, np.int64))


class LeafCounts(NamedTuple):
    """Leaf entries by Level, shape (n, 4), at the times of a part of the trace."""

    ts_ns: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]


@dataclass
class Notes:
    """What a playback writes down on its way, where it is asked to."""

    log: SplitLog
    prediction: Prediction
    levels: list[LeafCounts]


class Playback:
    """A direct map on its way through the changes of a trace.

    Args:
        course: what to play.
        window: per 2M frame, the times between which changes count; as a rule from its reading at START on.
        notes: where to write down splits, predictions and numbers of leaf entries; each change may be played once then.
        state, place, n_reread: another point to set out from than START; `state` is taken over, not copied.

    Attributes:
        state: the map here. Copy it to keep it.
        place: changes, in order of effect, that are in it.
        n_reread: readings of hot-plugged ranges that are in it.
    """

    def __init__(
        self,
        course: Course,
        *,
        window: Window | None = None,
        notes: Notes | None = None,
        state: DirectMap | None = None,
        place: int = 0,
        n_reread: int = 0,
    ) -> None:
        self.course = course
        self.state = state or course.start.take()
        self.place = place
        self.n_reread = n_reread
        self._window = window or Window(course.start.read_from, _never(len(course.start.read_from)))
        self._notes = notes
        self._log = notes.log if notes else new_log(course.log_capacity)

    def note(self, notes: Notes) -> None:
        """Write down what is played from here on."""
        self._notes, self._log = notes, notes.log

    def to(self, ts_ns: int) -> None:
        """Go forward to a moment: every change in effect by then is played. To go back, begin anew (ValueError)."""
        self.play(self.course.place_at(ts_ns), self.course.rereads_at(ts_ns))

    def to_end(self) -> None:
        """Play whatever is left."""
        self.play(len(self.course.changes), len(self.course.reread))

    def as_read(self, snapshot: Snapshot) -> DirectMap:
        """The map as `snapshot` must have found it, each 2M frame as of the time when it was read; goes there first.

        A copy. The playback itself comes to the moment when the first frame was read, so snapshots are asked for in
        order of time. A change belongs to a frame if it was entered before the frame's reading ended: whatever ran
        during the reading was read again (collect.snapshot).
        """
        course = self.course
        self.to(int(snapshot.read_to.min()) - 1)
        rest = Playback(
            course,
            window=Window(self._window.lo, snapshot.read_to),
            state=self.state.copy(),
            place=self.place,
            n_reread=self.n_reread,
        )
        rest.play(max(course.entered_before(int(snapshot.read_to.max())), rest.place), rest.n_reread)
        return rest.state

    def play(self, place: int, n_reread: int) -> None:
        """Apply changes up to a place in order of effect, and readings up to a number, each where it belongs."""
        if place < self.place or n_reread < self.n_reread:
            raise ValueError(f"{self.place} changes are in effect here, there only {place}: begin anew")
        while self.n_reread < n_reread:
            self._apply(min(int(self.course.reread_places[self.n_reread]), place))
            part = self.course.reread[self.n_reread]
            part.put_into(self.state)
            self.n_reread += 1
            if self._notes:
                counts = self.state.entries.counts[:1].copy()
                self._notes.levels.append(LeafCounts(np.array([part.ts_ns]), counts))
        self._apply(place)
        try:
            self.state.check_room()
        except TraceError as error:
            raise TraceError(f"{self.course.trace.path}: {error}") from None

    def _apply(self, place: int) -> None:
        changes, observed = self.course.changes, self.course.observed
        order = changes.order[self.place : place]
        if not len(order):
            return
        n_noted = len(order) if self._notes else 0
        altered, leaves = np.empty(n_noted, np.int64), np.empty((n_noted, 4), np.int64)
        prediction = self._notes.prediction if self._notes else Prediction.empty(0)
        if not self._notes:
            self._log.n[0] = 0  # nobody reads it: let it not grow
        status = _apply_all(
            self.state.entries,
            self._log,
            self._window,
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
            changes.columns["has_pgd"] if changes.columns["has_pgd"].any() else None,
            changes.columns["ret"],
            self.course.seen_level,
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
            1 if (changes.columns["kind"] != ChangeKind.CPA).any() else None,
        )
        raise_failure(min(status, 0), self.course.trace.path)
        self.place = place
        if self._notes:
            self._notes.levels.append(LeafCounts(changes.effect_ns[altered[:status]], leaves[:status]))


def _never(n: int) -> npt.NDArray[np.int64]:
    return np.full(n, np.iinfo(np.int64).max)


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
    has_pgd: npt.NDArray[np.uint8] | None,
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
    rare: int | None,
) -> int:
    """Direct-map changes in order of effect, and what the rules say before and after each.

    A call that failed leaves what it has split (sm: split_large_page returns -ENOMEM, nothing is rolled back), also above
    a page that it did not complete; which splits those are, only the probe saw (`left_row` ascends).

    Predictions, `altered` and `leaves` may have no cells: then nothing is noted.

    `rare` is None where no row is of another kind than CPA, `has_pgd` where no call has one.

    Returns how many rows altered the numbers of leaf entries (they stand in `altered`, the numbers in `leaves`), or a
    failure (< 0).
    """
    predict, note = len(level_before) > 0, len(altered) > 0
    n_altered = 0
    last_4k, last_2m, last_1g = m.counts[0, K4], m.counts[0, M2], m.counts[0, G1]
    for row in order:
        if direct[row] and n_pages[row] > 0:
            first = first_pfn[row]
            entry, leave = entry_ns[row], exit_ns[row]
            inside = _inside(window, first, entry, leave)
            if inside and predict:
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
                    if has_pgd is None:
                        got = change_range(
                            m, log, window, row, entry, leave, at, n, done,
                            mask_set[row], mask_clr[row], force_split[row] != 0, None,
                        )  # fmt: skip
                    else:
                        got = change_range(
                            m, log, window, row, entry, leave, at, n, done,
                            mask_set[row], mask_clr[row], force_split[row] != 0, has_pgd[row] != 0,
                        )  # fmt: skip
                    if got[0] < 0:
                        return got[0]
                    if predict:
                        n_changed[row] += got[2]
                if ret[row] != 0:
                    for i in range(first_from(left_row, row), first_from(left_row, row + 1)):
                        if _inside(window, left_pfn[i], entry, leave):
                            failed = split_leaf(m, log, row, leave, left_pfn[i], signed(left_level[i]))
                            if failed < 0:
                                return failed
            elif rare is not None:  # numba leaves the branch out, and what it calls uncompiled, where it is None
                if inside and kind[row] == _COLLAPSE:
                    if collapse_frame(m, first // FRAME):
                        met(m, _COLLAPSED_2M, row)
                        if ret[row] == 2 and collapse_giga(m, first // GIGA):
                            met(m, _COLLAPSED_1G, row)
                elif inside and kind[row] == _REMOVE:
                    remove_range(m, first, n_pages[row])
                    met(m, _HOTPLUG_REMOVE, row)
                elif inside and kind[row] == _ADD and ret[row] == 0:
                    met(m, _HOTPLUG_ADD, row)
                    got_code = add_range(m, first, n_pages[row], seen_level[row], seen_attrs[row])
                    if got_code < 0:
                        return got_code
            told = (kind[row] == _CPA and (n_done[row] > 0 or ret[row] == 0)) or kind[row] == _COLLAPSE
            if predict and inside and told:
                level, code = entry_at(m, first)
                level_first[row], attrs_first[row] = level, m.attrs[code]
                if _inside(window, last, entry, leave):
                    level, code = entry_at(m, last)
                    level_last[row], attrs_last[row] = level, m.attrs[code]
        if note and (m.counts[0, K4] != last_4k or m.counts[0, M2] != last_2m or m.counts[0, G1] != last_1g):
            last_4k, last_2m, last_1g = m.counts[0, K4], m.counts[0, M2], m.counts[0, G1]
            altered[n_altered] = row
            for at_level in range(4):
                leaves[n_altered, at_level] = m.counts[0, at_level]
            n_altered += 1
    return n_altered
