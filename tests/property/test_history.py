"""The map at any moment, in whatever order moments are asked for, is what the plain Python model has at that moment."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analyze import history as history_module
from analyze.changes import Changes
from analyze.directmap import DirectMap
from analyze.history import History
from analyze.reconstruct import rebuild
from collect.schema import LEAF_PAGES, ChangeKind, Level, Moment
from collect.trace import open_trace
from tests.machine import PageModel, write_trace
from tests.unit.test_hotplug import plugged

SAMPLE = Path(__file__).parents[2] / "sample_traces" / "7.2-churn"
N_MOMENTS = 10


@dataclass(frozen=True)
class Known:
    """A trace, and what the plain model says of it at some moments: (ts_ns, level per page, attributes per page)."""

    history: History
    moments: list[tuple[int, np.ndarray, np.ndarray]]


def played(history: History, moments: list[int]) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """The plain model's map at ascending moments. What happened until then it works out by itself: no order of ours."""
    course = history.course
    changes, start = course.changes, course.start
    rows = course.snapshots.rows(Moment.START)
    assert rows is not None
    model = PageModel(start.map.first_symbolic, tuple(course.trace.manifest["memory"]["rodata"] or [0, 0]))
    for pfn, n, level, attrs in zip(
        *(rows[name].tolist() for name in ("pfn", "n_leaves", "level", "attrs")), strict=True
    ):
        model.fill(pfn, n, level, attrs)
    events = sorted(
        [(ts_ns, 0, row) for row, ts_ns in effects(changes)]
        + [(part.ts_ns, 1, i) for i, part in enumerate(course.reread)]
    )
    for before, until in pairwise([-1, *moments]):
        for _, is_reading, at in (event for event in events if before < event[0] <= until):
            if is_reading:
                runs = course.reread[at].runs
                for pfn, level, n, attrs in zip(*(column.tolist() for column in runs), strict=True):
                    n_pages = n * max(LEAF_PAGES[level], 1)
                    model.level[pfn : pfn + n_pages] = bytes([level]) * n_pages
                    model.attrs[pfn : pfn + n_pages] = [attrs] * n_pages
            else:
                apply(model, changes, at, start.read_from)
        yield until, np.frombuffer(bytes(model.level), np.uint8), np.array(model.attrs, np.uint64)


def effects(changes: Changes) -> Iterator[tuple[int, int]]:
    """(row, ts_ns): a call's exit, or the entry of the first call nested in it that changed the map after it."""
    columns = changes.columns
    nested: dict[int, int] = {}
    for row in np.flatnonzero(changes.direct & (columns["stack_id"] == 0)).tolist():
        parent, entry = int(columns["parent_id"][row]), int(columns["ts_ns"][row])
        nested[parent] = min(nested.get(parent, entry), entry)
    for row in np.flatnonzero(changes.direct).tolist():
        leave = int(changes.exit_ns[row])
        yield row, min(leave, nested.get(int(columns["call_id"][row]), leave))


def apply(model: PageModel, changes: Changes, row: int, read_from: np.ndarray) -> None:
    columns = changes.columns
    pages = changes.pfns[changes.pfns_start[row] : changes.pfns_start[row + 1]].tolist()
    n, done, first = int(changes.n_pages[row]), int(changes.n_done[row]), int(changes.first_pfn[row])
    late = changes.exit_ns[row] <= read_from
    if columns["kind"][row] == ChangeKind.HOTPLUG_REMOVE:
        model.level[first : first + n] = bytes(n)
        model.attrs[first : first + n] = [0] * n
    elif columns["kind"][row] == ChangeKind.HOTPLUG_ADD:
        level = max(int(columns["level_first"][row]), int(columns["level_last"][row]))
        size = LEAF_PAGES[level]
        assert first % size == 0 and n % size == 0, "the model adds memory in one size"
        model.fill(first, n // size, level, int(columns["attrs_first"][row]))
    else:
        assert columns["kind"][row] == ChangeKind.CPA
        masks = int(columns["mask_set"][row]), int(columns["mask_clr"][row])
        how = {"force_split": bool(columns["force_split"][row]), "has_pgd": bool(columns["has_pgd"][row])}
        for pfn in pages[:done] or [first]:
            if not late[pfn // 512]:
                model.change(pfn, 1 if pages else n, *masks, n_done=1 if pages else done, **how)
        if columns["ret"][row]:
            for level in (Level.G1, Level.M2):
                if (changes_left := LEFT.get((int(columns["call_id"][row]), int(level)))) is not None:
                    model.split(changes_left, level)


LEFT: dict[tuple[int, int], int] = {}
"""By call that failed and Level: the page above which it left a leaf split, as the probe saw it."""


@pytest.fixture(scope="module", params=["machine", "plugged", SAMPLE], ids=lambda what: getattr(what, "name", what))
def known(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Known:
    path = request.param
    if not isinstance(path, Path):
        directory = tmp_path_factory.mktemp("machine")
        path = write_trace(directory / "trace", 41, scale=0.1)
        if request.param == "plugged":
            path = plugged(path, directory / "plugged", removed=True)
    rebuilt = rebuild(open_trace(path))
    history = History(rebuilt.course)
    observed, changes = history.course.observed, history.course.changes
    LEFT.clear()
    for row, pfn, level in zip(observed.left_row, observed.left_pfn, observed.left_level, strict=True):
        LEFT[int(changes.columns["call_id"][row]), int(level)] = int(pfn)
    # The very moments at which something took effect: one nanosecond earlier is another map.
    effective = np.unique(changes.effect_ns[rebuilt.prediction.n_changed > 0])
    some = np.random.default_rng(3).choice(effective, N_MOMENTS - 4, replace=False)
    span = history.span
    ts = {span.first_ns, span.last_ns, *some.tolist(), int(some[0]) - 1, int(some[1]) + 1}
    ts |= {part.ts_ns + off for part in history.course.reread for off in (-1, 0)}
    return Known(history, list(played(history, sorted(t for t in ts if span.first_ns <= t <= span.last_ns))))


def assert_is(state: DirectMap, level: np.ndarray, attrs: np.ndarray) -> None:
    every = np.arange(state.first_symbolic)
    np.testing.assert_array_equal(state.level_of(every), level)
    np.testing.assert_array_equal(state.attrs_of(every), attrs)
    for each in (Level.K4, Level.M2, Level.G1):
        assert state.counts()[each] == (level == each).sum() // LEAF_PAGES[each]


@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(order=st.lists(st.integers(0, 99), min_size=1, max_size=5), spacing=st.sampled_from([37, 1000, 1 << 14]))
def test_any_moment_in_any_order_is_what_the_plain_model_has(known: Known, order: list[int], spacing: int) -> None:
    history = History(known.history.course)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(history_module, "CELLS_PER_CHANGE", 1 << 40)
        history._spacing = spacing
        for i in order:
            ts, level, attrs = known.moments[i % len(known.moments)]
            assert_is(history.state_at(ts), level, attrs)


def test_checkpoints_stay_within_their_memory_and_the_answers_right(
    known: Known, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_module, "CELLS_PER_CHANGE", 1 << 40)
    monkeypatch.setattr(history_module, "MAX_CHECKPOINT_BYTES", 100_000)
    history = History(known.history.course)
    history._spacing = 1
    for ts, level, attrs in [known.moments[-1], *known.moments]:
        assert_is(history.state_at(ts), level, attrs)
        assert sum(checkpoint.n_bytes for checkpoint in history._checkpoints) <= 100_000
    assert history._spacing > 1
