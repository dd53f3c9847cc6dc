"""Playing a trace forward: stops on the way change nothing, and a snapshot is met frame by frame as it was read."""

from __future__ import annotations

import weakref
from pathlib import Path

import numpy as np
import pytest

from analyze.course import Course, load_course
from analyze.directmap import DirectMap
from analyze.playback import Playback
from analyze.reconstruct import rebuild
from collect.trace import open_trace
from tests.machine import write_trace

SAMPLES = sorted(path for path in Path(__file__).parents[2].joinpath("sample_traces").glob("*") if path.is_dir())


@pytest.fixture(scope="module", params=[*SAMPLES, None], ids=lambda path: path.name if path else "machine")
def trace(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return request.param or write_trace(tmp_path_factory.mktemp("machine") / "trace", 31, scale=0.1)


@pytest.fixture(scope="module")
def course(trace: Path) -> Course:
    return load_course(open_trace(trace))


def assert_same(a: DirectMap, b: DirectMap) -> None:
    for mine, theirs in zip(a.runs(), b.runs(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert a.counts() == b.counts()


def test_stops_on_the_way_change_nothing(course: Course) -> None:
    straight = Playback(course)
    straight.to_end()
    halting = Playback(course)
    for ts in course.effect_ns[:: max(1, len(course.effect_ns) // 40)].tolist():
        halting.to(ts)
    halting.to_end()
    assert_same(straight.state, halting.state)


def test_a_copy_stays_as_it_was(course: Course) -> None:
    playback = Playback(course)
    playback.to(int(course.effect_ns[0]))
    kept, runs = playback.state.copy(), playback.state.runs()
    playback.to_end()
    for mine, theirs in zip(kept.runs(), runs, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert kept.counts() != playback.state.counts()


def test_the_end_snapshot_is_met_as_rebuild_meets_it(trace: Path, course: Course) -> None:
    rebuilt = rebuild(open_trace(trace))
    assert rebuilt.end is not None
    playback = Playback(course)
    found = playback.as_read(rebuilt.end)
    assert_same(found, rebuilt.final)
    playback.to_end()  # it can go on from there
    assert playback.place == len(course.changes)


def test_going_back_is_refused(course: Course) -> None:
    playback = Playback(course)
    playback.to_end()
    with pytest.raises(ValueError, match="begin anew"):
        playback.to(int(course.effect_ns[0]))


def test_the_start_snapshot_stays_as_it_was_read(course: Course) -> None:
    held = course.start.map
    before = held.runs()
    Playback(course).to_end()
    for state in (held, course.start.map):
        for mine, theirs in zip(state.runs(), before, strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_a_map_that_nobody_holds_is_not_kept(course: Course) -> None:
    course.start.let_go()
    seen = weakref.ref(course.start.map)
    assert seen() is None
    one = course.start.map
    assert course.start.map is one
    own = course.start.take()
    assert own is not one
    assert_same(own, one)
