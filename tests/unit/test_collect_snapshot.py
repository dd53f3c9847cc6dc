"""Snapshots of a map that changes while it is walked, over a machine whose time passes only when it is looked at."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collect import snapshot
from collect.pagetables import Leaves
from collect.schema import LEAF_PAGES, TABLES, Level, Moment, Space
from collect.snapshot import MAX_NS, MAX_ROUNDS, Snapshot, Touched, still, still_range, walk_once

U64 = np.uint64
FRAMES = 512
N_GIGS = 2


@dataclass
class Map:
    """Attributes by gigabyte, by 2M frame and by page: a smaller entry stands where no larger one does."""

    gigs: dict[int, int] = field(default_factory=dict)
    frames: dict[int, int] = field(default_factory=dict)
    pages: dict[int, list[int]] = field(default_factory=dict)

    def of_frame(self, frame: int) -> list[tuple[int, int, int]]:
        if frame in self.frames:
            return [(frame * 512, Level.M2, self.frames[frame])]
        return [(frame * 512 + i, Level.K4, attrs) for i, attrs in enumerate(self.pages.get(frame, [])) if attrs]

    def change(self, pfn: int, n_pages: int, attrs: int) -> None:
        for page in range(pfn, pfn + n_pages):
            frame, gig = page >> 9, page >> 18
            if gig in self.gigs:
                old = self.gigs.pop(gig)
                self.frames |= {gig * FRAMES + i: old for i in range(FRAMES)}
            if frame in self.frames:
                self.pages[frame] = [self.frames.pop(frame)] * 512
            self.pages.setdefault(frame, [0] * 512)[page & 511] = attrs


@dataclass
class Change:
    entry: int
    effect: int
    exit: int
    pfn: int
    n_pages: int = 1
    attrs: int = 99


class Machine:
    """Walker, clock and probes in one. Each look at the clock and each frame read takes one nanosecond."""

    def __init__(self, start: Map, changes: list[Change] | None = None) -> None:
        self.now = 1000
        self.map = start
        self.changes = changes or []
        self.states: list[tuple[int, Map]] = [(0, copy.deepcopy(start))]
        self._pending = sorted(self.changes, key=lambda change: change.effect)
        self.reads: list[tuple[str, int]] = []
        self.on_read: Callable[[str, int], None] = lambda kind, number: None

    def monotonic_ns(self) -> int:
        self.now += 1
        while self._pending and self._pending[0].effect <= self.now:
            change = self._pending.pop(0)
            self.map.change(change.pfn, change.n_pages, change.attrs)
            self.states.append((change.effect, copy.deepcopy(self.map)))
        return self.now

    def change_now(self, pfn: int, n_pages: int = 1, attrs: int = 77) -> None:
        """A change that begins, happens and ends between two looks at the clock."""
        change = Change(self.now, self.now, self.now, pfn, n_pages, attrs)
        self.changes.append(change)
        self._pending.insert(0, change)

    def direct_map(self, between: Callable[[], object] | None = None) -> Leaves:
        return self._walk("whole", 0, range(N_GIGS * FRAMES))

    def gigs(self, gigs: np.ndarray) -> Leaves:
        [gig] = gigs.tolist()
        return self._walk("gig", gig, range(gig * FRAMES, (gig + 1) * FRAMES))

    def frame(self, frame: int) -> Leaves:
        self.reads.append(("frame", frame))
        self.monotonic_ns()
        if frame // FRAMES in self.map.gigs:
            return self.gigs(np.array([frame // FRAMES], U64))
        self.on_read("frame", frame)
        return leaves(self.map.of_frame(frame))

    def kernel_image(self) -> Leaves:
        return leaves([(0x1000, Level.M2, 5), (0x1200, Level.M2, 5), (0x1400, Level.M2, 7)])

    def _walk(self, kind: str, number: int, frames: range) -> Leaves:
        self.reads.append((kind, number))
        found: list[tuple[int, int, int]] = []
        large: set[int] = set()
        for frame in frames:
            gig = frame // FRAMES
            if frame % FRAMES == 0:
                self.monotonic_ns()
                if gig in self.map.gigs:
                    large.add(gig)
                    found.append((frame * 512, Level.G1, self.map.gigs[gig]))
            if gig in large:
                continue
            self.monotonic_ns()
            found += self.map.of_frame(frame)
        self.on_read(kind, number)
        return leaves(found)

    def touched(self) -> Touched:
        """Everything that began by now, after waiting for its end."""
        seen = [change for change in self.changes if change.entry <= self.now]
        while seen and self.now < max(change.exit for change in seen):
            self.monotonic_ns()
        columns = zip(*[(c.entry, c.exit, c.pfn, c.n_pages) for c in seen], strict=True) if seen else [[]] * 4
        return Touched(*(np.array(column, U64) for column in columns))


def leaves(rows: list[tuple[int, int, int]]) -> Leaves:
    pfn, level, attrs = zip(*rows, strict=True) if rows else ([], [], [])
    return Leaves(np.array(pfn, U64), np.array(level, np.uint8), np.array(attrs, U64))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[Machine], None]:
    return lambda machine: monkeypatch.setattr(snapshot, "time", SimpleNamespace(monotonic_ns=machine.monotonic_ns))


def fresh() -> Map:
    """One gigabyte as 2M entries with a frame of 4K entries and a hole; the other as one entry."""
    frames = {i: 3 for i in range(FRAMES) if i not in (4, 5)}
    return Map(gigs={1: 3}, frames=frames, pages={4: [3] * 100 + [0] * 312 + [9] * 100})


def at(taken: Snapshot, pfn: int) -> tuple[int, int, int]:
    """Level, attributes and number of the leaf that maps a page."""
    i = int(np.searchsorted(taken.leaves.pfn, pfn, side="right")) - 1
    return int(taken.leaves.level[i]), int(taken.leaves.attrs[i]), i


def test_nothing_is_read_twice_while_nothing_changes(clock: Callable[[Machine], None]) -> None:
    machine = Machine(fresh())
    clock(machine)
    taken = still(machine, machine.touched)  # type: ignore[arg-type]
    assert machine.reads == [("whole", 0)]
    assert (taken.n_rounds, taken.n_again, taken.n_unstable) == (0, 0, 0)
    assert len(taken.leaves.pfn) == 510 + 200 + 1
    assert set(taken.ts_ns.tolist()) == {1001}
    assert len(set(taken.ts_end_ns.tolist())) == 1
    assert taken.image_ts_ns == int(taken.ts_end_ns[0]) < taken.image_ts_end_ns


def test_a_change_before_the_walk_is_none_of_its_business(clock: Callable[[Machine], None]) -> None:
    machine = Machine(fresh(), [Change(10, 20, 30, 0)])
    clock(machine)
    assert still(machine, machine.touched).n_rounds == 0  # type: ignore[arg-type]


def test_exactly_the_frame_that_changed_meanwhile_is_read_again(clock: Callable[[Machine], None]) -> None:
    machine = Machine(fresh(), [Change(1100, 1110, 1120, 3 * 512 + 7)])
    clock(machine)
    taken = still(machine, machine.touched)  # type: ignore[arg-type]
    assert machine.reads == [("whole", 0), ("frame", 3)]
    assert (taken.n_rounds, taken.n_again) == (1, 1)
    assert at(taken, 3 * 512 + 7)[:2] == (Level.K4, 99)
    mine = taken.leaves.pfn >> U64(9) == U64(3)
    assert mine.sum() == 512
    assert set(taken.ts_ns[~mine].tolist()) == {1001}
    assert min(taken.ts_ns[mine].tolist()) > 1120


@pytest.mark.parametrize("change", [Change(900, 950, 1001, 512), Change(1013, 2000, 2020, 512)])
def test_a_change_that_overlaps_the_walk_at_either_end_counts(change: Change, clock: Callable[[Machine], None]) -> None:
    machine = Machine(fresh(), [change])
    clock(machine)
    still(machine, machine.touched)  # type: ignore[arg-type]
    assert machine.reads == [("whole", 0), ("frame", 1)]


def test_a_range_of_pages_touches_all_its_frames(clock: Callable[[Machine], None]) -> None:
    machine = Machine(fresh(), [Change(1100, 1110, 1120, 3 * 512 - 1, n_pages=514)])
    clock(machine)
    still(machine, machine.touched)  # type: ignore[arg-type]
    assert machine.reads[1:] == [("frame", 2), ("frame", 3), ("frame", 4)]


def test_a_hole_that_fills_up_is_read_again(clock: Callable[[Machine], None]) -> None:
    machine = Machine(fresh(), [Change(1100, 1110, 1120, 5 * 512 + 3)])
    clock(machine)
    taken = still(machine, machine.touched)  # type: ignore[arg-type]
    assert machine.reads[1:] == [("frame", 5)]
    assert at(taken, 5 * 512 + 3)[:2] == (Level.K4, 99)


def test_where_one_entry_maps_a_gigabyte_all_of_it_is_read_again(clock: Callable[[Machine], None]) -> None:
    machine = Machine(fresh())
    clock(machine)
    pfn = (FRAMES + 300) * 512 + 7
    # After the entry of that gigabyte was read, before the walk is over:
    machine.on_read = lambda kind, number: machine.change_now(pfn) if kind == "whole" else None
    taken = still(machine, machine.touched)  # type: ignore[arg-type]
    assert machine.reads == [("whole", 0), ("gig", 1)]
    assert at(taken, pfn)[:2] == (Level.K4, 77)
    second = taken.leaves.pfn >= FRAMES * 512
    assert not np.any(taken.leaves.level == Level.G1)
    assert second.sum() == 511 + 512
    assert min(taken.ts_ns[second].tolist()) > max(taken.ts_end_ns[~second].tolist())


def test_a_gigabyte_that_came_apart_is_watched_in_all_its_frames(clock: Callable[[Machine], None]) -> None:
    """A second change hits another frame while the whole range is read again."""
    machine = Machine(fresh())
    clock(machine)
    pfns = {"whole": (FRAMES + 300) * 512 + 7, "gig": (FRAMES + 200) * 512 + 1}
    machine.on_read = lambda kind, number: machine.change_now(pfns.pop(kind)) if kind in pfns else None
    taken = still(machine, machine.touched)  # type: ignore[arg-type]
    assert machine.reads == [("whole", 0), ("gig", 1), ("frame", FRAMES + 200)]
    assert (taken.n_rounds, taken.n_again) == (2, FRAMES)
    assert at(taken, (FRAMES + 200) * 512 + 1)[:2] == (Level.K4, 77)
    assert taken.n_unstable == 0


def test_frames_that_became_one_gigabyte_are_stored_once(clock: Callable[[Machine], None]) -> None:
    machine = Machine(fresh(), [Change(1100, 1110, 1120, 1 * 512), Change(1100, 1110, 1120, 9 * 512)])
    clock(machine)

    def collapse(kind: str, number: int) -> None:
        if kind == "whole":
            machine.map = Map(gigs={0: 3, 1: 3})

    machine.on_read = collapse
    taken = still(machine, machine.touched)  # type: ignore[arg-type]
    assert taken.leaves.pfn.tolist() == [0, FRAMES * 512]
    assert taken.leaves.level.tolist() == [Level.G1, Level.G1]


def test_it_goes_on_until_nothing_changes_meanwhile(clock: Callable[[Machine], None]) -> None:
    machine = Machine(fresh())
    clock(machine)
    left = [3, 2, 1]
    machine.on_read = lambda kind, number: machine.change_now(9 * 512, attrs=left.pop()) if left else None
    taken = still(machine, machine.touched)  # type: ignore[arg-type]
    assert machine.reads == [("whole", 0)] + 3 * [("frame", 9)]
    assert (taken.n_rounds, taken.n_again, taken.n_unstable) == (3, 1, 0), "one frame, three times"
    assert at(taken, 9 * 512)[:2] == (Level.K4, 3)


def test_what_never_rests_is_counted(clock: Callable[[Machine], None]) -> None:
    machine = Machine(fresh())
    clock(machine)

    def churn(kind: str, number: int) -> None:
        for frame in (9, 20) if kind == "whole" else (number,):
            machine.change_now(frame * 512, attrs=100 + len(machine.reads))

    machine.on_read = churn
    taken = still(machine, machine.touched)  # type: ignore[arg-type]
    assert taken.n_unstable == 2
    assert (taken.n_rounds, taken.n_again) == (MAX_ROUNDS, 2)
    assert len(machine.reads) == 1 + 2 * MAX_ROUNDS


def test_it_ends_though_every_round_takes_long(clock: Callable[[Machine], None]) -> None:
    machine = Machine(fresh())
    clock(machine)

    def slow(kind: str, number: int) -> None:
        machine.now += 7 * 10**9
        machine.change_now(9 * 512, attrs=100 + len(machine.reads))

    machine.on_read = slow
    taken = still(machine, machine.touched)  # type: ignore[arg-type]
    assert taken.n_unstable == 1
    assert taken.n_rounds == MAX_NS // (7 * 10**9) + 1


def test_a_long_walk_leaves_time_to_read_again(clock: Callable[[Machine], None]) -> None:
    """A big host, or a busy one: what counts is how long it takes to come to rest afterwards."""
    machine = Machine(fresh())
    clock(machine)

    def long_walk(kind: str, number: int) -> None:
        if kind == "whole":
            machine.now += 2 * MAX_NS
            machine.change_now(9 * 512, attrs=100)

    machine.on_read = long_walk
    taken = still(machine, machine.touched)  # type: ignore[arg-type]
    assert (taken.n_rounds, taken.n_unstable) == (1, 0)
    assert at(taken, 9 * 512)[:2] == (Level.K4, 100)


changes = st.lists(
    st.builds(
        lambda entry, run, rest, pfn, n, attrs: Change(entry, entry + run, entry + run + rest, pfn, n, attrs),
        st.integers(900, 3500),
        st.integers(0, 200),
        st.integers(0, 200),
        st.integers(0, N_GIGS * FRAMES * 512 - 1024),
        st.sampled_from([1, 1, 2, 600]),
        st.integers(100, 120),
    ),
    max_size=8,
)


@settings(max_examples=20, deadline=None)
@given(changes)
def test_each_leaf_is_what_the_map_held_all_the_time_it_was_read_in(changes: list[Change]) -> None:
    machine = Machine(fresh(), changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snapshot, "time", SimpleNamespace(monotonic_ns=machine.monotonic_ns))
        taken = still(machine, machine.touched)  # type: ignore[arg-type]
    assert taken.n_unstable == 0
    pages = np.array(LEAF_PAGES, U64)[taken.leaves.level]
    assert np.all(taken.leaves.pfn[1:] >= (taken.leaves.pfn + pages)[:-1]), "in order, and nothing twice"
    windows = {(int(b), int(e)) for b, e in zip(taken.ts_ns, taken.ts_end_ns, strict=True)}
    for begin, end in windows:
        held = [state for t, state in machine.states if begin < t <= end]
        held.append([state for t, state in machine.states if t <= begin][-1])
        mine = (taken.ts_ns == U64(begin)) & (taken.ts_end_ns == U64(end))
        for pfn, level, attrs in zip(*(column[mine].tolist() for column in taken.leaves), strict=True):
            for state in held:
                # Frames beside the one that split their common entry were read when it was split already: they differ
                # from what was before in level alone, and a replay of the change up to their time splits them too.
                if pfn >> 18 in state.gigs:
                    assert level in (Level.G1, Level.M2) and attrs == state.gigs[pfn >> 18]
                elif level == Level.M2:
                    assert state.frames.get(pfn >> 9) == attrs
                else:
                    assert level == Level.K4 and pfn >> 9 not in state.frames
                    assert state.pages[pfn >> 9][pfn & 511] == attrs
    second = taken.leaves.pfn >= FRAMES * 512
    assert int(pages[second].sum()) == FRAMES * 512, "the second gigabyte has no holes"


def test_rows_are_runs_and_never_cross_times_of_reading(clock: Callable[[Machine], None]) -> None:
    machine = Machine(fresh(), [Change(1100, 1110, 1120, 8 * 512, n_pages=512, attrs=3)])
    machine.map.pages[8] = [3] * 512
    del machine.map.frames[8]
    machine.map.pages[9] = [3] * 512
    del machine.map.frames[9]
    clock(machine)
    table = still(machine, machine.touched).table(4, Moment.END)  # type: ignore[arg-type]
    assert table.schema.equals(TABLES["snapshots"])
    rows = table.to_pylist()
    assert {row["snapshot"] for row in rows} == {4} and {row["moment"] for row in rows} == {Moment.END}
    mapped = [
        (row["pfn"], row["level"], row["n_leaves"], row["attrs"]) for row in rows if row["space"] == Space.DIRECT_MAP
    ]
    assert mapped == [
        (0, 2, 4, 3),
        (4 * 512, 1, 100, 3),
        (4 * 512 + 412, 1, 100, 9),
        (6 * 512, 2, 2, 3),
        (8 * 512, 1, 512, 3),  # equal to what follows, but read later
        (9 * 512, 1, 512, 3),
        (10 * 512, 2, 502, 3),
        (512 * 512, 3, 1, 3),
    ]
    assert rows[4]["ts_ns"] > rows[5]["ts_ns"] == rows[3]["ts_ns"]
    image = [row for row in rows if row["space"] == Space.KERNEL_IMAGE]
    assert [(row["pfn"], row["n_leaves"], row["attrs"]) for row in image] == [(0x1000, 2, 5), (0x1400, 1, 7)]
    assert all(row["ts_ns"] <= row["ts_end_ns"] for row in rows)


def test_totals_are_in_kilobytes_by_level(clock: Callable[[Machine], None]) -> None:
    machine = Machine(fresh())
    clock(machine)
    assert walk_once(machine).counts_kb() == {  # type: ignore[arg-type]
        "DirectMap4k": 200 * 4,
        "DirectMap2M": 510 * 2048,
        "DirectMap1G": 1 << 20,
    }


def covered(machine: Machine, first: int, end: int) -> list[tuple[int, int, int, int]]:
    """Rows (pfn, level, leaves, ts) of a snapshot of a range, in order of page; they cover it once."""
    taken = still_range(machine, machine.touched, first, end).table(5)  # type: ignore[arg-type]
    assert taken.schema.equals(TABLES["snapshots"])
    assert set(taken["moment"].to_pylist()) <= {Moment.HOTPLUG}
    rows = sorted(
        zip(*(taken[name].to_pylist() for name in ("pfn", "level", "n_leaves", "ts_ns")), strict=True),
        key=lambda r: r[0],
    )
    page = first
    for pfn, level, n, _ in rows:
        assert pfn == page
        page += n * max(1, LEAF_PAGES[level])
    assert page == end
    return rows


def test_a_range_is_read_alone_and_its_holes_have_rows(clock: Callable[[Machine], None]) -> None:
    machine = Machine(fresh())
    clock(machine)
    rows = covered(machine, 3 * 512, 7 * 512)
    assert machine.reads == [("gig", 0)]
    assert [row[:3] for row in rows] == [
        (3 * 512, Level.M2, 1),
        (4 * 512, Level.K4, 100),
        (4 * 512 + 100, Level.NONE, 312),
        (4 * 512 + 412, Level.K4, 100),
        (5 * 512, Level.NONE, 512),
        (6 * 512, Level.M2, 1),
    ]


def test_a_range_where_nothing_is_left_is_one_hole(clock: Callable[[Machine], None]) -> None:
    machine = Machine(Map(gigs={1: 3}))
    clock(machine)
    [row] = covered(machine, 0, 512 * 512)
    assert row[:3] == (0, Level.NONE, 512 * 512)


def test_what_changes_while_a_range_is_read_is_read_again(clock: Callable[[Machine], None]) -> None:
    machine = Machine(fresh(), [Change(1100, 1110, 1120, 6 * 512 + 1), Change(1100, 1110, 1120, 300 * 512)])
    clock(machine)
    rows = covered(machine, 6 * 512, 8 * 512)
    assert [row[:2] for row in rows if row[3] > 1120][:1] == [(6 * 512, Level.K4)]
    assert rows[-1][:2] == (7 * 512, Level.M2) and rows[-1][3] < 1100
